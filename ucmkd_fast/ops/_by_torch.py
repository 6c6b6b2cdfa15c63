"""Sinkhorn in torch's own operations, on batches and without a look at a value: for forward mode and higher orders.

What `reference.sinkhorn` computes problem by problem; here masks stand for what takes no part, so that every transform
of torch.func goes through. It keeps a few matrices (N, M) per iteration where a gradient is asked for as well.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import sinkhorn as reference
from . import _dual, transforms
from ._problem import Options, Problem, Solution


class Marked(NamedTuple):
    """A problem whose rows, columns and pairs without part in it are marked; leading dimensions are a batch."""

    cost: Tensor  # (B?, N, M), 0 where a pair is forbidden
    a: Tensor  # (B?, N), 1 where there is no mass
    b: Tensor  # (B?, M)
    rows: Tensor  # (B?, N) bool, whether there is mass
    columns: Tensor  # (B?, M)
    pairs: Tensor  # (B?, N, M), whether mass may move

    def detached(self) -> Marked:
        return self._replace(cost=self.cost.detach(), a=self.a.detach(), b=self.b.detach())

    def transposed(self) -> Marked:
        return Marked(self.cost.mT, self.b, self.a, self.columns, self.rows, self.pairs.mT)


def solve(p: Problem, options: Options) -> Solution:
    """Of a given cost.

    ``grad`` means what it means to the kernels. ``accelerate`` changes the way, not where it leads: plain iterations
    run.
    """
    cost, a, b, init_f = p.matrix, p.a, p.b, p.init_f
    if transforms.orders() > 1:
        transforms.refuse_second_order(options.grad)
    n, m = cost.shape[-2:]
    a = cost.new_full((n,), 1 / n) if a is None else a
    b = cost.new_full((m,), 1 / m) if b is None else b
    a, b = a.expand(*cost.shape[:-2], n), b.expand(*cost.shape[:-2], m)
    rows, columns, pairs = a.detach() > 0, b.detach() > 0, cost.detach() != math.inf
    marked = Marked(
        torch.where(pairs, cost, 0), torch.where(rows, a, 1), torch.where(columns, b, 1), rows, columns, pairs
    )
    start = -options.reg * math.log(n) if init_f is None else init_f.detach()
    f = torch.where(rows, start, torch.zeros_like(marked.a.detach()))
    f, g, error, n_iter = _iterate(marked if options.grad == "unrolled" else marked.detached(), f, options)
    if options.grad == "implicit":
        f, g = _implicit(marked, f, g, options)
    value, dual = _values(marked, a, b, f, g, options)
    f, g = torch.where(rows, f, -math.inf), torch.where(columns, g, -math.inf)
    return Solution(value, dual, f, g, error, n_iter)


def _scores(p: Marked, g: Tensor, reg: float) -> Tensor:
    """(g_j - C_ij) / reg (B?, N, M), -inf where nothing moves; 0 in rows without mass, whose sums nobody reads."""
    scores = (g[..., None, :] - p.cost) / reg
    scores = torch.where(p.columns[..., None, :] & p.pairs, scores, -math.inf)
    return torch.where(p.rows[..., :, None], scores, 0)


def half_step(p: Marked, g: Tensor, reg: float, rho: float) -> Tensor:
    """F from g; 0 in rows without mass."""
    f = reg * (p.a.log() - reference.damping(rho, reg) * _scores(p, g, reg).logsumexp(-1))
    return torch.where(p.rows, f, 0)


def _kept(p: Marked, f: Tensor, reg: float, rho: float) -> Tensor:
    """What a half-step leaves of the masses of the rows."""
    return torch.where(p.rows, reference.kept_mass(f, p.a, reg, rho), 0)


def _translated(p: Marked, f: Tensor, g: Tensor, options: Options) -> Tensor:
    """F shifted as between unbalanced iterations."""
    (rho_a, rho_b), reg = options.rho, options.reg
    kept_a, kept_b = _kept(p, f, reg, rho_a).sum(-1), _kept(p.transposed(), g, reg, rho_b).sum(-1)
    return torch.where(p.rows, f + reference.shift(kept_a, kept_b, options.rho)[..., None], 0)


def plan_of(p: Marked, f: Tensor, g: Tensor, reg: float) -> Tensor:
    exponents = (f[..., :, None] + g[..., None, :] - p.cost) / reg
    moves = p.rows[..., :, None] & p.columns[..., None, :] & p.pairs
    return torch.where(moves, exponents, -math.inf).exp()


def _iterate(p: Marked, f: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The iterations, each problem's to its own end: f, g, marginal error, iterations."""
    reg, turned, (rho_a, rho_b) = options.reg, p.transposed(), options.rho
    g = torch.zeros_like(p.b)
    n_iter = torch.zeros(p.cost.shape[:-2], dtype=torch.int64, device=p.cost.device)
    error = torch.full_like(p.cost.detach()[..., 0, 0], math.inf)
    for k in range(1, options.max_iter + 1):
        begin = _translated(p, f, g, options) if options.shifted and k > 1 else f
        new_g = half_step(turned, begin, reg, rho_b)
        new_f = half_step(p, new_g, reg, rho_a)
        goes_on = error > options.tol  # also while it is NaN or inf: the outputs say so
        goes_on = goes_on | error.isnan()
        f, g = torch.where(goes_on[..., None], new_f, f), torch.where(goes_on[..., None], new_g, g)
        n_iter = n_iter + goes_on
        if options.tol > 0 or k == options.max_iter:
            plan = plan_of(p, f, g, reg).detach()
            error = (plan.sum(-2) - _kept(turned, g, reg, rho_b).detach()).abs().sum(-1)
            if options.tol > 0 and not transforms.active() and bool((error <= options.tol).all()):
                break
    return f, g, error, n_iter


def _implicit(p: Marked, f: Tensor, g: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """(f, g) with the derivative of the fixed point: a dense least-squares solve, in both modes.

    A step from fixed potentials depends on them by -softmax, damped: dz = (1 - J)^+ dT, J = [[0, -R], [-Q', 0]].
    """
    n, turned, reg, (rho_a, rho_b) = f.shape[-1], p.transposed(), options.reg, options.rho
    step = torch.cat([half_step(p, g, reg, rho_a), half_step(turned, f, reg, rho_b)], -1)
    fixed = p.detached()
    r = torch.where(p.rows[..., :, None], _scores(fixed, g, reg).softmax(-1), 0).double()
    q = torch.where(p.columns[..., :, None], _scores(fixed.transposed(), f, reg).softmax(-1), 0).double()
    r, q = r * reference.damping(rho_a, reg), q * reference.damping(rho_b, reg)
    eye = [
        torch.eye(z.shape[-2], dtype=z.dtype, device=z.device).expand(*z.shape[:-1], z.shape[-2])
        for z in (r, q)
    ]
    system = torch.cat([torch.cat([eye[0], r], -1), torch.cat([q, eye[1]], -1)], -2)
    moved = (step - step.detach()).double()[..., None]
    z = torch.cat([f, g], -1) + (torch.linalg.pinv(system, rtol=1e-10) @ moved)[..., 0].to(f.dtype)
    return z[..., :n], z[..., n:]


def _values(p: Marked, a: Tensor, b: Tensor, f: Tensor, g: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """<P, C> and the dual value, as `reference.sinkhorn` has them."""
    reg, plan, (rho_a, rho_b) = options.reg, plan_of(p, f, g, options.reg), options.rho
    exact = options.unbalanced is None
    if options.grad == "envelope":  # the plan is a constant of <P, C>, the potentials of the dual value
        fixed, plan = p.detached(), plan.detach()
        every = torch.ones_like(p.rows), torch.ones_like(p.columns)
        free_f = -reg * _scores(fixed._replace(rows=every[0]), g, reg).logsumexp(-1)
        free_g = -reg * _scores(fixed.transposed()._replace(rows=every[1]), f, reg).logsumexp(-1)
        free_f, free_g = reference.damping(rho_a, reg) * free_f, reference.damping(rho_b, reg) * free_g
        free_g = torch.where(p.columns, g - reg * fixed.b.log(), free_g)
        free_f, free_g = (torch.where(z.isinf(), 0, z) for z in (free_f, free_g))  # no pair, so no mass
        moved = plan_of(p, f, g, reg).sum((-2, -1))  # its derivative by C, times -reg, is P
        dual = -reg * (moved - moved.detach())
        held_a, held_b = (a.detach(), b.detach()) if exact else (a, b)
    else:
        free_f, free_g = f - reg * p.a.log(), g - reg * p.b.log()
        held_a, held_b = a, b = torch.where(p.rows, a, 0), torch.where(p.columns, b, 0)
        dual = torch.zeros_like(f[..., 0])
    dual = dual + (_dual.paid(free_f, rho_a) * a).sum(-1) + (_dual.paid(free_g, rho_b) * b).sum(-1)
    kept = held_a.sum(-1) if rho_a == math.inf else (a * (-free_f / rho_a).exp()).sum(-1)
    if options.grad == "envelope" and not exact:  # sum P is the sum of either side
        of_b = (b * (-free_g / rho_b).exp()).sum(-1)
        kept = kept + of_b - of_b.detach()
    dual = dual - reg * (kept - held_a.sum(-1) * held_b.sum(-1))
    return (plan * p.cost).sum((-2, -1)), dual
