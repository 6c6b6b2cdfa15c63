"""`compat.geomloss` against GeomLoss itself: its public examples' calls, gradients, potentials, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from geomloss_cases import close, measures, ours, outputs
from torch.func import vmap

from ucmkd_fast.compat.geomloss import SamplesLoss

geomloss = pytest.importorskip(
    "geomloss", reason="GeomLoss, which this part is compared with, is not installed (extra: test)"
)


# The calls of GeomLoss's pages and gallery.


def test_readme_call():
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(300, 3, generator=generator), dim=1).requires_grad_()
    y = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=1)
    found = []
    for module in (ours, geomloss):
        loss = module.SamplesLoss(loss="sinkhorn", p=2, blur=0.05)(x, y)
        found.append((loss, *torch.autograd.grad(loss, [x])))
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-6)


def test_gallery_gradient_flow():
    x, y = measures(n=60, m=60, d=2, dtype=torch.float32)[1::2]
    ends = []
    for module in (ours, geomloss):
        loss = module.SamplesLoss("sinkhorn", p=2, blur=0.01, scaling=0.8)
        point = x.detach().clone().requires_grad_()
        for _ in range(5):
            (slope,) = torch.autograd.grad(loss(point, y.detach()), [point])
            point.data -= 0.2 * len(point) * slope
        ends.append(point.detach())
    close(*ends, 1e-4)
    assert (ends[1] - x).abs().max() > 0.05


def test_gallery_raw_transport_and_its_potentials():
    a, x, b, y = measures(d=2)
    for options in ({"blur": 0.1, "debias": False}, {"blur": 0.01, "scaling": 0.9, "debias": False}):
        for got, want in zip(
            outputs(ours, (a, x, b, y), **options), outputs(geomloss, (a, x, b, y), **options), strict=True
        ):
            close(got, want, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (1,), (3,)])
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("p", [1, 2])
def test_values_gradients_and_potentials(p, debias, batch, dtype):
    arguments = measures(batch, dtype=dtype)
    got = outputs(ours, arguments, p=p, debias=debias)
    if dtype == torch.float64:
        for g, w in zip(got, outputs(geomloss, arguments, p=p, debias=debias), strict=True):
            close(g, w, 1e-10)
        return
    # In float32 the distance of a point to itself is rounding, and with p = 1 GeomLoss divides by it: judge both
    # by float64.
    truth = outputs(geomloss, measures(batch), p=p, debias=debias)
    theirs = outputs(geomloss, arguments, p=p, debias=debias)
    for g, t, w in zip(got, theirs, truth, strict=True):
        assert g.shape == t.shape and g.dtype == t.dtype
        floor = (t.double() - w).abs().max().item()
        assert (g.double() - w).abs().max().item() <= 2 * floor + 1e-6
        close(g, t, 1e-4 + 2 * floor)


@pytest.mark.parametrize("scaling", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("blur", [0.02, 0.5, 100.0])
@pytest.mark.parametrize("diameter", [None, 3.0])
def test_schedules(scaling, blur, diameter):
    options = {"scaling": scaling, "blur": blur, "diameter": diameter}
    for got, want in zip(
        outputs(ours, measures(), **options), outputs(geomloss, measures(), **options), strict=True
    ):
        close(got, want, 1e-10)


def test_weights_with_a_last_dimension_and_uniform_weights():
    a, x, b, y = measures((2,))
    close(
        SamplesLoss()(a[..., None], x, b[..., None], y),
        geomloss.SamplesLoss()(a[..., None], x, b[..., None], y),
        1e-10,
    )
    close(SamplesLoss()(x, y), geomloss.SamplesLoss()(x, y), 1e-10)
    one = [z[0] for z in (a, x, b, y)]
    close(SamplesLoss()(*one), SamplesLoss()(a, x, b, y)[0], 1e-3)  # the box of a batch is one for all


def test_zero_weights_take_no_part():
    a, x, b, y = (z.detach() for z in measures())
    a[3:10], b[0] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    close(SamplesLoss()(a, x, b, y), geomloss.SamplesLoss()(a, x, b, y), 1e-10)
    kept = SamplesLoss(diameter=1.5)(a[a > 0], x[a > 0], b[b > 0], y[b > 0])
    close(SamplesLoss(diameter=1.5)(a, x, b, y), kept, 1e-10)


def test_known_answers():
    x = measures()[1].detach()
    assert SamplesLoss()(x, x).abs().item() < 1e-12
    shift = torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64)
    moved = (x + shift).requires_grad_()
    loss = SamplesLoss(scaling=0.95)(moved, x)  # a translation costs |shift|^2 / 2, exactly also when blurred
    assert math.isclose(loss.item(), (shift @ shift).item() / 2, rel_tol=2e-2)
    (slope,) = torch.autograd.grad(loss, [moved])
    assert torch.allclose(slope.sum(0), shift, atol=1e-2)
    points = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    loss = SamplesLoss()(points, torch.zeros(5, 2, dtype=torch.float64))
    assert loss.item() == 0 and torch.autograd.grad(loss, [points])[0].abs().max() == 0


def test_autocast_changes_nothing():
    x, y = measures(dtype=torch.float32)[1::2]
    want = SamplesLoss()(x, y)
    wanted = torch.autograd.grad(want, (x, y))
    with torch.autocast("cpu", torch.bfloat16):
        got = SamplesLoss()(x, y)
        close(got, want, 0)
        for g, w in zip(torch.autograd.grad(got, (x, y)), wanted, strict=True):
            close(g, w, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_from_geomloss(dtype):
    a, x, b, y = (z.detach().float() for z in measures())
    half = [z.to(dtype) for z in (a, x, b, y)]
    for arguments in (half, (a, half[1], b, half[3]), half[1::2]):
        got, want = SamplesLoss()(*arguments), geomloss.SamplesLoss()(*arguments)
        assert got.dtype == want.dtype
        truth = SamplesLoss()(*(z.float() for z in arguments))
        assert abs(got - truth).item() < 1e-2 * truth.item()
    leaf = half[1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(SamplesLoss()(leaf, half[3]), [leaf])
    wide = leaf.detach().float().requires_grad_()
    (wanted,) = torch.autograd.grad(SamplesLoss()(wide, half[3].float()), [wide])
    assert slope.dtype == dtype and (slope - wanted).abs().max() < 1e-2 * wanted.abs().max()
    assert SamplesLoss(potentials=True)(*half)[0].dtype == dtype
    # A student under autocast meets a bank of float32.
    layer = torch.nn.Linear(3, 3)
    with torch.autocast("cpu", dtype):
        student = layer(x)
        assert student.dtype == dtype and SamplesLoss()(student, layer(y)).dtype == dtype
        SamplesLoss()(student, y).backward()
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().max() > 0


def test_weights_of_float64_raise_the_dtype():
    a, x, b, y = (z.detach() for z in measures())
    arguments = a, x.float(), b, y.float()
    close(SamplesLoss()(*arguments), geomloss.SamplesLoss()(*arguments), 1e-6)


@pytest.mark.parametrize(
    ("options", "alternative"),
    [
        ({"loss": "hausdorff"}, "'energy', 'gaussian' or 'laplacian'"),
        ({"cost": "SqDist(X, Y)"}, "write it with torch"),
        ({"loss": "energy", "kernel": "Exp(-SqDist(X, Y))"}, "write it with torch"),
        ({"cluster_scale": 0.1}, "leave them out"),
        ({"backend": "multiscale"}, "leave them out"),
    ],
)
def test_refusals_name_the_alternative(options, alternative):
    with pytest.raises(NotImplementedError, match=alternative):
        SamplesLoss(**options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"p": 3}, ValueError),
        ({"blur": 0.0}, ValueError),
        ({"blur": "0.1"}, TypeError),
        ({"scaling": 1.0}, ValueError),
        ({"diameter": -1.0}, ValueError),
        ({"loss": "sinkhron"}, ValueError),
        ({"reach": 0.0}, ValueError),
        ({"reach": math.nan}, ValueError),
        ({"reach": "far"}, TypeError),
        ({"truncate": -1}, ValueError),
        ({"kernel": torch.cdist}, ValueError),
        ({"cost": torch.cdist, "loss": "energy"}, ValueError),
        ({"reach": 1.0, "loss": "gaussian"}, ValueError),
        ({"backend": "keops"}, ValueError),
    ],
)
def test_bad_options(options, error):
    with pytest.raises(error, match=next(iter(options))):
        SamplesLoss(**options)


def test_bad_calls():
    a, x, b, y = (z.detach() for z in measures())
    loss = SamplesLoss()
    for arguments, error, words in [
        ((x,), ValueError, "1 arguments"),
        ((a, a, x, b, b, y), NotImplementedError, "labels"),
        ((x, y[:, :2]), ValueError, "one width"),
        ((x[None], y), ValueError, "batches"),
        ((x, y.float()), TypeError, "do not mix"),
        ((x.long(), y.long()), TypeError, "float32.* got int64"),
        ((x.double(), y.half()), TypeError, "do not mix"),
        ((a[1:], x, b, y), ValueError, r"a must have shape \(40,\)"),
        ((a.long(), x, b, y), TypeError, "a must be a torch.Tensor of floats .* got torch.int64"),
        ((a.numpy(), x, b, y), TypeError, "ndarray"),
        ((x[:0], y), ValueError, "x must have at least one point"),
        ((x, y[:0]), ValueError, "y must have at least one point"),
        ((x[:, :0], y[:, :0]), ValueError, "x must have at least one point and one coordinate"),
        ((x[None][:0], y[None][:0]), ValueError, "at least one point"),
        ((x[0, 0], y), ValueError, r"x must have shape \(N, D\)"),
        ((x[0], y[0]), ValueError, r"x must have shape \(N, D\)"),
        ((x[None, None], y), ValueError, r"x must have shape \(N, D\)"),
        ((a[0], x, b, y), ValueError, r"a must have shape \(40,\), got \(\)"),
        ((a, x.to("meta"), b, y), ValueError, "one device"),
    ]:
        with pytest.raises(error, match=words):
            loss(*arguments)


@pytest.mark.parametrize("diameter", [None, 2.0])
@pytest.mark.parametrize("transformed", [False, True])
def test_bad_values_are_named(diameter, transformed):
    a, x, b, y = (z.detach() for z in measures((2,)))

    def at(z, value):
        z = z.clone()
        z[1, 2] = value
        return z

    loss = SamplesLoss(diameter=diameter)
    call = vmap(loss) if transformed else loss
    for arguments, words in [
        ((a, at(x, torch.nan), b, y), "x must hold finite points, got NaN or inf"),
        ((a, x, b, at(y, torch.inf)), "y must hold finite points, got NaN or inf"),
        ((a.float(), at(x.float(), 3e38), b.float(), y.float()), "squared distances fit torch.float32"),
        ((at(a, -0.25), x, b, y), "a must hold weights >= 0, got -0.25"),
        ((a, x, at(b, torch.nan), y), "b must hold finite weights, got NaN or inf"),
        ((a, x, at(b, torch.inf), y), "b must hold finite weights, got NaN or inf"),
        ((a * 0, x, b, y), "a must hold a weight > 0"),
        ((a, x, b * torch.tensor([[1.0], [0.0]]), y), "b must hold a weight > 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            call(*arguments)


def test_signature_is_geomlosses():
    import inspect

    got, want = (inspect.signature(c.SamplesLoss).parameters for c in (ours, geomloss))
    assert [(k, v.default) for k, v in got.items()] == [(k, v.default) for k, v in want.items()]
    assert "blur=0.05" in repr(SamplesLoss())
