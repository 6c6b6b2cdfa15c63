"""Potentials kept per sample: the same loss in fewer iterations where the samples come back."""

from __future__ import annotations

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.data import WarmStart

OPTIONS = {"reg": 0.05, "tol": 1e-5, "max_iter": 5000}


@pytest.mark.parametrize("objective", ["transport", "regularized"])
def test_drifting_features_take_fewer_iterations_and_give_the_same_loss(objective):
    options = {**OPTIONS, "objective": objective}
    x, bank = torch.randn(30, 8), torch.randn(200, 8)
    warm, cold_total, warm_total = WarmStart(200, 30, **options), 0, 0
    everything = torch.arange(200)
    for step in range(12):
        rows = torch.randperm(30)
        z = (x[rows]).requires_grad_()
        cold = uk.sinkhorn_loss(bank, z, return_result=True, **options)
        want = cold.value if objective == "transport" else cold.value_regularized
        got = warm(z, rows, bank, everything)
        assert torch.allclose(got, want, rtol=1e-4)
        (g,), (w,) = torch.autograd.grad(got, z), torch.autograd.grad(want, z)
        assert (g - w).abs().max() < 0.02 * w.abs().max()
        if step:
            cold_total, warm_total = cold_total + int(cold.n_iter), warm_total + int(warm.last_n_iter)
        x = x + 0.003 * torch.randn(30, 8)
    assert 2 * warm_total <= cold_total


def test_batches_of_any_size_and_precision():
    warm = WarmStart(50, 20, **OPTIONS)
    bank = torch.randn(50, 6)
    for n, m in ((20, 50), (7, 31)):
        rows, columns = torch.randperm(20)[:n], torch.randperm(50)[:m]
        z = torch.randn(n, 6, dtype=torch.bfloat16)
        got = warm(z, rows, bank[columns], columns)
        assert torch.allclose(got, uk.sinkhorn_loss(z, bank[columns], **OPTIONS), rtol=1e-3)
    assert warm.bank.ne(0).all() and warm.student.ne(0).all()


def test_new_company_is_over_relaxed_and_gives_the_same_gradient():
    options = {"reg": 0.02, "tol": 1e-6, "max_iter": 5000, "grad": "implicit"}
    bank, x = torch.randn(80, 6), torch.randn(60, 6)
    warm, plain, relaxed = WarmStart(80, 60, **options), 0, 0
    for _ in range(4):
        rows, columns = torch.randperm(60)[:20], torch.randperm(80)[:30]
        z = x[rows].requires_grad_()
        cold = uk.sinkhorn_loss(bank[columns], z, return_result=True, **options)
        got = warm(z, rows, bank[columns], columns)
        assert torch.allclose(got, cold.value, rtol=1e-4)
        (g,), (w,) = torch.autograd.grad(got, z), torch.autograd.grad(cold.value, z)
        assert (g - w).abs().max() < 1e-2 * w.abs().max()
        plain, relaxed = plain + int(cold.n_iter), relaxed + int(warm.last_n_iter)
    assert relaxed < 0.75 * plain


@pytest.mark.parametrize("rho", [0.5, (0.5, None), (None, 0.5)])
def test_unbalanced_calls_give_the_same_loss_and_are_not_over_relaxed(rho):
    """A pair is (student's, bank's), although the bank comes first in the problem that is solved."""
    options = {"reg": 0.05, "tol": 1e-7, "max_iter": 5000, "grad": "implicit", "unbalanced": rho}
    bank, x = (torch.randn(k, 6, dtype=torch.float64) for k in (80, 60))
    warm, cold_total, warm_total = WarmStart(80, 60, **options).double(), 0, 0
    for step in range(6):
        rows, columns = torch.arange(60), torch.arange(80)
        if step % 2:
            rows, columns = torch.randperm(60)[:20], torch.randperm(80)[:30]
        z = x[rows].requires_grad_()
        convergence = uk.Convergence()
        want = uk.sinkhorn_loss(z, bank[columns], convergence=convergence, **options)
        got = warm(z, rows, bank[columns], columns)
        assert torch.allclose(got, want, rtol=1e-5)
        (g,), (w,) = torch.autograd.grad(got, z), torch.autograd.grad(want, z)
        assert (g - w).abs().max() < 1e-4 * w.abs().max()
        if step % 2 == 0:
            again = warm(z.detach(), rows, bank, columns)
            assert warm.last_n_iter <= 2 and torch.allclose(again, want, rtol=1e-5)
            cold_total, warm_total = cold_total + int(convergence.n_iter), warm_total + int(warm.last_n_iter)
    assert 2 * warm_total < cold_total


def test_potentials_go_into_the_state_dict():
    first, second = (WarmStart(9, 5, **OPTIONS) for _ in range(2))
    z, bank, rows, columns = torch.randn(5, 3), torch.randn(9, 3), torch.arange(5), torch.arange(9)
    first(z, rows, bank, columns)
    second.load_state_dict(first.state_dict())
    second(z, rows, bank, columns)
    assert second.last_n_iter == 1


def test_bad_input():
    with pytest.raises(ValueError, match="tol > 0"):
        WarmStart(5, 5, reg=0.1)
    with pytest.raises(ValueError, match="got init"):
        WarmStart(5, 5, tol=1e-3, init=None)
    with pytest.raises(ValueError, match="divergence"):
        WarmStart(5, 5, tol=1e-3, objective="divergence")
    with pytest.raises(ValueError, match="one index a row"):
        WarmStart(5, 5, tol=1e-3)(torch.ones(2, 2), torch.arange(3), torch.ones(2, 2), torch.arange(2))
