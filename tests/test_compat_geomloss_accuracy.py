"""`compat.geomloss` in float32 and in float64: points near each other, far from the origin, and far out."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad

from ucmkd_fast.compat._distances import cost_of
from ucmkd_fast.compat.geomloss import SamplesLoss

geomloss = pytest.importorskip(
    "geomloss", reason="GeomLoss, which this part is compared with, is not installed (extra: test)"
)


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
