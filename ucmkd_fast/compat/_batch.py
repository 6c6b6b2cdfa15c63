"""Batches of `compat.pot.batch`: POT's iterations and stopping rule on `ucmkd_fast.sinkhorn`, all problems at once.

POT makes u first, then v, and looks at max_k |P_k 1 - a_k|_2 after iterations 1, 11, 21, ...; our op makes the columns
first, so it gets the costs transposed, and its marginal error is |P_k 1 - a_k|_1. That never grows from one iteration
to the next, and |.|_2 >= |.|_1 / sqrt(N): while the largest is at least sqrt(N) tol, no look so far can have stopped.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.result import SinkhornResult
from ..ops.sinkhorn import sinkhorn
from ._looks import iterations_ahead, look_after
from ._stopping import Rule
from ._turned import turned


class Problems(NamedTuple):
    """A batch of transport problems."""

    cost: Tensor  # (B, N, M)
    a: Tensor  # (B, N)
    b: Tensor  # (B, M)
    reg: float

    def detached(self) -> Problems:
        return self._replace(cost=self.cost.detach(), a=self.a.detach(), b=self.b.detach())

    def run(self, iterations: int, start: tuple[Tensor, Tensor] | None = None) -> SinkhornResult:
        """So many iterations, of the transposed problems; from v = 1 where no ``start`` is given."""
        columns = self.cost.mT.contiguous()
        if start is None:
            start = columns.new_zeros(columns.shape[:2]), columns.new_zeros(columns.shape[::2])
        with turned(*self.detached()):
            return sinkhorn(columns, self.b, self.a, reg=self.reg, max_iter=iterations, init=start)

    def plan(self, log_u: Tensor, log_v: Tensor) -> Tensor:
        """(B, N, M)."""
        return (log_u[:, :, None] + log_v[:, None, :] - self.cost / self.reg).exp()


class Projected(NamedTuple):
    """What the iterations found."""

    log_u: Tensor  # (B, N)
    log_v: Tensor  # (B, M)
    n_iter: int

    @classmethod
    def of(cls, result: SinkhornResult, reg: float, n_iter: int) -> Projected:
        g, f = result.potentials
        return cls(f / reg, g / reg, n_iter)


def project(problems: Problems, rule: Rule, grad: str) -> Projected:
    """Run to where POT stops; with ``grad="autodiff"`` differentiable, with ``"last_step"`` one step more that is."""
    needs = torch.is_grad_enabled() and any(t.requires_grad for t in problems[:3])
    constant = problems.detached()
    if not needs or grad != "autodiff":
        found = _search(constant, rule)
        return _one_more(problems, found) if grad == "last_step" else found
    n_iter = rule.max_iter if rule.threshold == 0 else _search(constant, rule).n_iter
    return Projected.of(problems.run(n_iter), problems.reg, n_iter)


def _one_more(problems: Problems, found: Projected) -> Projected:
    """POT's last step: u from v, v from u, with gradients of this step alone."""
    cost, a, b, reg = problems
    log_u = a.log() - torch.logsumexp(found.log_v[:, None, :] - cost / reg, 2)
    log_v = b.log() - torch.logsumexp(log_u[:, :, None] - cost / reg, 1)
    return Projected(log_u, log_v, found.n_iter)


def _search(problems: Problems, rule: Rule) -> Projected:
    n, reg = problems.cost.shape[1], problems.reg
    bound = math.sqrt(n) * rule.threshold  # of |.|_1: at or above it, nothing has stopped
    with torch.no_grad():
        done, start, error, step = 0, None, math.inf, 1
        while True:
            target = min(done + step, rule.max_iter) if rule.threshold > 0 else rule.max_iter
            result = problems.run(target - done, start)
            if rule.threshold == 0:
                return Projected.of(result, reg, target)
            before, found = error, float(result.marginal_error.max())
            following = look_after(done, rule.period)
            if found < bound and target > following:  # a look on the way may have stopped
                step = following - done
                continue
            if found < bound and target == following and _largest_error(problems, result) < rule.threshold:
                return Projected.of(result, reg, target)
            if target == rule.max_iter:
                return Projected.of(result, reg, target)
            ahead = iterations_ahead(before, found, target - done, bound)
            done, start, error = target, result.potentials, found
            step = look_after(done + ahead, rule.period) - done


def _largest_error(problems: Problems, result: SinkhornResult) -> float:
    """max_k |P_k 1 - a_k|_2."""
    found = Projected.of(result, problems.reg, 0)
    plan = problems.plan(found.log_u, found.log_v)
    return float((plan.sum(2) - problems.a).norm(dim=1).max())
