"""Where autograd does not record, nothing is kept or computed for a backward that cannot come."""

from __future__ import annotations

import torch

import ucmkd_fast as uk
from ucmkd_fast.ops import _cpu, transforms


class Asked(torch.autograd.Function):
    """Keeps what it is told."""

    told: tuple[bool, ...] = ()

    @staticmethod
    def forward(ctx, x, y):
        Asked.told = ctx.needs_input_grad
        return x + y

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


def test_parameters_need_no_gradient_there():
    x, y = torch.nn.Parameter(torch.ones(2)), torch.ones(2)
    call = transforms.applied(Asked)
    assert call(x, y).requires_grad and Asked.told == (True, False)
    with torch.no_grad():
        assert not call(x, y).requires_grad and Asked.told == (False, False)


def test_sinkhorn_keeps_no_history_there(monkeypatch):
    """T (N + M) numbers, and the plan."""
    kept, solve = [], _cpu.solve
    monkeypatch.setattr(_cpu, "solve", lambda p, options, save: kept.append(save) or solve(p, options, save))
    C = torch.nn.Parameter(torch.rand(9, 7))
    with torch.no_grad():
        told = uk.sinkhorn(C)
    assert torch.equal(told.value, uk.sinkhorn(C).value) and kept == [False, True]
