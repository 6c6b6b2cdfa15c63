"""Devices without kernels: the reference runs, says so, and reports what ran."""

from __future__ import annotations

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.ops import _devices

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:this build of ucmkd_fast has no kernels"),
]

OPTIONS = {"reg": 0.3, "tol": 1e-6, "max_iter": 500}


@pytest.fixture
def without_kernels(monkeypatch):
    """CPU tensors stand for those of a device that this build has no kernels for."""

    def leave():
        monkeypatch.setattr(_devices, "_cpu", _devices._reference)

    return leave


def features(*sizes: int) -> list[torch.Tensor]:
    return [torch.randn(n, 6, dtype=torch.float64) for n in sizes]


def same_result(got, want) -> None:
    assert torch.equal(got.n_iter, want.n_iter) and bool((want.n_iter.max() < OPTIONS["max_iter"]).all())
    assert torch.allclose(got.marginal_error, want.marginal_error, rtol=1e-5, atol=0)
    assert bool(got.converged.all())
    assert torch.allclose(got.value, want.value) and torch.allclose(
        got.value_regularized, want.value_regularized
    )


def test_a_cost_stops_at_tol_and_says_after_how_many_iterations(without_kernels):
    cost = torch.rand(12, 9, dtype=torch.float64)
    want = uk.sinkhorn(cost, **OPTIONS)
    without_kernels()
    same_result(uk.sinkhorn(cost, **OPTIONS), want)


def test_each_problem_of_a_batch_stops_on_its_own(without_kernels):
    costs = torch.rand(3, 12, 9, dtype=torch.float64) * torch.tensor([0.1, 1.0, 3.0])[:, None, None]
    want = uk.sinkhorn(costs, **OPTIONS)
    assert len(set(want.n_iter.tolist())) == 3
    without_kernels()
    same_result(uk.sinkhorn(costs, **OPTIONS), want)


@pytest.mark.parametrize("scale", [None, "mean"])
@pytest.mark.parametrize("kind", ["one", "batch", "ragged"])
def test_losses_between_features_report_what_ran(kind, scale, without_kernels):
    x, y = features(20, 16)
    options = {**OPTIONS, "metric": "l2", "reg": 1.0, "reg_scale": scale}
    if kind == "batch":
        x, y = x.view(2, 10, 6), y.view(2, 8, 6)
    if kind == "ragged":
        options["offsets"] = torch.tensor([0, 5, 5, 20]), torch.tensor([0, 7, 9, 16])
    x.requires_grad_()

    def both():
        told = uk.Convergence()
        loss = uk.sinkhorn_loss(x, y, convergence=told, **options)
        return loss, torch.autograd.grad(loss.sum(), x)[0], told

    want, result = both(), uk.sinkhorn_loss(x, y, return_result=True, **options)
    without_kernels()
    got = both()
    assert torch.allclose(got[0], want[0]) and torch.allclose(got[1], want[1])
    assert torch.equal(got[2].n_iter, want[2].n_iter)
    assert torch.allclose(got[2].marginal_error, want[2].marginal_error, rtol=1e-5, atol=0)
    same_result(uk.sinkhorn_loss(x, y, return_result=True, **options), result)


def test_the_marginal_error_is_that_of_the_iterations_and_is_made_once(without_kernels, monkeypatch):
    x, y = features(11, 8)
    without_kernels()
    calls = []
    original = torch.Tensor.exp
    monkeypatch.setattr(torch.Tensor, "exp", lambda t: (calls.append(t.dim()), original(t))[1])
    uk.sinkhorn(torch.cdist(x, y), max_iter=3)
    assert calls.count(2) == 2  # the error, and the plan of the value


def label_losses():
    s, t = torch.randn(2, 5, 4)
    target = torch.arange(5) % 4
    feature, sw, tw = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4, 3)
    return {
        "label_transport_loss": lambda: uk.label_transport_loss(s, t, target),
        "linear_label_transport_loss": lambda: uk.linear_label_transport_loss(
            feature, sw, None, tw, None, target
        ),
        "doubly_stochastic": lambda: uk.doubly_stochastic(s),
        "LabelTransportLoss": lambda: uk.LabelTransportLoss()(s, t, target),
        "sinkhorn": lambda: uk.sinkhorn(s @ t.T),
        "sinkhorn_loss": lambda: uk.sinkhorn_loss(s, t),
        "a batch": lambda: uk.sinkhorn_loss(s[None], t[None]),
        "a list": lambda: uk.sinkhorn_loss(s, t, offsets=(torch.tensor([0, 5]), torch.tensor([0, 5]))),
        "class_conditional_loss": lambda: uk.class_conditional_loss(s, t, target, target, classes=4),
    }


@pytest.mark.parametrize("name", label_losses())
def test_every_op_says_at_the_callers_line_that_the_reference_runs(name, without_kernels):
    call = label_losses()[name]
    want = call()
    without_kernels()
    with pytest.warns(UserWarning, match="has no kernels for cpu tensors: the torch reference runs") as told:
        got = call()
    assert {w.filename for w in told} == {__file__}
    if isinstance(got, torch.Tensor):
        assert torch.allclose(got, want, atol=1e-6)


def test_a_budget_that_needs_panels_is_refused_in_words(without_kernels):
    x, y = features(40, 40)
    without_kernels()
    with pytest.raises(NotImplementedError, match="memory_budget.* need kernels for the tensors' device"):
        uk.sinkhorn_loss(x, y, memory_budget=20_000)
    assert uk.sinkhorn_loss(x, y, memory_budget=10**6) > 0  # it fits: nothing needs panels


@pytest.mark.parametrize("objective", ["transport", "divergence"])
def test_a_budget_on_a_third_device_is_refused_in_words(objective):
    x, y = (z.to("meta") for z in features(40, 40))
    with pytest.raises(NotImplementedError, match="this build has none for meta"):
        uk.sinkhorn_loss(x, y, memory_budget=20_000, objective=objective)
