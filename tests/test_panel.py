"""Costs made panel by panel: the same loss and gradient as the dense path and the reference, in less memory."""

from __future__ import annotations

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.ops import _panels, memory
from ucmkd_fast.ops.result import PanelResult
from ucmkd_fast.reference import sinkhorn as reference

METRICS = ["cosine", "chordal", "l2", "l1", "sqeuclidean"]


@pytest.fixture(autouse=True)
def one_thread():
    """Panels of four rows: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem(dtype, masses=None, n=53, m=37, d=11):
    rand = torch.Generator().manual_seed(4)
    x, y = (torch.randn(k, d, generator=rand, dtype=torch.float64) for k in (n, m))
    y[0] = x[0]
    a = b = None
    if masses:
        a, b = (torch.rand(k, generator=rand, dtype=torch.float64) + 0.1 for k in (n, m))
        if masses == "zeros":
            a[3::7], b[5::6] = 0, 0
        a, b = a / a.sum(), b / b.sum()
    return [z if z is None else z.to(dtype).requires_grad_() for z in (x, y, a, b)]


def budget(dtype) -> int:
    """Smaller than three matrices of 53 x 37, room for panels of four rows."""
    return 14000 if dtype == torch.float64 else 7000


def reg_of(metric: str) -> float:
    return {"cosine": 0.1, "chordal": 0.1}.get(metric, 2.0)


def close(got, want, tolerance):
    assert got.shape == want.shape and torch.isfinite(got).all()
    error, scale = (got.double() - want.double()).abs().max(), want.double().abs().max()
    assert error <= tolerance * scale, (error / scale).item()


@pytest.fixture
def visits(monkeypatch):
    """Counts the problems that were solved by panels."""
    seen = []
    solve = _panels.solve
    monkeypatch.setattr(_panels, "solve", lambda *args, **more: seen.append(1) or solve(*args, **more))
    return seen


@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("metric", METRICS)
def test_agrees_with_the_reference(metric, objective, visits):
    tensors = problem(torch.float64, "zeros")
    options = {"metric": metric, "objective": objective, "reg": reg_of(metric), "max_iter": 20}
    want = reference.sinkhorn_loss(*tensors, **options)
    wants = torch.autograd.grad(want, tensors)
    got = uk.sinkhorn_loss(*tensors, memory_budget=budget(torch.float64), **options)
    close(got, want, 1e-11)
    for g, w in zip(torch.autograd.grad(got, tensors), wants, strict=True):
        close(g, w, 1e-8)
    low = [t.detach().float().requires_grad_() for t in tensors]
    got = uk.sinkhorn_loss(*low, memory_budget=budget(torch.float32), **options)
    close(got, want, 2e-5)
    for g, w in zip(torch.autograd.grad(got, low), wants, strict=True):
        close(g, w, 1e-3)
    assert len(visits) == (6 if objective == "divergence" else 2)


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
@pytest.mark.parametrize("objective", ["transport", "regularized"])
def test_agrees_with_the_dense_path(grad, objective, visits):
    tensors = problem(torch.float64, "random")
    wanted = tensors[:2] if (grad, objective) == ("envelope", "transport") else tensors
    if len(wanted) == 2:
        tensors = [*wanted, *(t.detach() for t in tensors[2:])]
    options = {"grad": grad, "objective": objective, "max_iter": 300, "tol": 1e-11}
    want = uk.sinkhorn_loss(*tensors, **options)
    got = uk.sinkhorn_loss(*tensors, memory_budget=budget(torch.float64), **options)
    close(got, want, 1e-10)
    wants = torch.autograd.grad(want, wanted)
    for g, w in zip(torch.autograd.grad(got, wanted), wants, strict=True):
        close(g, w, 1e-7)
    assert visits


@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("scale", [1.0, 2.5, 4.0])
def test_ranges_that_plain_sums_do_not_reach(scale, objective):
    """Costs up to hundreds of times reg: columns are done again, the adjoint runs in the log domain."""
    x, y, a, b = problem(torch.float64, "zeros")
    x.data *= scale
    options = {"metric": "sqeuclidean", "objective": objective, "reg": 1.0, "max_iter": 40}
    want = reference.sinkhorn_loss(x, y, a, b, **options)
    wants = torch.autograd.grad(want, (x, y, a, b))
    got = uk.sinkhorn_loss(x, y, a, b, memory_budget=budget(torch.float64), **options)
    close(got, want, 1e-11)
    for g, w in zip(torch.autograd.grad(got, (x, y, a, b)), wants, strict=True):
        close(g, w, 1e-8)
    low = [t.detach().float().requires_grad_() for t in (x, y, a, b)]
    got = uk.sinkhorn_loss(*low, memory_budget=budget(torch.float32), **options)
    close(got, want, 1e-5)
    for g, w in zip(torch.autograd.grad(got, low), wants, strict=True):
        close(g, w, 5e-3)


def test_results_tolerance_and_warm_starts():
    x, y, *_ = problem(torch.float64)
    options = {"memory_budget": budget(torch.float64), "return_result": True, "max_iter": 500, "tol": 1e-8}
    dense = uk.sinkhorn_loss(x, y, **{**options, "memory_budget": None})
    got = uk.sinkhorn_loss(x, y, **options)
    assert isinstance(got, PanelResult) and got.n_iter == dense.n_iter and bool(got.converged)
    for mine, theirs in zip(got.potentials, dense.potentials, strict=True):
        close(mine, theirs, 1e-9)
    close(got.value_regularized, dense.value_regularized, 1e-11)
    assert uk.sinkhorn_loss(x, y, init=got.potentials, **options).n_iter == 1
    with pytest.raises(MemoryError, match="plan"):
        got.plan()


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
def test_over_relaxation_takes_fewer_iterations_to_the_same_loss(grad):
    x, y, *_ = problem(torch.float64)
    options = {"grad": grad, "objective": "regularized", "reg": 0.02, "max_iter": 2000, "tol": 1e-9}
    options |= {"memory_budget": budget(torch.float64)}
    plain = uk.sinkhorn_loss(x, y, return_result=True, **options)
    fast = uk.sinkhorn_loss(x, y, return_result=True, accelerate="relax", **options)
    dense = uk.sinkhorn_loss(
        x, y, return_result=True, accelerate="relax", **{**options, "memory_budget": None}
    )
    assert bool(fast.converged) and 1.5 * fast.n_iter < plain.n_iter and fast.n_iter == dense.n_iter
    close(fast.value_regularized, plain.value_regularized, 1e-10)
    want = torch.autograd.grad(plain.value_regularized, (x, y))
    for g, w in zip(torch.autograd.grad(fast.value_regularized, (x, y)), want, strict=True):
        close(g, w, 1e-6)


def test_half_precision_and_only_what_is_needed():
    x, y, *_ = problem(torch.float32)
    small = x.detach().bfloat16().requires_grad_()
    (grad,) = torch.autograd.grad(uk.sinkhorn_loss(small, y.detach(), memory_budget=7000), small)
    full = small.detach().float().requires_grad_()
    (want,) = torch.autograd.grad(uk.sinkhorn_loss(full, y.detach()), full)
    assert grad.dtype == torch.bfloat16
    close(grad, want, 1e-2)
    with torch.no_grad():
        assert not uk.sinkhorn_loss(x, y, memory_budget=7000).requires_grad


def test_the_budget_decides():
    assert not memory.needs_panels(1000, 1000, 4, True, 12_000_000)
    assert memory.needs_panels(1000, 1000, 4, True, 11_999_999)
    assert not memory.needs_panels(1000, 1000, 4, False, 8_000_000)
    assert memory.needs_panels(10**7, 10**7, 4, False, None)
    assert not memory.needs_panels(64, 64, 4, True, None)
    rows = memory.panel_rows(10**6, 20_000, 4, 10**9)
    assert rows % 4 == 0 and 4 <= rows and 8 * rows * 20_000 * 4 <= 10**9
    with pytest.raises(MemoryError, match="four rows"):
        memory.panel_rows(100, 20_000, 4, 1000)


BAD = {
    "batch": (lambda z: uk.sinkhorn_loss(z[None], z[None], memory_budget=100), ValueError, "one problem"),
    "budget": (lambda z: uk.sinkhorn_loss(z, z, memory_budget=0), ValueError, "memory_budget"),
    "masses": (lambda z: uk.sinkhorn_loss(z, z, torch.ones(53), memory_budget=7000), ValueError, "equal sums"),
    "negative": (lambda z: uk.sinkhorn_loss(z, z, -torch.ones(53), memory_budget=7000), ValueError, ">= 0"),
    "overflow": (lambda z: uk.sinkhorn_loss(0 * z + 1.2e19, 0 * z - 1.2e19, metric="sqeuclidean", reg=1e37,
                                            memory_budget=7000),
                 ValueError, "in range"),
    "NaN": (lambda z: uk.sinkhorn_loss(z * torch.nan, z, memory_budget=7000), ValueError, "x must be finite"),
    "twice": (lambda z: torch.autograd.grad(uk.sinkhorn_loss(z.requires_grad_(), z, grad="implicit",
                                                             memory_budget=7000),
                                            z, create_graph=True),
              NotImplementedError, "double backward"),
    "functorch": (lambda z: torch.func.grad(lambda x: uk.sinkhorn_loss(x, z, memory_budget=7000))(z),
                  NotImplementedError, "functorch"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call(torch.randn(53, 1))


def no_equal_rows(tensors):
    """Where a distance is 0 there is no second derivative."""
    tensors[1].data[0] += 1
    return tensors


def twice(tensors, wanted, options, seed=0):
    """A gradient, and of its product with numbers the gradient of everything, the upstream number too."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    value = uk.sinkhorn_loss(*tensors[:4], **options)
    grads = torch.autograd.grad(value, wanted, up.to(value.dtype), create_graph=True)
    weights = [torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g.dtype) for g in grads]
    leaves = [t for t in tensors if t is not None]
    product = sum((g * w).sum() for g, w in zip(grads, weights, strict=True))
    return torch.autograd.grad(product, (*leaves, up))


@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("metric", METRICS)
def test_second_derivatives_are_those_of_the_dense_path(metric, objective):
    tensors = no_equal_rows(problem(torch.float64, "zeros", 20, 15, 5))
    options = {"metric": metric, "objective": objective, "reg": reg_of(metric), "max_iter": 8}
    wants = twice(tensors, tensors, options)
    budget = 6000 if objective == "divergence" else 4000
    for got, want in zip(twice(tensors, tensors, options | {"memory_budget": budget}), wants, strict=True):
        close(got, want, 1e-9)


def test_a_derivative_by_one_input_of_the_gradient_of_another():
    tensors = no_equal_rows(problem(torch.float64, "random", 20, 15, 5))
    for wanted in ((tensors[0],), (tensors[1], tensors[2])):
        wants = twice(tensors, wanted, {"max_iter": 5})
        for got, want in zip(
            twice(tensors, wanted, {"max_iter": 5, "memory_budget": 4000}), wants, strict=True
        ):
            close(got, want, 1e-9)


@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_second_derivatives_with_terms_by_class_and_a_tolerance(tol):
    x, y, a, b = no_equal_rows(problem(torch.float64, "random", 20, 15, 5))
    W = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    W.data[2, 1] = torch.inf
    options = {"class_cost": W, "y_labels": torch.arange(15) % 3, "max_iter": 30, "tol": tol, "reg": 0.4}
    wants = twice([x, y, a, b, W], [x, W], options)
    gots = twice([x, y, a, b, W], [x, W], options | {"memory_budget": 4000})
    for got, want in zip(gots, wants, strict=True):
        close(got, want, 1e-8)


def test_second_derivatives_hold_no_more_than_a_panel(monkeypatch):
    x, y, *_ = problem(torch.float32, None, 60, 50, 6)
    made, cost = [], reference.cost
    monkeypatch.setattr(reference, "cost", lambda x, y, metric: made.append(len(x)) or cost(x, y, metric))
    twice([x, y, None, None], [x], {"metric": "l2", "max_iter": 3, "memory_budget": 6500})
    assert made and max(made) == 1  # of six features


def test_a_third_derivative_is_refused():
    x, y, *_ = problem(torch.float64, None, 20, 15, 5)
    grad = torch.autograd.grad(uk.sinkhorn_loss(x, y, memory_budget=4000), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad(grad.sum(), x, create_graph=True)
