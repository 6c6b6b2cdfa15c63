"""Unbalanced problems of `compat.pot`: POT's iterations and stopping rules on `ucmkd_fast.sinkhorn(unbalanced=)`.

POT's plan is diag(u) K diag(v), K = c exp(-M / reg), with a reference measure c that is a b', 1, or given; it starts
from v = 1 and makes u first. Our op has the reference a b' and makes the columns first: it gets the problem transposed,
with the cost M + reg log(a b' / c), in which its potentials are reg (log v + log b) and reg (log u + log a).

POT stops where u and v change little from one iteration to the next. The search for that iteration goes ahead while
the change, at the rate at which it falls, is far from the threshold, and goes back where it went too far.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.not_converged import silent
from ..ops.sinkhorn import sinkhorn
from ._looks import iterations_ahead, look_after
from ._stopping import Rule, print_look

SHIFTED = 1e-300  # a tol that is never reached: the op then shifts its potentials after each iteration


class Scalings(NamedTuple):
    """Logarithms of u and v; 0 where the mass is 0, whose scaling is nothing."""

    log_u: Tensor  # (B?, N)
    log_v: Tensor  # (B?, M)


class Relaxed(NamedTuple):
    """One problem, or a batch that stops together."""

    cost: Tensor  # (B?, N, M)
    a: Tensor  # (B?, N)
    b: Tensor  # (B?, M)
    reference: Tensor | None  # c (B?, N, M); None: a b'
    reg: float
    rho: tuple[float | None, float | None]  # of the rows and of the columns; None: exact
    shifted: bool  # translation-invariant iterations, else plain ones

    def detached(self) -> Relaxed:
        """Without the graphs of its tensors."""
        reference = None if self.reference is None else self.reference.detach()
        return self._replace(
            cost=self.cost.detach(), a=self.a.detach(), b=self.b.detach(), reference=reference
        )

    @property
    def log_masses(self) -> tuple[Tensor, Tensor]:
        """Log a and log b, -inf where they are 0."""
        return _log_of(self.a), _log_of(self.b)

    def seen_from_masses(self) -> Tensor:
        """M + reg log(a b' / c): the cost of the same problem with the reference a b'."""
        if self.reference is None:
            return self.cost
        a, b = (torch.where(z > 0, z, 1).log() for z in (self.a, self.b))
        return self.cost + self.reg * (a[..., :, None] + b[..., None, :] - _log_of(self.reference))

    def start(self) -> Scalings:
        """U = v = 1."""
        return Scalings(torch.zeros_like(self.a).detach(), torch.zeros_like(self.b).detach())

    def after(self, start: Scalings, iterations: int, columns: Tensor) -> Scalings:
        """So many iterations; ``columns`` is `seen_from_masses`, transposed and contiguous."""
        log_a, log_b = self.log_masses
        start = self._translated(start) if self.shifted else start
        init = (self.reg * (start.log_v + log_b)).detach(), (self.reg * (start.log_u + log_a)).detach()
        implicit = self.shifted and torch.is_grad_enabled()
        a, drift = self._equal_sums(iterations)
        with silent():  # who called warns as POT does
            found = sinkhorn(
                columns, self.b, a, reg=self.reg, max_iter=iterations, tol=SHIFTED if self.shifted else 0.0,
                grad="implicit" if implicit else "unrolled", init=init, unbalanced=self.rho[::-1],
            )  # fmt: skip
        f, g = found.potentials
        return Scalings(_without(g / self.reg, log_a) - drift, _without(f / self.reg, log_b) + drift)

    def _translated(self, at: Scalings) -> Scalings:
        """Of the same plan, with the greatest dual value (Séjourné et al. 2022, proposition 2).

        The op does so between its iterations, not before the first.
        """
        finite = [rho for rho in self.rho if rho is not None]
        if not finite:
            return at
        kept = [
            mass if rho is None else mass * (-self.reg / rho * z).exp()
            for z, mass, rho in zip(at, (self.a, self.b), self.rho, strict=True)
        ]
        both = 1 / sum(1 / rho for rho in finite)
        t = both / self.reg * (kept[0].sum(-1, keepdim=True) / kept[1].sum(-1, keepdim=True)).log()
        return Scalings(at.log_u + t, at.log_v - t)

    def _equal_sums(self, iterations: int) -> tuple[Tensor, Tensor | float]:
        """What the op is given for a, and how far log u and -log v are too large then.

        Where both sides are exact POT lets the sums differ: the plan then has the columns' mass, as with a s,
        s = sum b / sum a, and u falls behind by a factor of s in every iteration.
        """
        if self.rho != (None, None):
            return self.a, 0.0
        s = self.b.sum(-1, keepdim=True) / self.a.sum(-1, keepdim=True)
        return self.a * s, iterations * s.log()

    def plan(self, at: Scalings) -> Tensor:
        """P (B?, N, M)."""
        log_a, log_b = self.log_masses
        u, v = at.log_u + log_a, at.log_v + log_b
        return (u[..., :, None] + v[..., None, :] - self.seen_from_masses() / self.reg).exp()


def _log_of(z: Tensor) -> Tensor:
    """-inf where z is 0, with gradient 0 there."""
    present = z > 0
    return torch.where(present, torch.where(present, z, 1).log(), -math.inf)


def _without(log_scaling: Tensor, log_mass: Tensor) -> Tensor:
    present = log_mass > -math.inf
    return torch.where(present, log_scaling - torch.where(present, log_mass, 0), 0)


class Found(NamedTuple):
    """Where a problem stopped."""

    at: Scalings
    n_iter: int
    converged: bool
    errors: list[Tensor]  # () each, of every look where they were asked for


def solve(problem: Relaxed, start: Scalings, rule: Rule, both: bool, record: bool) -> Found:
    """Run to where POT stops, with the gradient of those iterations where one is needed.

    Args:
        problem: what to solve.
        start: the scalings to start from; only v is read, and u by the error of the first iteration.
        rule: when to stop.
        both: the error is the mean change of u and v, else that of u.
        record: keep the error of every look (slower: a call for each).
    """
    needs = torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in problem[:4])
    with torch.no_grad():
        found = _search(problem.detached(), start, rule, both, record or rule.verbose)
    if not needs:
        return found
    columns = problem.seen_from_masses().mT.contiguous()
    return found._replace(at=problem.after(start, found.n_iter, columns))


def _search(problem: Relaxed, start: Scalings, rule: Rule, both: bool, record: bool) -> Found:
    columns = problem.seen_from_masses().mT.contiguous()
    done, at, error, step = 0, start, math.inf, 1
    errors: list[Tensor] = []
    if rule.threshold == 0 and not record:
        return Found(problem.after(start, rule.max_iter, columns), rule.max_iter, False, errors)
    while True:
        target = min(done + step, rule.max_iter)
        before = problem.after(at, target - 1 - done, columns) if target - 1 > done else at
        after = problem.after(before, 1, columns)
        change = _change(before, after, both)
        last, found = error, float(change)
        following = look_after(done, rule.period)
        if found < rule.threshold and target > following:  # a look on the way may have stopped
            step = following - done
            continue
        if (target - 1) % rule.period == 0:
            errors.append(change)
            if rule.verbose:
                print_look(target - 1, found)
            if found < rule.threshold:
                return Found(after, target, True, errors)
        if target == rule.max_iter:
            return Found(after, target, False, errors)
        ahead = 0 if record else iterations_ahead(last, found, target - done, rule.threshold)
        done, at, error = target, after, found
        step = look_after(done + ahead, rule.period) - done


def _change(before: Scalings, after: Scalings, both: bool) -> Tensor:
    """POT's error, (): max |u - u'| / max(u, u', 1), of u or the mean of that of u and of v."""
    parts = [_relative(x, y) for x, y in zip(before, after, strict=True)]
    return (parts[0] + parts[1]) / 2 if both else parts[0]


def _relative(before: Tensor, after: Tensor) -> Tensor:
    largest = torch.maximum(before.max(), after.max()).clamp_min(0)
    return ((after - largest).exp() - (before - largest).exp()).abs().max()
