"""`compat.geomloss` with ``reach``: unbalanced transport, against GeomLoss itself."""

from __future__ import annotations

import math

import pytest
import torch
from geomloss_cases import close_relative, measures, ours, outputs

from ucmkd_fast.compat.geomloss import SamplesLoss

geomloss = pytest.importorskip(
    "geomloss", reason="GeomLoss, which this part is compared with, is not installed (extra: test)"
)


REACHES = [0.02, 0.1, 0.5, 3.0, 30.0]


def unequal(batch=(), **options):
    """Masses of 1.7 and 0.6."""
    a, x, b, y = measures(batch, **options)
    return [z.detach().requires_grad_() for z in (1.7 * a, x, 0.6 * b, y)]


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("p", [1, 2])
def test_values_gradients_and_potentials(p, debias, reach):
    for batch in ((), (3,)):
        for arguments in (measures(batch), unequal(batch)):
            options = {"p": p, "debias": debias, "reach": reach}
            theirs = outputs(geomloss, arguments, **options)
            for got, want in zip(outputs(ours, arguments, **options), theirs, strict=True):
                close_relative(got, want, 1e-8)


@pytest.mark.parametrize("scaling", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("blur", [0.005, 0.05, 0.5])
@pytest.mark.parametrize("p", [1, 2])
def test_schedules(p, blur, scaling):
    for reach in (0.1, 3.0):
        for diameter in (None, 0.3):
            options = {"p": p, "scaling": scaling, "blur": blur, "diameter": diameter, "reach": reach}
            theirs = outputs(geomloss, unequal(), **options)
            for got, want in zip(outputs(ours, unequal(), **options), theirs, strict=True):
                close_relative(got, want, 1e-6)


@pytest.mark.parametrize("p", [1, 2])
def test_a_long_reach_is_exact_marginals(p):
    want = outputs(ours, measures(), p=p)
    errors = []
    for reach in (1e2, 1e4):
        got = outputs(ours, measures(), p=p, reach=reach)
        errors.append(max((g - w).abs().max().item() for g, w in zip(got, want, strict=True)))
    assert errors[1] < 1e-3 and errors[1] < errors[0] / 50


def test_float32_keeps_the_digits_that_geomloss_loses_to_a_long_reach():
    """GeomLoss subtracts exponentials near 1 and multiplies by reach^p."""
    truth = outputs(ours, measures(), reach=100.0)
    got = outputs(ours, measures(dtype=torch.float32), reach=100.0)
    theirs = outputs(geomloss, measures(dtype=torch.float32), reach=100.0)
    errors = [abs(value[0].double() - truth[0]).item() for value in (got, theirs)]
    assert errors[0] < 1e-6 * truth[0].item() and errors[1] > 100 * errors[0]
    for g, w in zip(got, truth, strict=True):
        close_relative(g.double(), w, 2e-5)


def test_far_points_are_given_up():
    """A point further than the reach from everything is cheaper to remove: the loss stays at its mass times reach^2."""
    x = torch.tensor([[0.0, 0.0], [50.0, 0.0]], dtype=torch.float64)
    a = torch.tensor([0.6, 0.4], dtype=torch.float64)
    y, b = x[:1], torch.ones(1, dtype=torch.float64)
    found = [
        module.SamplesLoss(reach=0.5, blur=0.01, debias=False)(a, x, b, y) for module in (ours, geomloss)
    ]
    close_relative(*found, 1e-9)
    assert found[0].item() < 2 * 0.5**2
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(SamplesLoss(reach=0.5, blur=0.01, debias=False)(a, leaf, b, y), [leaf])
    assert slope[1].abs().max() == 0  # exp(-1250 / 0.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    half = [z.detach().to(dtype) for z in unequal((2,))]
    got, want = (module.SamplesLoss(reach=0.4)(*half) for module in (ours, geomloss))
    truth = SamplesLoss(reach=0.4)(*(z.double() for z in half))
    assert got.dtype == want.dtype == dtype and got.shape == (2,)
    assert ((got.double() - truth).abs() < 1e-2 * truth).all()
    leaf = half[1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(SamplesLoss(reach=0.4)(half[0], leaf, *half[2:]).sum(), [leaf])
    assert slope.dtype == dtype and slope.isfinite().all() and slope.abs().max() > 0


def test_masses_that_differ_pull_on_the_weights():
    """The loss falls where the lighter side gains weight: its gradient is that of the value, and has a sign."""
    a, x, b, y = unequal()
    loss = SamplesLoss(reach=1.0)
    slopes = torch.autograd.grad(loss(a, x, b, y), [a, b])
    assert slopes[1].mean() < 0 < slopes[0].mean()
    assert math.isfinite(slopes[0].sum().item())
