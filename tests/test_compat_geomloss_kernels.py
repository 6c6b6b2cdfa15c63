"""`compat.geomloss` beyond the divergence: kernel norms, kernels and costs that the user gives."""

from __future__ import annotations

import pytest
import torch
from geomloss_cases import close, measures, ours, outputs
from torch.func import grad, hessian, jvp, vmap

from ucmkd_fast.compat.geomloss import SamplesLoss

geomloss = pytest.importorskip(
    "geomloss", reason="GeomLoss, which this part is compared with, is not installed (extra: test)"
)


NAMES = ["energy", "gaussian", "laplacian"]


def cauchy(x, y, blur, use_keops, ranges):
    assert not use_keops and ranges is None
    return 1 / (1 + (x[:, :, None, :] - y[:, None, :, :]).square().sum(-1) / blur**2)


def taxi(x, y):
    return (x[:, :, None, :] - y[:, None, :, :]).abs().sum(-1)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("blur", [0.05, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_values_gradients_and_potentials(name, blur, batch):
    arguments = measures(batch)
    options = {"loss": name, "blur": blur}
    for got, want in zip(
        outputs(ours, arguments, **options), outputs(geomloss, arguments, **options), strict=True
    ):
        close(got, want, 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_nearer_than_geomloss(name):
    """Judged by float64 on the same points, far from the origin, where GeomLoss's distances are rounding."""
    narrow = [z.detach() + (5 if z.dim() == 2 else 0) for z in measures(dtype=torch.float32)]
    truth = outputs(ours, [z.double().requires_grad_() for z in narrow], loss=name, blur=0.3)
    found = [
        outputs(module, [z.clone().requires_grad_() for z in narrow], loss=name, blur=0.3)
        for module in (ours, geomloss)
    ]
    for got, theirs, want in zip(*found, truth, strict=True):
        floor = (theirs.double() - want).abs().max().item()
        assert (got.double() - want).abs().max().item() <= floor + 1e-6 * want.abs().max().item()


@pytest.mark.parametrize("name", NAMES)
def test_known_answers(name):
    x = measures()[1].detach()
    assert SamplesLoss(name, blur=0.3)(x, x).abs().item() < 1e-12
    points = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    far = {
        "energy": 1 - 1e-4,
        "gaussian": 1 - torch.tensor(-2.0).exp(),
        "laplacian": 1 - torch.tensor(-2.0).exp(),
    }
    # Of points that coincide GeomLoss's distance is 1e-4, in units of blur.
    own = 1 if name != "laplacian" else torch.tensor(-1e-4).exp().item()
    want = far[name] if name == "energy" else far[name] - 1 + own
    assert abs(SamplesLoss(name, blur=0.5)(*points) - want) < 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_transforms_and_dtypes(name):
    a, x, b, y = arguments = [z.detach() for z in measures((3,))]
    loss = SamplesLoss(name, blur=0.4)
    close(vmap(loss)(*arguments), loss(*arguments), 1e-12)
    leaves = [z.clone().requires_grad_() for z in arguments]
    want = torch.autograd.grad(geomloss.SamplesLoss(name, blur=0.4)(*leaves).sum(), leaves)
    for got, slope in zip(vmap(grad(loss, (0, 1, 2, 3)))(*arguments), want, strict=True):
        close(got, slope, 1e-10)
    tangents = [torch.cos(z) for z in arguments]
    slopes = sum((w * t).sum(tuple(range(1, w.dim()))) for w, t in zip(want, tangents, strict=True))
    close(jvp(loss, tuple(arguments), tuple(tangents))[1], slopes, 1e-10)
    half = [z.bfloat16() for z in arguments]
    assert loss(*half).dtype == geomloss.SamplesLoss(name, blur=0.4)(*half).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="x must hold finite points"):
        loss(a, torch.full_like(x, torch.nan), b, y)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_geomlosses(name):
    x, y = (z.detach()[:6] for z in measures()[1::2])
    found = [
        torch.autograd.functional.hessian(lambda z, m=module: m.SamplesLoss(name, blur=0.4)(z, y), x)
        for module in (ours, geomloss)
    ]
    if name == "gaussian":  # others have no derivative where a point meets itself
        close(*found, 1e-9)
    close(hessian(lambda z: SamplesLoss(name, blur=0.4)(z, y))(x), found[0], 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_of_your_own(name):
    options = {"loss": name, "kernel": cauchy, "blur": 0.4}
    for got, want in zip(
        outputs(ours, measures((2,)), **options), outputs(geomloss, measures((2,)), **options), strict=True
    ):
        close(got, want, 1e-10)


@pytest.mark.parametrize("reach", [None, 0.5])
@pytest.mark.parametrize("debias", [True, False])
def test_a_cost_of_your_own(debias, reach):
    options = {"cost": taxi, "p": 1, "debias": debias, "reach": reach}
    for batch in ((), (2,)):
        for got, want in zip(
            outputs(ours, measures(batch), **options),
            outputs(geomloss, measures(batch), **options),
            strict=True,
        ):
            close(got, want, 1e-10)


def test_a_cost_that_is_not_symmetric():
    def uphill(x, y):
        return taxi(x, y) + (y[:, None, :, 0] - x[:, :, None, 0]).clamp_min(0)

    for got, want in zip(
        outputs(ours, measures(), cost=uphill), outputs(geomloss, measures(), cost=uphill), strict=True
    ):
        close(got, want, 1e-10)
