"""The term by class of many problems and of costs that do not fit: against the reference, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.ops import _panels
from ucmkd_fast.reference import sinkhorn as reference

METRICS = ["cosine", "chordal", "l2", "l1", "sqeuclidean"]
SIZES = [(3, 40), (40, 9), (0, 5), (1, 1), (70, 65), (7, 0), (16, 16)]  # largest in the middle, two empty
CLASSES = 4


def reg_of(metric: str) -> float:
    return {"cosine": 0.1, "chordal": 0.1}.get(metric, 2.0)


def problem(n, m, d=11, dtype=torch.float64, forbid=True):
    """X, y with a pair that coincides; W with a forbidden class and a negative cost; labels without class 2."""
    rand = torch.Generator().manual_seed(7 * n + m)
    x, y = (torch.randn(k, d, generator=rand, dtype=torch.float64) for k in (n, m))
    y[0] = x[0]
    W = torch.rand(n, CLASSES, generator=rand, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (m,), generator=rand)
    labels[labels == 2] = 0
    W[1, 3] = -0.4
    if forbid:
        W[2, 1] = math.inf
    return [t.to(dtype).requires_grad_() for t in (x, y, W)], labels


def masses(n, m):
    rand = torch.Generator().manual_seed(n + m)
    a, b = (torch.rand(k, generator=rand, dtype=torch.float64) + 0.1 for k in (n, m))
    a[3::7], b[5::6] = 0, 0
    return [(z / z.sum()).requires_grad_() for z in (a, b)]


def close(got, want, tolerance):
    assert got.shape == want.shape and torch.isfinite(got).all()
    error, scale = (got.double() - want.double()).abs().max(), want.double().abs().max()
    assert error <= tolerance * scale, (error / scale).item()


def gradients(losses, inputs):
    weights = torch.linspace(0.5, 2, losses.numel(), dtype=losses.dtype)
    return torch.autograd.grad((losses.flatten() * weights).sum(), inputs)


@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("metric", METRICS)
def test_panels_agree_with_the_reference(metric, objective, monkeypatch):
    seen, solve = [], _panels.solve
    monkeypatch.setattr(_panels, "solve", lambda *args, **more: seen.append(1) or solve(*args, **more))
    inputs, labels = problem(53, 37)
    inputs += masses(53, 37)
    options = {
        "metric": metric,
        "objective": objective,
        "reg": reg_of(metric),
        "max_iter": 20,
        "y_labels": labels,
    }

    def loss(function, x, y, W, a, b, **more):
        return function(x, y, a, b, class_cost=W, **options, **more)

    want = loss(reference.sinkhorn_loss, *inputs)
    wants = torch.autograd.grad(want, inputs)
    for dtype, limit, grad_limit, budget in (
        (torch.float64, 1e-11, 1e-8, 14000),
        (torch.float32, 2e-5, 1e-3, 7000),
    ):
        own = [t.detach().to(dtype).requires_grad_() for t in inputs]
        got = loss(uk.sinkhorn_loss, *own, memory_budget=budget)
        close(got, want, limit)
        for g, w in zip(torch.autograd.grad(got, own), wants, strict=True):
            close(g, w, grad_limit)
    assert wants[2][:, 2].abs().max() == 0 and wants[2][2, 1] == 0  # an absent class, a forbidden pair
    assert len(seen) == 2


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_panels_agree_with_the_dense_path(metric, grad):
    inputs, labels = problem(33, 26)
    options = {
        "metric": metric,
        "reg": reg_of(metric),
        "grad": grad,
        "objective": "regularized",
        "max_iter": 400,
    }
    options |= {"tol": 1e-11, "class_cost": inputs[2], "y_labels": labels}
    want = uk.sinkhorn_loss(*inputs[:2], **options)
    got = uk.sinkhorn_loss(*inputs[:2], memory_budget=8000, **options)
    close(got, want, 1e-10)
    for g, w in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        close(g, w, 1e-6)


def test_panels_in_the_log_domain():
    inputs, labels = problem(31, 42, forbid=False)
    options = {"metric": "sqeuclidean", "reg": 0.3, "max_iter": 40, "y_labels": labels}
    want = reference.sinkhorn_loss(*inputs[:2], class_cost=inputs[2], **options)
    got = uk.sinkhorn_loss(*inputs[:2], class_cost=inputs[2], memory_budget=11000, **options)
    close(got, want, 1e-11)
    for g, w in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        close(g, w, 1e-7)


@pytest.mark.parametrize("how", [{}, {"memory_budget": 7000}, "lists", "batch"], ids=str)
def test_strided_inputs(how):
    inputs, labels = problem(40, 36, dtype=torch.float32)
    tensors = [*(t.detach() for t in (*inputs, *masses(40, 36))), labels]
    tensors[3:5] = (t.float() for t in tensors[3:5])
    if how == "lists":
        how = {"offsets": (torch.tensor([0, 40]), torch.tensor([0, 36]))}
    if how == "batch":
        how, tensors = {}, [t[None] for t in tensors]

    def loss(x, y, W, a, b, labels):
        return uk.sinkhorn_loss(x, y, a, b, class_cost=W, y_labels=labels, max_iter=10, **how)

    def strided(t):
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), 1)
        wide[..., ::2] = t
        return wide[..., ::2]

    want = loss(*tensors)
    for k, t in enumerate(tensors):
        others = [strided(t) if j == k else other for j, other in enumerate(tensors)]
        assert torch.equal(loss(*others), want)


def test_sums_by_class_without_the_plan():
    (x, y, W), labels = problem(33, 26)
    options = {"class_cost": W, "y_labels": labels, "return_result": True, "max_iter": 50}
    want = uk.sinkhorn_loss(x, y, **options).plan_by_class()
    result = uk.sinkhorn_loss(x, y, memory_budget=8000, grad="envelope", **options)
    with pytest.raises(MemoryError, match="gradient of value_regularized"):
        result.plan_by_class()
    (got,) = torch.autograd.grad(result.value_regularized, W)
    close(got, want, 1e-10)


def ragged_problem(dtype=torch.float64):
    n, m = (torch.tensor([0, *(s[side] for s in SIZES)]).cumsum(0) for side in (0, 1))
    inputs, labels = problem(int(n[-1]), int(m[-1]), dtype=dtype, forbid=False)
    inputs[2].data[50:54, 1] = math.inf  # in the largest problem
    return inputs, labels, (n, m)


def one_by_one(inputs, labels, offsets, **options):
    (x, y, W), losses = inputs, []
    for k in range(len(SIZES)):
        rows, columns = (slice(int(o[k]), int(o[k + 1])) for o in offsets)
        if 0 in SIZES[k]:
            losses.append(x.new_zeros(()))
            continue
        by_class = {"class_cost": W[rows], "y_labels": labels[columns]}
        losses.append(reference.sinkhorn_loss(x[rows], y[columns], **by_class, **options))
    return torch.stack(losses)


@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("metric", METRICS)
def test_ragged_equals_the_reference_problem_by_problem(metric, objective):
    inputs, labels, offsets = ragged_problem()
    options = {"metric": metric, "objective": objective, "reg": reg_of(metric), "max_iter": 10}
    want = one_by_one(inputs, labels, offsets, **options)
    wants = gradients(want, inputs)
    for dtype, limit, grad_limit in ((torch.float64, 1e-11, 1e-8), (torch.float32, 2e-5, 2e-3)):
        own = [t.detach().to(dtype).requires_grad_() for t in inputs]
        got = uk.sinkhorn_loss(*own[:2], class_cost=own[2], y_labels=labels, offsets=offsets, **options)
        close(got, want, limit)
        for g, w in zip(gradients(got, own), wants, strict=True):
            close(g, w, grad_limit)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_batch_equals_the_loop(metric):
    x, y = (torch.randn(5, k, 9, dtype=torch.float64, requires_grad=True) for k in (20, 33))
    W = torch.rand(5, 20, CLASSES, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, CLASSES, (5, 33))
    options = {"metric": metric, "reg": reg_of(metric), "max_iter": 30}
    got = uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, **options)
    want = torch.stack(
        [
            reference.sinkhorn_loss(x[k], y[k], class_cost=W[k], y_labels=labels[k], **options)
            for k in range(5)
        ]
    )
    close(got, want, 1e-11)
    for g, w in zip(gradients(got, (x, y, W)), gradients(want, (x, y, W)), strict=True):
        close(g, w, 1e-8)
    result = uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, return_result=True, **options)
    by_class = result.plan_by_class()
    one_hot = torch.nn.functional.one_hot(labels, CLASSES).double()
    assert by_class.shape == (5, 20, CLASSES) and torch.allclose(by_class, result.plan() @ one_hot)

    def under_a_transform(x, y, W):
        return uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, **options).sum()

    transformed = torch.func.grad(under_a_transform, (0, 1, 2))(x, y, W)
    plain = torch.autograd.grad(under_a_transform(x, y, W), (x, y, W))
    for g, w in zip(transformed, plain, strict=True):
        close(g, w, 1e-8)


def test_ragged_plans_by_class_and_second_derivatives():
    inputs, labels, offsets = ragged_problem()
    result = uk.sinkhorn_loss(
        *inputs[:2], class_cost=inputs[2], y_labels=labels, offsets=offsets, max_iter=50, return_result=True
    )
    by_class = result.plan_by_class()
    assert by_class.shape == inputs[2].shape and by_class[50:54, 1].abs().max() == 0
    live = torch.repeat_interleave(torch.tensor([0 not in s for s in SIZES]), offsets[0].diff())
    mass = torch.repeat_interleave(1 / offsets[0].diff().clamp_min(1).double(), offsets[0].diff())
    assert torch.allclose(by_class.sum(1), torch.where(live, mass, 0))
    x, y, W = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((7, 3), (6, 3), (7, 2)))
    few = torch.tensor([0, 4, 7]), torch.tensor([0, 3, 6])

    def loss(x, y, W):
        by_class = {"class_cost": W, "y_labels": torch.arange(6) % 2}
        return uk.sinkhorn_loss(x, y, offsets=few, metric="sqeuclidean", reg=2.0, max_iter=4, **by_class)

    assert torch.autograd.gradgradcheck(loss, (x, y, W))


@pytest.mark.parametrize("objective", ["transport", "regularized"])
def test_class_conditional_as_a_ragged_batch_equals_the_cost_with_infinities(objective):
    """Labels in any order, a class that x lacks and one that y lacks."""
    x, y = (torch.randn(k, 6, dtype=torch.float64, requires_grad=True) for k in (40, 55))
    x_labels, y_labels = torch.randint(0, 6, (40,)), torch.randint(0, 6, (55,))
    x_labels[x_labels == 1], y_labels[y_labels == 4] = 0, 3
    options = {"classes": 7, "objective": objective, "max_iter": 60, "reg": 0.2}
    got = uk.class_conditional_loss(x, y, x_labels, y_labels, **options)
    whole = uk.class_conditional_loss(x, y, x_labels, y_labels, return_result=True, **options)
    want = whole.value if objective == "transport" else whole.value_regularized
    close(got, want, 1e-10)
    for g, w in zip(torch.autograd.grad(got, (x, y)), torch.autograd.grad(want, (x, y)), strict=True):
        close(g, w, 1e-8)
    with pytest.raises(ValueError, match="a class in common"):
        uk.class_conditional_loss(x, y, torch.zeros_like(x_labels), torch.ones_like(y_labels), **options)


def test_labels_that_change_before_the_backward_are_an_error():
    (x, y, W), labels = problem(53, 37)
    loss = uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, memory_budget=14000)
    labels.copy_(labels.flip(0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_refusals():
    (x, y, W), labels = problem(53, 37, dtype=torch.float32)

    def call(W=W, labels=labels, **options):
        return uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, **options)

    halves = torch.tensor([0, 20, 53]), torch.tensor([0, 20, 37])
    for how, where in (
        ({}, ""),
        ({"memory_budget": 7000}, ""),
        ({"offsets": halves}, "problem 0 of the batch: "),
    ):
        with pytest.raises(
            ValueError, match=rf"{where}class_cost must be a number or.*got NaN at class_cost\[0, 0\]$"
        ):
            call(W.detach() * torch.nan, **how)
        with pytest.raises(
            ValueError,
            match=rf"{where}y_labels must be columns of class_cost.*got \d+ at y_labels\[\d+\] for K = 4$",
        ):
            call(labels=labels + 9, **how)
        with pytest.raises(ValueError, match="every row and column with mass needs a pair"):
            call(torch.full_like(W, math.inf), **how)
    with pytest.raises(ValueError, match=r"class_cost must have shape \(2, 5, K\)"):
        uk.sinkhorn_loss(x[:10].view(2, 5, 11), y[:8].view(2, 4, 11), class_cost=W, y_labels=labels)
    with pytest.raises(ValueError, match=r"y_labels must have shape \(2, 4\)"):
        uk.sinkhorn_loss(
            x[:10].view(2, 5, 11), y[:8].view(2, 4, 11), class_cost=W[:10].view(2, 5, 4), y_labels=labels
        )
