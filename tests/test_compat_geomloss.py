"""`compat.geomloss` against GeomLoss itself: its public examples' calls, gradients, potentials, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from ucmkd_fast.compat._distances import cost_of
from ucmkd_fast.compat.geomloss import SamplesLoss

geomloss = pytest.importorskip(
    "geomloss", reason="GeomLoss, which this part is compared with, is not installed (extra: test)"
)


def close(got, want, tolerance):
    assert got.shape == want.shape and got.dtype == want.dtype
    scale = max(1.0, want.abs().max().item())
    assert (got - want).abs().max().item() <= tolerance * scale  # false for NaN


def measures(batch=(), n=40, m=33, d=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*batch, *shape, generator=generator, dtype=torch.float64)

    a, x, b, y = draw(n), draw(n, d), draw(m), draw(m, d) * 0.7 + 0.2
    a, b = (w / w.sum(-1, keepdim=True) for w in (a, b))
    return [z.to(dtype).requires_grad_() for z in (a, x, b, y)]


def outputs(module, arguments, **options):
    """The loss, its gradients to all arguments, and both potentials."""
    loss = module.SamplesLoss("sinkhorn", **options)(*arguments)
    slopes = torch.autograd.grad(loss.sum(), arguments)
    return loss, *slopes, *module.SamplesLoss("sinkhorn", **options, potentials=True)(*arguments)


class ours:
    SamplesLoss = SamplesLoss


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


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("p", [1, 2])
def test_transforms(p, debias):
    """vmap is the batch, with one box around all; derivatives are those of autograd, and GeomLoss's."""
    a, x, b, y = arguments = [z.detach() for z in measures((3,))]
    loss = SamplesLoss(p=p, debias=debias)
    close(vmap(loss)(*arguments), loss(*arguments), 1e-12)
    close(
        vmap(loss, (None, 0, None, 1))(a[0], x, b[0], y.movedim(0, 1)),
        loss(a[:1].expand(3, -1), x, b[:1].expand(3, -1), y),
        1e-12,
    )
    close(vmap(vmap(loss))(x[:, None], y[:, None])[:, 0], loss(x, y), 1e-12)
    leaves = [z.clone().requires_grad_() for z in arguments]
    want = torch.autograd.grad(geomloss.SamplesLoss(p=p, debias=debias)(*leaves).sum(), leaves)
    every = (0, 1, 2, 3)
    for got, slope in zip(vmap(grad(loss, every))(*arguments), want, strict=True):
        close(got, slope, 1e-10)
    for got, slope in zip(grad(lambda *z: vmap(loss)(*z).sum(), every)(*arguments), want, strict=True):
        close(got, slope, 1e-10)
    close(jacrev(loss, 1)(*arguments)[0, 0], want[1][0], 1e-10)
    close(jacfwd(loss, 1)(*arguments)[1, 1], want[1][1], 1e-10)
    tangents = [torch.cos(z) for z in arguments]
    slopes = sum((w * t).sum(tuple(range(1, w.dim()))) for w, t in zip(want, tangents, strict=True))
    value, slope = jvp(loss, tuple(arguments), tuple(tangents))
    close(value, loss(*arguments), 1e-12)
    close(slope, slopes, 1e-10)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(z, t) for z, t in zip(arguments, tangents, strict=True)]
        close(forward_ad.unpack_dual(loss(*duals)).tangent, slopes, 1e-10)
    # One box for each call: the same for a single problem.
    small = [z[0, :6] for z in (x, y)]
    theirs = geomloss.SamplesLoss(p=p, debias=debias)
    want = torch.autograd.functional.hessian(lambda z: loss(z, small[1]), small[0])
    close(hessian(loss)(*small), want, 1e-10)
    close(vmap(hessian(loss))(small[0][None], small[1][None])[0], want, 1e-10)
    if p == 2 or not debias:  # where p = 1, GeomLoss differentiates a point's distance to itself
        close(want, torch.autograd.functional.hessian(lambda z: theirs(z, small[1]), small[0]), 1e-9)


def test_potentials_and_weights_of_zero_under_vmap():
    a, x, b, y = (z.detach() for z in measures((3,)))
    a[:, 3] = 0
    loss = SamplesLoss(potentials=True)
    for got, want in zip(vmap(loss)(a, x, b, y), loss(a, x, b, y), strict=True):
        close(got[:, 0], want, 1e-12)
    assert all(z.isfinite().all() for z in vmap(grad(SamplesLoss(), (0, 1)))(a, x, b, y))


def test_compiled_with_a_diameter_is_one_graph():
    x, y = (z.detach() for z in measures()[1::2])
    loss = torch.compile(SamplesLoss(diameter=2.0), backend="aot_eager", fullgraph=True)
    close(loss(x, y), SamplesLoss(diameter=2.0)(x, y), 1e-12)


def test_gradient_of_near_points_far_from_the_origin():
    """The case of a report: each point pulls at most with its weight."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(50, 64, generator=generator) + 3
    x = (y + 1e-3 * torch.randn(50, 64, generator=generator)).requires_grad_()
    (slope,) = torch.autograd.grad(SamplesLoss(p=1)(x, y), [x])
    assert 50 * slope.norm(dim=1).max() < 1.001


@pytest.mark.parametrize("offset", [0, 1, 10, 100, 1000])
@pytest.mark.parametrize("p", [1, 2])
def test_near_points_at_any_offset(p, offset):
    """In float32, judged by float64 on the same numbers; by autograd and by torch.func."""
    generator = torch.Generator().manual_seed(3)
    loss = SamplesLoss(p=p)
    for distance in (1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        y = torch.randn(40, 16, generator=generator) + offset
        x = y + distance * torch.randn(40, 16, generator=generator) / 4
        y[0] = x[0]
        wide = [z.double().requires_grad_() for z in (x, y)]
        truth = loss(*wide)
        wanted = torch.autograd.grad(truth, wide)
        # Where all points are nearer than GeomLoss's floor, the gradient is 0.
        scale = max(1e-6 / 40, *(w.abs().max().item() for w in wanted))
        leaves = [z.clone().requires_grad_() for z in (x, y)]
        value = loss(*leaves)
        for found in (torch.autograd.grad(value, leaves), grad(loss, (0, 1))(x, y)):
            for got, want in zip(found, wanted, strict=True):
                assert (got.double() - want).abs().max().item() < 1e-6 * scale
        # A divergence is a small difference of values as large as the spread of the points.
        assert abs(value.double() - truth).item() < 1e-6 * 5**p


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("p", [1, 2])
def test_points_far_out_leave_the_others_alone(p, offset):
    """A few points at 1e6 must not cost the distances of the rest, as they do where they move the centre."""
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(n, 1, generator=generator) for n in (30, 20))
    x[1] = y[1] + 1e-3
    x, y = x + offset, y + offset
    x[0], y[0], y[-1] = 1e6, 1e6, -1e6
    square = (x.double() - y.double().T)[1:, 1:-1].square()
    want = square.clamp_min(1e-8).sqrt() if p == 1 else square / 2
    for dtype in (torch.float32, torch.float64):
        got = cost_of(x.to(dtype)[None], y.to(dtype)[None], p)[0, 1:, 1:-1]
        assert torch.allclose(got.double(), want, rtol=2e-6, atol=1e-9)
    # float32 knows potentials of 1e6 to 0.06
    leaf = x.double().requires_grad_()
    (got,) = torch.autograd.grad(SamplesLoss(p=p, blur=1.0, debias=False)(leaf, y.double()), leaf)
    leaf = (x.double() - offset).requires_grad_()  # at the origin, where GeomLoss keeps them too
    theirs = geomloss.SamplesLoss(p=p, blur=1.0, debias=False, diameter=2e6, backend="tensorized")
    (want,) = torch.autograd.grad(theirs(leaf, y.double() - offset), leaf)
    assert ((got - want)[1:].abs().max() <= 2e-5 * want[1:].abs().max()).item()


@pytest.mark.parametrize("p", [1, 2])
def test_second_derivatives(p):
    found = []
    for module in (ours, geomloss):
        x, y = measures()[1::2]
        slopes = torch.autograd.grad(module.SamplesLoss(p=p)(x, y), [x, y], create_graph=True)
        penalty = sum((slope * slope).sum() for slope in slopes)
        found.append(torch.autograd.grad(penalty, [x, y]))
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-9)
        assert want.abs().max() > 1e-4


def test_gradient_mode_is_left_alone():
    x, y = measures()[1::2]
    with torch.no_grad():
        assert not SamplesLoss()(x, y).requires_grad and not torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "alternative"),
    [
        ({"loss": "energy"}, "geomloss.SamplesLoss"),
        ({"loss": "gaussian"}, "geomloss.SamplesLoss"),
        ({"loss": "laplacian"}, "geomloss.SamplesLoss"),
        ({"loss": "hausdorff"}, "geomloss.SamplesLoss"),
        ({"reach": 1.0}, "reach=None"),
        ({"cost": torch.cdist}, "p=1 or p=2"),
        ({"kernel": torch.cdist}, "geomloss.SamplesLoss"),
        ({"cluster_scale": 0.1}, "leave it out"),
        ({"truncate": 3}, "tensorized"),
        ({"verbose": True}, "tensorized"),
        ({"backend": "online"}, "tensorized"),
        ({"backend": "multiscale"}, "tensorized"),
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
