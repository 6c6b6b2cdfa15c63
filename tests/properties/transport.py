"""What must hold of entropic transport, whatever the problem: a function a claim, tried on generated problems."""

from __future__ import annotations

import math

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

import ucmkd_fast as uk
from ucmkd_fast.reference import sinkhorn as reference

from .problems import COSTS, FEATURES, MASSES, Problem, problems

PLAIN = ("random", "negative", "equal", *FEATURES[:4])  # costs on which many iterations converge
FINITE = tuple(kind for kind in COSTS if kind != "forbidden") + FEATURES


def solve(problem: Problem, dtype: torch.dtype = torch.float64, **options):
    """The result, with its inputs as leaves."""
    inputs = [t if t is None else t.to(dtype) for t in (problem.costs(), *problem.both_masses())]
    leaves = [None if t is None else t.requires_grad_() for t in inputs]
    options = {"reg": problem.reg, "max_iter": problem.iterations} | options
    return uk.sinkhorn(*leaves, **options), leaves


def converged(C: Tensor, a: Tensor | None, b: Tensor | None, reg: float):
    """The solution to 1e-10, where 5000 iterations reach it."""
    result = uk.sinkhorn(C, a, b, reg=reg, max_iter=5000, tol=1e-10)
    assume(bool(result.converged))
    return result


def scale_of(C: Tensor) -> float:
    """The largest finite cost: what a value is measured against."""
    return max(C[C.isfinite()].abs().max().item(), 1e-300)


def apart(got: Tensor, want: Tensor, scale: float) -> float:
    """Largest difference over a scale; NaN is infinitely far."""
    worst = (got.double() - want.double()).abs().max().item() / scale
    return math.inf if math.isnan(worst) else worst


def largest_potential(f: Tensor, g: Tensor) -> float:
    """In units of cost; where pairs are forbidden it may be far above any cost."""
    return max(z[z.isfinite()].abs().max().item() for z in (f, g))


def rounding(problem: Problem, dtype: torch.dtype, largest: float = 0.0) -> float:
    """Relative error of exp((f + g - C) / reg) that a rounding of its largest term makes, times the steps."""
    sizes = max(scale_of(problem.costs()), largest) / problem.reg
    return torch.finfo(dtype).eps * (1 + sizes) * (10 + problem.iterations)


def values_agree_with_float64(problem: Problem) -> None:
    """<P, C> and the dual value of the iterations that ran, in both types, against the reference."""
    C, a, b = problem.costs(), *problem.both_masses()
    want = reference.sinkhorn(C, a, b, reg=problem.reg, max_iter=problem.iterations)
    largest = largest_potential(want.f, want.g)
    for dtype in (torch.float64, torch.float32):
        got, _ = solve(problem, dtype)
        bound = min(rounding(problem, dtype, largest), 1.0)
        for name in ("value", "value_regularized"):
            size = scale_of(C) + (largest + problem.reg if name == "value_regularized" else 0)
            assert apart(getattr(got, name), getattr(want, name), size) <= bound, (name, dtype)


def gradients_agree_with_float64(problem: Problem) -> None:
    """The exact gradient of the iterations that ran.

    Error at most twice that of plain torch of the same type, and what rounding makes: dC = P (1 - Z / reg)
    multiplies the error of P by the spread of the cost over reg.
    """
    tensors = problem.costs(), *problem.both_masses()
    finite = tensors[0][tensors[0].isfinite()]
    steepness = 1 + (finite.max() - finite.min()).item() / problem.reg
    options = {"reg": problem.reg, "max_iter": problem.iterations}

    def gradients(solver, dtype):
        leaves = [None if t is None else t.to(dtype).requires_grad_() for t in tensors]
        result = solver(*leaves, **options)
        return torch.autograd.grad(result.value, [t for t in leaves if t is not None])

    solution = reference.sinkhorn(*tensors, **options)
    largest = largest_potential(solution.f, solution.g)
    truth = gradients(reference.sinkhorn, torch.float64)
    for dtype, floor in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        ours, plain = gradients(uk.sinkhorn, dtype), gradients(reference.sinkhorn, dtype)
        for index, (got, naive, want) in enumerate(zip(ours, plain, truth, strict=True)):
            assert torch.isfinite(got).all(), "a gradient that is not finite"
            size = max(want.abs().max().item(), 1e-6 if index == 0 else scale_of(tensors[0]))
            bound = (
                floor + 2 * min(apart(naive, want, size), 1.0) + rounding(problem, dtype, largest) * steepness
            )
            assert apart(got, want, size) <= bound, (dtype, index)


def rows_of_the_plan_are_exact(problem: Problem) -> None:
    """P1 = a after every iteration, and the columns are off by what marginal_error says."""
    result, (C, a, b) = solve(problem)
    n, m = C.shape
    a = torch.full((n,), 1 / n, dtype=torch.float64) if a is None else a
    b = torch.full((m,), 1 / m, dtype=torch.float64) if b is None else b
    plan = result.plan()
    bound = 100 * rounding(problem, torch.float64, largest_potential(*result.potentials))
    assert apart(plan.sum(1), a, 1.0) <= bound
    assert abs((plan.sum(0) - b).abs().sum() - result.marginal_error).item() <= bound
    assert (plan >= 0).all() and (plan[a == 0] == 0).all() and (plan[:, b == 0] == 0).all()


def swapping_the_sides_changes_nothing(problem: Problem) -> None:
    """At convergence OT(C, a, b) = OT(C', b, a)."""
    C, (a, b) = problem.costs(), problem.both_masses()
    one, other = converged(C, a, b, problem.reg), converged(C.T, b, a, problem.reg)
    assert apart(one.value, other.value, scale_of(C)) < 1e-6
    assert apart(one.plan(), other.plan().T, 1.0) < 1e-6


def order_does_not_matter(problem: Problem) -> None:
    """Permuted rows and columns give the permuted plan and the same value."""
    result, (C, a, b) = solve(problem)
    generator = torch.Generator().manual_seed(problem.seed)
    rows, cols = (torch.randperm(size, generator=generator) for size in C.shape)
    moved = uk.sinkhorn(
        C.detach()[rows][:, cols],
        None if a is None else a.detach()[rows],
        None if b is None else b.detach()[cols],
        reg=problem.reg,
        max_iter=problem.iterations,
    )
    bound = min(100 * rounding(problem, torch.float64, largest_potential(*result.potentials)), 1.0)
    assert apart(moved.value, result.value, scale_of(C)) <= bound
    assert apart(moved.plan(), result.plan()[rows][:, cols], 1.0) <= bound


def adding_to_a_row_moves_only_its_potential(problem: Problem) -> None:
    """C_ij + r_i has the same plan once a first half-step has seen it: the value moves by <r, a>."""
    C, (a, b) = problem.costs(), problem.both_masses()
    n = len(C)
    extra = problem.reg * torch.randn(n, generator=torch.Generator().manual_seed(problem.seed)).double()
    before, after = converged(C, a, b, problem.reg), converged(C + extra[:, None], a, b, problem.reg)
    mass = torch.full((n,), 1 / n, dtype=torch.float64) if a is None else a
    bound = 1e-6 + rounding(problem, torch.float64)
    assert apart(after.value, before.value + extra @ mass, scale_of(C) + problem.reg) < bound
    assert apart(after.plan(), before.plan(), 1.0) < bound


def units_of_cost_do_not_matter(problem: Problem) -> None:
    """(k C, k reg) has k times the value: exactly the same computation for a power of two, near enough."""
    result, (C, a, b) = solve(problem)
    for k in (2.0**-7, 2.0**9):
        scaled = uk.sinkhorn(C * k, a, b, reg=problem.reg * k, max_iter=problem.iterations)
        bound = min(rounding(problem, torch.float64, largest_potential(*result.potentials)), 1.0)
        assert apart(scaled.value / k, result.value, scale_of(C)) <= bound


def more_regularisation_costs_more(problem: Problem) -> None:
    """<P, C> and <P, C> + reg KL do not fall as reg grows."""
    C, (a, b) = problem.costs(), problem.both_masses()
    low, high = converged(C, a, b, problem.reg), converged(C, a, b, 2 * problem.reg)
    slack = 1e-6 * (scale_of(C) + problem.reg)
    assert high.value >= low.value - slack
    assert high.value_regularized >= low.value_regularized - slack


def the_divergence_is_one(problem: Problem) -> None:
    """S(x, y) >= 0 and S(x, x) = 0 (Feydy et al. 2019)."""
    x, y = problem.features()
    a, b = problem.both_masses()
    scale = (x[:, None] - y[None]).square().sum(-1).max().item()
    assume(scale > 0)
    reg = scale * 10 ** max(problem.log_reg, -1.0)
    options = {"metric": "sqeuclidean", "reg": reg, "max_iter": 3000, "tol": 1e-10, "objective": "divergence"}
    size = scale + reg
    assert uk.sinkhorn_loss(x, y, a, b, **options).item() >= -1e-7 * size
    assert abs(uk.sinkhorn_loss(x, x, a, a, **options).item()) <= 1e-7 * size


def the_divergence_is_convex_in_a_mass(problem: Problem) -> None:
    """S((a + a') / 2, b) <= (S(a, b) + S(a', b)) / 2 for the squared Euclidean cost (Feydy et al. 2019)."""
    x, y = problem.features()
    generator = torch.Generator().manual_seed(problem.seed)
    a, other = (torch.rand(len(x), generator=generator).double() + 0.01 for _ in range(2))
    a, other = a / a.sum(), other / other.sum()
    scale = (x[:, None] - y[None]).square().sum(-1).max().item()
    assume(scale > 0)
    reg = scale * 10 ** max(problem.log_reg, -1.0)

    def divergence(mass):
        return uk.sinkhorn_loss(
            x, y, mass, metric="sqeuclidean", reg=reg, max_iter=3000, tol=1e-10, objective="divergence"
        ).item()

    assert divergence((a + other) / 2) <= (divergence(a) + divergence(other)) / 2 + 1e-7 * (scale + reg)


def gradients_are_slopes(problem: Problem) -> None:
    """A directional derivative against a central difference."""
    result, (C, a, b) = solve(problem)
    (gradient,) = torch.autograd.grad(result.value, C)
    generator = torch.Generator().manual_seed(problem.seed)
    direction = torch.randn(C.shape, generator=generator).double()
    step = 1e-4 * problem.reg

    def value(shift):
        return uk.sinkhorn(
            C.detach() + shift * direction, a, b, reg=problem.reg, max_iter=problem.iterations
        ).value.item()

    slope = (value(step) - value(-step)) / (2 * step)
    size = 1 + scale_of(C) / problem.reg  # dC grows with C / reg
    noise = torch.finfo(torch.float64).eps * scale_of(C) * (1 + problem.iterations) / step
    assert abs((gradient * direction).sum().item() - slope) <= 1e-5 * size + 10 * noise


def a_batch_is_its_problems(problem: Problem) -> None:
    """Problems of a batch do not see each other, in whichever order they come: the same bits."""
    C, (a, b) = problem.costs(), problem.both_masses()
    batch = torch.stack([C, C * 2, C + 1])
    options = {"reg": problem.reg, "max_iter": problem.iterations}
    together = uk.sinkhorn(batch, a, b, **options)
    turned = uk.sinkhorn(batch.flip(0), a, b, **options)
    alone = torch.stack([uk.sinkhorn(c, a, b, **options).value for c in batch])
    assert torch.equal(together.value, alone) and torch.equal(turned.value.flip(0), alone)


def features_of_any_size_are_taken_or_refused(problem: Problem) -> None:
    """Every metric, both types: a finite loss and gradient, or a sentence; never NaN, never a silent zero."""
    x, y = problem.features()
    for metric in ("cosine", "chordal", "l2", "l1", "sqeuclidean"):
        C = reference.cost(x, y, metric)
        reg = 10**problem.log_reg * (C.mean().item() or 1.0)
        want = reference.sinkhorn(C, reg=reg, max_iter=problem.iterations).value.item()
        for dtype in (torch.float64, torch.float32):
            if reg < 10 * torch.finfo(dtype).eps * (
                1.0 if metric in ("cosine", "chordal") else C.max().item()
            ):
                continue  # reg is below the rounding of the cost: nothing determines the plan
            leaves = [z.to(dtype).requires_grad_() for z in (x, y)]
            loss = uk.sinkhorn_loss(*leaves, metric=metric, reg=reg, max_iter=problem.iterations)
            for grad in torch.autograd.grad(loss, leaves):
                assert torch.isfinite(grad).all(), metric
            # What rounding of the features does to their distances, seen through exp(./reg).
            noise = torch.finfo(dtype).eps * 30 * (C.max().item() if metric != "cosine" else 1.0)
            bound = noise * (1 + C.max().item() / reg) * (1 + problem.iterations)
            if metric in ("l2", "chordal"):  # the root of what is left of two squares
                unit = max(x.norm(dim=1).max().item(), y.norm(dim=1).max().item()) if metric == "l2" else 1.0
                bound += torch.finfo(dtype).eps ** 0.5 * unit * 0.1 * (1 + 1 / reg)
            assert abs(loss.item() - want) <= bound, (metric, dtype)


#: claim -> the problems that it speaks of
CLAIMS = {
    values_agree_with_float64: problems(),
    gradients_agree_with_float64: problems(),
    rows_of_the_plan_are_exact: problems(log_reg=(-3, 3)),
    swapping_the_sides_changes_nothing: problems(PLAIN, log_reg=(-1, 3), most=12),
    order_does_not_matter: problems(log_reg=(-3, 3)),
    adding_to_a_row_moves_only_its_potential: problems(PLAIN, log_reg=(-1, 3), most=12),
    units_of_cost_do_not_matter: problems(),
    more_regularisation_costs_more: problems(PLAIN, log_reg=(-1, 3), most=12),
    the_divergence_is_one: problems(FEATURES, log_reg=(-1, 1), most=12),
    the_divergence_is_convex_in_a_mass: problems(FEATURES, ("uniform",), log_reg=(-1, 1), most=12),
    gradients_are_slopes: problems(FINITE, log_reg=(-1, 3)),
    a_batch_is_its_problems: problems(),
    features_of_any_size_are_taken_or_refused: problems(FEATURES, ("uniform",), log_reg=(-2, 3), most=12),
}

__all__ = ["CLAIMS", "MASSES", "st"]
