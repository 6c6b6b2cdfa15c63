"""Class-aware transport: against the reference, per class, gradients of every kind, refusals."""

from __future__ import annotations

import math

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.ops.class_conditional import class_masses
from ucmkd_fast.reference import sinkhorn as reference

METRICS = ["cosine", "chordal", "l2", "l1", "sqeuclidean"]
INF = math.inf


def reg_of(metric: str) -> float:
    return {"cosine": 0.1, "chordal": 0.1}.get(metric, 2.0)


def problem(n=23, m=37, d=11, classes=4, dtype=torch.float64, forbid=True):
    """Features with a pair that coincides; W with a forbidden class and a negative cost; labels without class 2."""
    generator = torch.Generator().manual_seed(7 * n + m)
    x, y = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    y[0] = x[0]
    W = torch.rand(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (m,), generator=generator)
    labels[labels == 2] = 0
    W[1, 3] = -0.4
    if forbid:
        W[2, 1] = INF
    return [t.to(dtype).requires_grad_() for t in (x, y, W)], labels


def relative(got, want) -> float:
    error = (got.double() - want).abs().max().item()
    return INF if math.isnan(error) else error / want.abs().max().item()


@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("metric", METRICS)
def test_agrees_with_the_reference(metric, objective):
    options = {"metric": metric, "objective": objective, "reg": reg_of(metric), "max_iter": 30}
    inputs, labels = problem()
    want = reference.sinkhorn_loss(*inputs[:2], class_cost=inputs[2], y_labels=labels, **options)
    wants = torch.autograd.grad(want, inputs)
    for dtype, tol, grad_tol in ((torch.float64, 1e-11, 1e-9), (torch.float32, 1e-5, 1e-3)):
        own = [t.detach().to(dtype).requires_grad_() for t in inputs]
        got = uk.sinkhorn_loss(*own[:2], class_cost=own[2], y_labels=labels, **options)
        assert got.dtype == dtype and relative(got, want) < tol
        for g, w in zip(torch.autograd.grad(got, own), wants, strict=True):
            assert relative(g, w) < grad_tol
    assert wants[2][:, 2].abs().max() == 0 and wants[2][2, 1] == 0  # an absent class, a forbidden pair


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
def test_other_gradients(grad):
    inputs, labels = problem(n=9, m=12)
    options = {"grad": grad, "objective": "regularized", "reg": 0.3, "max_iter": 400}
    got = uk.sinkhorn_loss(*inputs[:2], class_cost=inputs[2], y_labels=labels, **options)
    want = reference.sinkhorn_loss(*inputs[:2], class_cost=inputs[2], y_labels=labels, **options)
    pairs = zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True)
    assert all(relative(g, w) < 1e-6 for g, w in pairs)


@pytest.mark.parametrize("reg", [0.02, 0.004])
def test_small_reg_takes_the_log_domain_and_agrees(reg):
    inputs, labels = problem(n=31, m=20, forbid=False)
    single = [t.detach().float().requires_grad_() for t in inputs]
    options = {"reg": reg, "max_iter": 60, "y_labels": labels}
    want = reference.sinkhorn_loss(*inputs[:2], class_cost=inputs[2], **options)
    got = uk.sinkhorn_loss(*single[:2], class_cost=single[2], **options)
    assert relative(got, want) < 1e-4
    for g, w in zip(torch.autograd.grad(got, single), torch.autograd.grad(want, inputs), strict=True):
        assert relative(g, w) < 2e-2


def test_given_masses_and_their_gradients():
    inputs, labels = problem()
    a, b = (torch.rand(k, dtype=torch.float64) + 0.1 for k in (23, 37))
    a[3], b[5] = 0, 0
    a, b = ((z / z.sum()).requires_grad_() for z in (a, b))
    every = [*inputs, a, b]
    options = {"class_cost": inputs[2], "y_labels": labels, "max_iter": 25, "reg": 0.2}
    got = uk.sinkhorn_loss(*inputs[:2], a, b, **options)
    want = reference.sinkhorn_loss(*inputs[:2], a, b, **options)
    pairs = zip(torch.autograd.grad(got, every), torch.autograd.grad(want, every), strict=True)
    assert all(relative(g, w) < 1e-8 for g, w in pairs)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_double_backward(metric):
    (x, y, W), labels = problem(n=6, m=7, d=3, forbid=False)
    y = y + 0.5  # no pair coincides: second derivatives exist

    def loss(x, y, W):
        return uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, metric=metric, reg=0.5, max_iter=8)

    inputs = tuple(t.detach().requires_grad_() for t in (x, y, W))
    assert torch.autograd.gradcheck(loss, inputs) and torch.autograd.gradgradcheck(loss, inputs)


def test_compiled_and_transformed_calls_equal_eager_ones():
    inputs, labels = problem(dtype=torch.float32)

    def loss(x, y, W):
        return uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels)

    want = loss(*inputs)
    wants = torch.autograd.grad(want, inputs)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(*inputs)
    transformed = torch.func.grad(loss, argnums=(0, 1, 2))(*(t.detach() for t in inputs))
    assert torch.allclose(compiled, want, rtol=1e-6)
    for found in (torch.autograd.grad(compiled, inputs), transformed):
        assert all(torch.allclose(g, w, atol=1e-6) for g, w in zip(found, wants, strict=True))


def test_sums_by_label_are_deterministic():
    """They run along a row: the same bits again and again, also with several tasks."""
    inputs, labels = problem(n=300, m=400, dtype=torch.float32)

    def gradients():
        loss = uk.sinkhorn_loss(*inputs[:2], class_cost=inputs[2], y_labels=labels, metric="l2", reg=1.0)
        return torch.autograd.grad(loss, inputs)

    first = gradients()
    assert all(torch.equal(g, f) for g, f in zip(gradients(), first, strict=True))


def test_half_precision_features():
    (x, y, W), labels = problem(dtype=torch.float32)
    x = x.detach().bfloat16().requires_grad_()
    loss = uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels)
    gx, gW = torch.autograd.grad(loss, (x, W))
    assert loss.dtype == torch.float32 and gx.dtype == torch.bfloat16 and gW.dtype == torch.float32


def test_plan_by_class():
    (x, y, W), labels = problem(forbid=True)
    result = uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, max_iter=200, return_result=True)
    by_class = result.plan_by_class()
    one_hot = torch.nn.functional.one_hot(labels, 4).double()
    assert torch.allclose(by_class, result.plan() @ one_hot)
    assert torch.allclose(by_class.sum(1), torch.full((23,), 1 / 23, dtype=torch.float64))
    assert torch.allclose(by_class.sum(0), one_hot.mean(0), atol=1e-6) and by_class[2, 1] == 0
    loss = uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, max_iter=200)
    assert torch.allclose(result.value, loss)
    by_class.square().sum().backward()
    assert torch.isfinite(W.grad).all() and W.grad.abs().max() > 0
    with pytest.raises(ValueError, match="needs a call with class_cost"):
        uk.sinkhorn_loss(x, y, return_result=True).plan_by_class()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_beta_inf_is_one_problem_per_class(metric):
    (x, y, _), y_labels = problem(n=25, m=40)
    x_labels = torch.arange(25) % 4
    x_labels[x_labels == 1] = 0
    x_labels[:3] = 1
    y_labels[y_labels == 3] = 1  # y lacks 2 and 3
    reg = reg_of(metric)
    got = uk.class_conditional_loss(x, y, x_labels, y_labels, classes=4, metric=metric, reg=reg, max_iter=40)
    shares = {k: (x_labels == k).sum().item() for k in (0, 1)}
    want = sum(
        count / sum(shares.values())
        * reference.sinkhorn_loss(x[x_labels == k], y[y_labels == k], metric=metric, reg=reg, max_iter=40)
        for k, count in shares.items()
    )  # fmt: skip
    assert torch.allclose(got, want, rtol=1e-10)
    pairs = zip(torch.autograd.grad(got, (x, y)), torch.autograd.grad(want, (x, y)), strict=True)
    assert all(relative(g, w) < 1e-8 for g, w in pairs)


def test_class_masses_scale_y_to_x_and_count_what_is_left_out():
    x_labels, y_labels = torch.tensor([0, 0, 0, 1, 3]), torch.tensor([0, 1, 1, 2])
    masses = class_masses(x_labels, y_labels, 5, torch.float64)
    assert torch.allclose(masses.a, torch.tensor([1, 1, 1, 1, 0], dtype=torch.float64) / 4)
    assert torch.allclose(masses.b, torch.tensor([0.75, 0.125, 0.125, 0], dtype=torch.float64))
    assert masses.left_out_x == 1 and masses.left_out_y == 1


RHOS = {"both": (0.4, 0.4), "rows": (0.3, INF), "columns": (INF, 1.5), "exact": (INF, INF)}


@pytest.mark.parametrize("reg_scale", [None, "mean"])
@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("rho", RHOS)
def test_unbalanced_classes_are_one_problem(rho, objective, reg_scale):
    """Plain iterates, from a call per class, against the reference's one problem, +inf between classes."""
    (x, y, _), y_labels = problem(n=21, m=30)
    x_labels = torch.tensor([0, 1, 3, 3, 0, 0, 0]).repeat(3)  # shares that differ from those of y
    between = torch.zeros(21, 4, dtype=x.dtype).masked_fill(torch.arange(4) != x_labels[:, None], INF)
    masses = class_masses(x_labels, y_labels, 4, x.dtype)
    scale = 1.0
    if reg_scale is not None:
        inside = x_labels[:, None] == y_labels
        scale = reference.cost(x.detach(), y.detach(), "l2")[inside].mean().item()
    options = {"metric": "l2", "objective": objective, "max_iter": 7}
    want = reference.sinkhorn_loss(
        x, y, masses.a, masses.b, class_cost=between, y_labels=y_labels, reg=0.5 * scale,
        unbalanced=tuple(scale * one for one in RHOS[rho]), **options,
    )  # fmt: skip
    convergence = uk.Convergence()
    got = uk.class_conditional_loss(
        x, y, x_labels, y_labels, classes=4, reg=0.5, reg_scale=reg_scale, unbalanced=RHOS[rho],
        convergence=convergence, **options,
    )  # fmt: skip
    assert relative(got, want) < 1e-10
    for g, w in zip(*(torch.autograd.grad(z, (x, y)) for z in (got, want)), strict=True):
        assert relative(g, w) < 1e-9
    one = uk.class_conditional_loss(
        x, y, x_labels, y_labels, classes=4, reg=0.5, reg_scale=reg_scale, unbalanced=RHOS[rho],
        return_result=True, **options,
    )  # fmt: skip
    assert abs(convergence.marginal_error - one.marginal_error) < 1e-12


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
def test_unbalanced_classes_meet_one_problem_where_they_converge(grad):
    (x, y, _), y_labels = problem(n=21, m=30)
    x_labels = torch.arange(21) % 4  # y has no class 2
    options = {"reg": 0.2, "unbalanced": 0.6, "grad": grad, "tol": 1e-11, "max_iter": 2000, "classes": 4}
    options["objective"] = "regularized"
    got = uk.class_conditional_loss(x, y, x_labels, y_labels, **options)
    want = uk.class_conditional_loss(x, y, x_labels, y_labels, return_result=True, **options)
    assert relative(got, want.value_regularized) < 1e-9 and want.plan().sum() < 0.99
    grads = (torch.autograd.grad(z, (x, y)) for z in (got, want.value_regularized))
    assert all(relative(g, w) < 1e-6 for g, w in zip(*grads, strict=True))


def test_an_infinite_rho_is_balanced_class_by_class():
    (x, y, _), y_labels = problem(n=21, m=30)
    x_labels = torch.arange(21) % 4
    exact, none, large = (
        uk.class_conditional_loss(x, y, x_labels, y_labels, classes=4, unbalanced=rho, max_iter=50)
        for rho in ((INF, None), None, 1e7)
    )
    assert torch.equal(exact, none) and relative(large, none) < 1e-5
    with pytest.raises(ValueError, match="unbalanced must be a number above 0"):
        uk.class_conditional_loss(x, y, x_labels, y_labels, classes=4, unbalanced=-1.0)


def test_beta_between_is_a_price():
    (x, y, _), y_labels = problem(n=12, m=14)
    x_labels = torch.arange(12) % 4

    def crossing(beta):
        result = uk.class_conditional_loss(
            x, y, x_labels, y_labels, classes=4, beta=beta, max_iter=300, return_result=True
        )
        by_class = result.plan_by_class()
        return 1 - by_class.gather(1, x_labels[:, None]).sum().item()

    assert crossing(0.0) > crossing(0.5) > crossing(5.0)


def test_refusals():
    (x, y, W), labels = problem()

    def call(W=W, labels=labels, **options):
        return uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, **options)

    bad = W.detach().clone()
    bad[0, 0] = math.nan
    for give_result in (False, True):
        with pytest.raises(ValueError, match="class_cost must be a number or"):
            call(bad, return_result=give_result)
        for wrong in (-1, 4):
            with pytest.raises(ValueError, match="y_labels must be columns of class_cost"):
                call(labels=labels.clone().fill_(wrong), return_result=give_result)
    with pytest.raises(TypeError, match="belong together"):
        uk.sinkhorn_loss(x, y, class_cost=W)
    with pytest.raises(TypeError, match="belong together"):
        uk.sinkhorn_loss(x, y, y_labels=labels)
    with pytest.raises(TypeError, match="dtype"):
        call(W.detach().float())
    with pytest.raises(TypeError, match="int64"):
        call(labels=labels.int())
    with pytest.raises(ValueError, match=r"shape \(23, K\)"):
        call(W[:5])
    with pytest.raises(ValueError, match=r"shape \(37,\)"):
        call(labels=labels[:5])
    with pytest.raises(ValueError, match="divergence"):
        call(objective="divergence")
    with pytest.raises(ValueError, match="every row and column with mass"):
        call(torch.full_like(W, INF))
    with pytest.raises(ValueError, match="beta"):
        uk.class_conditional_loss(x, y, torch.zeros(23, dtype=torch.int64), labels, classes=4, beta=-1)
    with pytest.raises(ValueError, match="x_labels must be from 0 to 3, got 9"):
        uk.class_conditional_loss(x, y, torch.full((23,), 9), labels, classes=4)


def test_an_overflowing_distance_is_no_forbidden_class():
    x, y = torch.tensor([[1.2e19], [0.0]]), torch.tensor([[-1.2e19], [0.0], [1.0]])
    W = torch.tensor([[0.0, INF], [0.0, 0.0]])
    with pytest.raises(ValueError, match="distances between x and y must stay in range"):
        uk.sinkhorn_loss(x, y, class_cost=W, y_labels=torch.tensor([0, 1, 0]), metric="sqeuclidean", reg=1e37)
