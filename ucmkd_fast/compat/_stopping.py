"""POT's stopping rule on `ucmkd_fast.sinkhorn`.

POT looks at |P'1 - b|_2 after iteration 1 and then after every ``period``-th more, and stops where it is
below stopThr. Our op stops at any iteration where |P'1 - b|_1 is at most ``tol``. As |.|_2 <= |.|_1 <= sqrt(M) |.|_2,
POT cannot stop before |.|_1 is at most sqrt(M) stopThr: one call runs until there, and short ones from look to look.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import arguments, checks
from ..ops.not_converged import silent
from ..ops.result import SinkhornResult
from ..ops.sinkhorn import sinkhorn
from ._exp import exp_or_zero_


class Rule(NamedTuple):
    """When to stop, as POT's solvers are told."""

    max_iter: int
    threshold: float
    period: int  # iterations between two looks
    verbose: bool


def rule_of(max_iter, max_iter_name, threshold, threshold_name, period, verbose) -> Rule:
    """Checked; the names are those that the caller knows the arguments by."""
    return Rule(
        checks.count_at_least_one(max_iter_name, max_iter),
        checks.number_at_least_zero(threshold_name, threshold),
        checks.count_at_least_one("print_period", period),
        bool(verbose),
    )


class Solved(NamedTuple):
    """One result a histogram, all after ``n_iter`` iterations."""

    results: list[SinkhornResult]
    n_iter: int
    converged: bool
    errors: list[Tensor]  # () each: what each look found; only the last ones unless recorded
    plans: list[Tensor]  # (N, M) each where the last look made them, else none

    def plan(self) -> Tensor:
        """Of the first histogram."""
        return self.plans[0] if self.plans else self.results[0].plan()


def mass_of(name: str, mass: Tensor | None, cost: Tensor, side: int) -> Tensor:
    """A mass given or uniform, of the rows (side 0) or the columns (1) of the cost."""
    size = cost.shape[side]
    if mass is None:
        return cost.new_full((size,), 1 / size)
    found = arguments.mass(name, mass, size, None, cost.dtype)
    assert found is not None
    if found.is_cpu and not bool((found >= 0).all()):  # elsewhere the look would wait for the device
        raise ValueError(f"{name} must be >= 0 everywhere, got a negative mass or NaN")
    return found


def warn_not_converged(stacklevel: int) -> None:
    """POT's warning, in our words after the first four."""
    warnings.warn(
        "Sinkhorn did not converge: the largest number of iterations was reached before the threshold; "
        "raise that number, the threshold, or the regularization parameter `reg`",
        stacklevel=stacklevel,
    )


def print_look(iteration: int, error: float) -> None:
    """What ``verbose=True`` shows of an iteration."""
    print(f"iteration {iteration:5d} | error {error:.6e}")


def _plan(cost: Tensor, result: SinkhornResult, reg: float) -> Tensor:
    """(N, M), without gradients."""
    f, g = result.potentials
    return exp_or_zero_((f[:, None] + g).sub_(cost).div_(reg))


def _first_look(n_iter: int, rule: Rule) -> int:
    """The first look at or after this iteration, but not past the last iteration."""
    looks = math.ceil(max(n_iter - 1, 0) / rule.period)
    return min(1 + looks * rule.period, rule.max_iter)


def _search(cost, a, columns: list[Tensor], reg: float, starts: list, rule: Rule, record: bool) -> Solved:
    """Run without gradients until POT would stop."""
    potentials: list = list(starts)
    done = [0] * len(columns)
    results: list = [None] * len(columns)

    def advance(k: int, iterations: int, tol: float = 0.0) -> None:
        with silent():  # the solver that called warns as POT does
            r = sinkhorn(cost, a, columns[k], reg=reg, max_iter=iterations, tol=tol, init=potentials[k])
        results[k], potentials[k] = r, r.potentials
        done[k] += int(r.n_iter) if tol > 0 else iterations

    if not record and cost.device.type == "cpu":
        reach = math.sqrt(cost.shape[1]) * rule.threshold
        for k in range(len(columns)):
            advance(k, rule.max_iter, reach)
    errors: list[Tensor] = []
    target = _first_look(max(max(done), 1), rule)
    while True:
        for k in range(len(columns)):
            if done[k] < target:
                advance(k, target - done[k])
        if (target - 1) % rule.period == 0:
            plans = [_plan(cost, r, reg) for r in results]
            parts = [(p.sum(0) - b).norm() for p, b in zip(plans, columns, strict=True)]
            errors.append(torch.stack(parts).norm())
            if rule.verbose:
                print_look(target - 1, float(errors[-1]))
            if bool(errors[-1] < rule.threshold):
                return Solved(results, target, True, errors, plans)
        if target == rule.max_iter:
            return Solved(results, target, False, errors, [])
        target = min(target + rule.period, rule.max_iter)


def solve(
    cost: Tensor,  # (N, M)
    a: Tensor,  # (N,)
    columns: list[Tensor],  # (M,) each, one a histogram
    reg: float,
    starts: list[tuple[Tensor, Tensor] | None],  # potentials (f, g) to start each from
    rule: Rule,
    record: bool,
) -> Solved:
    """Run to where POT would stop; with the exact gradient of those iterations where one is needed.

    Args:
        cost: as in `sinkhorn`.
        a: masses of the rows.
        columns: masses of the columns; all histograms stop together.
        reg: as in `sinkhorn`.
        starts: as ``init`` in `sinkhorn`.
        rule: when to stop.
        record: keep the error of every look (slower: a call from look to look).
    """
    needs = torch.is_grad_enabled() and any(t.requires_grad for t in (cost, a, *columns))
    constant = [b.detach() for b in columns]
    with torch.no_grad():
        if rule.threshold == 0 and not (record or rule.verbose):
            found = Solved([], rule.max_iter, False, [], [])
        else:
            found = _search(cost.detach(), a.detach(), constant, reg, starts, rule, record or rule.verbose)
    if found.results and not needs:
        return found
    with silent():
        results = [
            sinkhorn(cost, a, b, reg=reg, max_iter=found.n_iter, init=start)
            for b, start in zip(columns, starts, strict=True)
        ]
    return found._replace(results=results, plans=[])
