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

from ..ops.sinkhorn import sinkhorn
from ._looks import iterations_ahead, look_after
from ._stopping import Rule, print_look
from ._turned import turned

SHIFTED = 1e-300  # a tol that is never reached: the op then shifts its potentials after each iteration
#: How far logarithms of scalings may move from those of a kernel: what underflowed there stays below rounding.
REACH = {torch.float64: 50.0, torch.float32: 10.0}


class Scalings(NamedTuple):
    """Logarithms of u and v, -inf where the mass is 0."""

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

    def start(self) -> Scalings:
        """U = v = 1."""
        return Scalings(torch.zeros_like(self.a).detach(), torch.zeros_like(self.b).detach())

    def prepared(self) -> Prepared:
        """With what every call of the op needs."""
        log_a, log_b = _log_of(self.a), _log_of(self.b)
        cost = self.cost
        if self.reference is not None:
            log_c = torch.where(self.reference > 0, _log_of(self.reference), -math.inf)
            cost = cost + self.reg * (log_a[..., :, None] + log_b[..., None, :] - log_c)
        a, drift = self.a, None
        if self.rho == (None, None):
            s = self.b.sum(-1, keepdim=True) / a.sum(-1, keepdim=True)
            a, drift = a * s, s.log()
        return Prepared(self, cost, cost.mT.contiguous(), log_a, log_b, a, drift)


class Prepared(NamedTuple):
    """A problem as the op takes it, but for the side that comes first."""

    problem: Relaxed
    cost: Tensor  # (B?, N, M) M + reg log(a b' / c): that of the same problem with the reference a b'
    columns: Tensor  # (B?, M, N) the same, transposed
    log_a: Tensor  # (B?, N), 0 where the mass is
    log_b: Tensor  # (B?, M)
    a: Tensor  # (B?, N), of the same sum as b where both sides are exact
    #: log(sum b / sum a) there, (B?, 1). POT lets these sums differ: its plan then has the columns' mass, as it has
    #: with our a, and u falls behind by that factor in every iteration.
    drift: Tensor | None

    def after(self, start: Scalings, iterations: int) -> Scalings:
        """So many iterations."""
        p = self.problem
        if p.shifted:
            start = self.translated(start)
        init = p.reg * (start.log_v + self.log_b), p.reg * (start.log_u + self.log_a)
        grad = "implicit" if p.shifted and torch.is_grad_enabled() else "unrolled"
        with turned(self.cost.detach(), p.a.detach(), p.b.detach(), p.reg, p.rho):
            found = sinkhorn(
                self.columns, p.b, self.a, reg=p.reg, max_iter=iterations, tol=SHIFTED if p.shifted else 0.0,
                grad=grad, init=init, unbalanced=p.rho[::-1],
            )  # fmt: skip
        f, g = found.potentials
        log_u, log_v = g / p.reg - self.log_a, f / p.reg - self.log_b
        if self.drift is None:
            return Scalings(log_u, log_v)
        return Scalings(log_u - iterations * self.drift, log_v + iterations * self.drift)

    def translated(self, at: Scalings) -> Scalings:
        """Of the same plan, with the greatest dual value (Séjourné et al. 2022, proposition 2).

        The op does so between its iterations, not before the first.
        """
        p = self.problem
        finite = [rho for rho in p.rho if rho is not None]
        if not finite:
            return at
        kept = [
            mass if rho is None else torch.where(mass > 0, mass * (-p.reg / rho * z).exp(), 0)
            for z, mass, rho in zip(at, (p.a, p.b), p.rho, strict=True)
        ]
        both = 1 / sum(1 / rho for rho in finite)
        t = both / p.reg * (kept[0].sum(-1, keepdim=True) / kept[1].sum(-1, keepdim=True)).log()
        return Scalings(at.log_u + t, at.log_v - t)

    def plan(self, at: Scalings) -> Tensor:
        """P (B?, N, M)."""
        u, v = at.log_u + self.log_a, at.log_v + self.log_b
        return (u[..., :, None] + v[..., None, :] - self.cost / self.problem.reg).exp()


def _log_of(z: Tensor) -> Tensor:
    """0 where z is 0, with gradient 0 there."""
    return torch.where(z > 0, z, 1).log()


class Steps:
    """Single iterations, where u and v of each are asked for: products with a kernel that is kept, as POT makes them.

    The kernel is the plan of some scalings. Where u or v leaves their neighbourhood, in which nothing that counts has
    underflowed, and for the first iteration, the op is asked, and the kernel made anew.
    """

    def __init__(self, of: Prepared):
        p = of.problem
        self.of, self.reach, self.kernel = of, REACH[of.cost.dtype], of.cost.new_empty(0)
        self.damping = [1.0 if rho is None else rho / (rho + p.reg) for rho in p.rho]
        present = p.a > 0, p.b > 0
        self.present = None if bool(present[0].all()) and bool(present[1].all()) else present

    def after(self, at: Scalings) -> Scalings:
        """One iteration."""
        found = self._by_products(at) if self.kernel.numel() else None
        if found is None:
            found = self.of.after(at, 1)
            self.kernel = self.of.plan(found)
            self.around = [self._masked(z, side, 0.0) for side, z in enumerate(found)]
            self.full = [m + z for m, z in zip((self.of.log_a, self.of.log_b), self.around, strict=True)]
        return found

    def _by_products(self, at: Scalings) -> Scalings | None:
        at = self.of.translated(at) if self.of.problem.shifted else at
        moved, made = at.log_v - self.around[1], []
        for side, kernel in enumerate((self.kernel, self.kernel.mT)):
            sums = torch.matmul(kernel, moved.exp()[..., None])[..., 0]
            scaling = (self.full[side] - sums.log()) * self.damping[side]
            moved = scaling - self.around[side]
            if not bool(self._masked(moved, side, 0.0).abs().max() <= self.reach):  # nor where it is NaN
                return None
            moved = self._masked(moved, side, -math.inf)
            made.append(self._masked(scaling, side, -math.inf))
        return Scalings(*made)

    def _masked(self, z: Tensor, side: int, missing: float) -> Tensor:
        return z if self.present is None else torch.where(self.present[side], z, missing)


class Found(NamedTuple):
    """Where a problem stopped."""

    of: Prepared
    at: Scalings
    n_iter: int
    converged: bool
    errors: list[Tensor]  # () each, of every look where they were asked for


def solve(problem: Relaxed, start: Scalings, rule: Rule, tau: float | None, record: bool) -> Found:
    """Run to where POT stops, with the gradient of those iterations where one is needed.

    Args:
        problem: what to solve.
        start: the scalings to start from; only v is read, and u by the error of the first iteration.
        rule: when to stop.
        tau: None, or that of the stabilised method, as in `Change`.
        record: keep the error of every look.
    """
    needs = torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in problem[:4])
    with torch.no_grad():
        found = _search(problem.detached().prepared(), start, rule, tau, record or rule.verbose)
    if not needs:
        return found
    prepared = problem.prepared()
    return found._replace(of=prepared, at=prepared.after(start, found.n_iter))


def _search(of: Prepared, start: Scalings, rule: Rule, tau: float | None, record: bool) -> Found:
    steps, change_of = Steps(of), Change(tau)
    done, at, error, step = 0, start, math.inf, 1
    errors: list[Tensor] = []
    if rule.threshold == 0 and not record:
        return Found(of, of.after(start, rule.max_iter), rule.max_iter, False, errors)
    while True:
        target = min(done + step, rule.max_iter)
        before = of.after(at, target - 1 - done) if target - 1 > done else at
        after = steps.after(before)
        change = change_of(before, after)
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
                return Found(of, after, target, True, errors)
        if target == rule.max_iter:
            return Found(of, after, target, False, errors)
        ahead = 0 if record else iterations_ahead(last, found, target - done, rule.threshold)
        done, at, error = target, after, found
        step = look_after(done + ahead, rule.period) - done


class Change:
    """POT's error, (): max |u - u'| / max(u, u', 1), the mean of that of u and of v; with ``tau`` of u alone.

    ``tau`` is that of POT's stabilised method: where a scaling is more than that many times what it stands for, its
    potentials take up both largest ones, and 1 becomes the largest u.
    """

    def __init__(self, tau: float | None):
        self.reach = None if tau is None else math.log(tau)
        self.ones = [0.0, 0.0]

    def __call__(self, before: Scalings, after: Scalings) -> Tensor:
        """From one iteration to the next."""
        if self.reach is None:
            return (_relative(before.log_u, after.log_u, 0) + _relative(before.log_v, after.log_v, 0)) / 2
        largest = [float(z.max()) for z in after]
        if any(z - one > self.reach for z, one in zip(largest, self.ones, strict=True)):
            self.ones = largest
        return _relative(before.log_u, after.log_u, self.ones[0])


def _relative(before: Tensor, after: Tensor, one: float) -> Tensor:
    largest = torch.maximum(before.max(), after.max()).clamp_min_(one)
    return (after - largest).exp_().sub_((before - largest).exp_()).abs_().max()
