"""Unbalanced transport by the CUDA kernels, run on the execution model, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from cuda_harness import build, model
from test_sinkhorn import distance

import ucmkd_fast as uk
from ucmkd_fast.reference import sinkhorn as reference

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with"),
]


@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("grad", ["unrolled", "implicit", "envelope"])
def test_losses(grad, objective):
    x, y = torch.randn(19, 5).double().requires_grad_(), (1.3 * torch.randn(23, 5)).double().requires_grad_()
    options = {"metric": "l2", "reg": 0.3, "max_iter": 20 if grad == "unrolled" else 300, "grad": grad}
    options |= {"objective": objective, "unbalanced": (0.7, 2.0)}
    want = reference.sinkhorn_loss(x, y, **options)
    wants = torch.autograd.grad(want, (x, y))
    with model():
        got = uk.sinkhorn_loss(x, y, **options)
        grads = torch.autograd.grad(got, (x, y))
    for g, w in zip((got, *grads), (want, *wants), strict=True):
        assert distance(g, w) < 1e-8


def test_lists_and_batches():
    x, y = torch.randn(20, 4).double().requires_grad_(), torch.randn(24, 4).double()
    a, b = torch.rand(20).double().requires_grad_(), torch.rand(24).double()
    offsets = torch.tensor([0, 8, 20]), torch.tensor([0, 9, 24])

    def both():
        options = {"reg": 0.3, "max_iter": 8, "unbalanced": 0.5}
        ragged = uk.sinkhorn_loss(x, y, a, b, offsets=offsets, **options)
        batch = [z.unflatten(0, (2, len(z) // 2)) for z in (x, y, a, b)]
        return torch.cat([ragged, uk.sinkhorn_loss(*batch, **options)])

    want = both()
    wants = torch.autograd.grad(want.sum(), (x, a))
    with model():
        got = both()
        grads = torch.autograd.grad(got.sum(), (x, a))
    for g, w in zip((got, *grads), (want, *wants), strict=True):
        assert distance(g, w) < 1e-9


def test_panels_are_refused():
    x = torch.randn(40, 4)
    with model(), pytest.raises(NotImplementedError, match="unbalanced transport is not built"):
        uk.sinkhorn_loss(x, x)
        uk.sinkhorn_loss(x, x, unbalanced=1.0, memory_budget=6000)
