"""`compat.geomloss` under torch's transforms: torch.func, forward mode, compilers, derivatives of derivatives."""

from __future__ import annotations

import pytest
import torch
from geomloss_cases import close, measures, ours
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from ucmkd_fast.compat.geomloss import SamplesLoss

geomloss = pytest.importorskip(
    "geomloss", reason="GeomLoss, which this part is compared with, is not installed (extra: test)"
)


@pytest.mark.parametrize("reach", [None, 0.4])
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("p", [1, 2])
def test_transforms(p, debias, reach):
    """vmap is the batch, with one box around all; derivatives are those of autograd, and GeomLoss's."""
    a, x, b, y = arguments = [z.detach() for z in measures((3,))]
    loss = SamplesLoss(p=p, debias=debias, reach=reach)
    close(vmap(loss)(*arguments), loss(*arguments), 1e-12)
    close(
        vmap(loss, (None, 0, None, 1))(a[0], x, b[0], y.movedim(0, 1)),
        loss(a[:1].expand(3, -1), x, b[:1].expand(3, -1), y),
        1e-12,
    )
    close(vmap(vmap(loss))(x[:, None], y[:, None])[:, 0], loss(x, y), 1e-12)
    leaves = [z.clone().requires_grad_() for z in arguments]
    want = torch.autograd.grad(geomloss.SamplesLoss(p=p, debias=debias, reach=reach)(*leaves).sum(), leaves)
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
    theirs = geomloss.SamplesLoss(p=p, debias=debias, reach=reach)
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


@pytest.mark.parametrize("reach", [None, 0.4])
@pytest.mark.parametrize("p", [1, 2])
def test_second_derivatives(p, reach):
    found = []
    for module in (ours, geomloss):
        x, y = measures()[1::2]
        slopes = torch.autograd.grad(module.SamplesLoss(p=p, reach=reach)(x, y), [x, y], create_graph=True)
        penalty = sum((slope * slope).sum() for slope in slopes)
        found.append(torch.autograd.grad(penalty, [x, y]))
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-9)
        assert want.abs().max() > 1e-4


def test_gradient_mode_is_left_alone():
    x, y = measures()[1::2]
    with torch.no_grad():
        assert not SamplesLoss()(x, y).requires_grad and not torch.is_grad_enabled()


@pytest.mark.parametrize("reach", [None, 0.4])
def test_second_derivatives_of_potentials_and_of_one_tensor_on_both_sides(reach):
    found = []
    for module in (ours, geomloss):
        x, y = measures()[1::2]
        f, g = module.SamplesLoss(potentials=True, reach=reach)(x, y)
        slopes = torch.autograd.grad((f * f).sum() + g.sum(), [x, y], create_graph=True)
        found.append(torch.autograd.grad(sum((slope * slope).sum() for slope in slopes), [x, y]))
        both = torch.autograd.grad(
            module.SamplesLoss(debias=False, reach=reach)(x, x), [x], create_graph=True
        )
        found[-1] += both + torch.autograd.grad(both[0].square().sum(), [x])
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-9)
        assert want.abs().max() > 1e-6
