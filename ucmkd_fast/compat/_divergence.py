"""The Sinkhorn divergence of `compat.geomloss` by torch's own operations, on whole cost matrices.

What the kernels (`_divergence_native`) are tested against, and what runs where they do not: on a GPU, under
transforms and compilers, for second derivatives and for costs that the user gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..ops.transforms import direct
from ._distances import SMALLEST_SQUARE, cost_of, weighted_differences
from ._exp import exp_or_zero_, lowest
from ._measures import Measures

Cost = Callable[[Tensor, Tensor], Tensor]


class Settings(NamedTuple):
    """How a divergence is solved."""

    p: int
    schedule: list[float]  # every eps in turn
    rho: float  # how strongly marginals are held; inf: exactly
    debias: bool
    potentials: bool
    cost: Cost | None = None  # in the place of |x - y|^p / p
    linear: bool = False  # whether memory must be linear in the points, which whole matrices cannot promise

    @property
    def eps(self) -> float:
        """The last one."""
        return self.schedule[-1]

    def damping(self, eps: float) -> float:
        """What unbalanced transport multiplies each step with (Sejourne et al., arXiv 1910.12958, table 1)."""
        return 1 / (1 + eps / self.rho)


def schedule_of(p: int, diameter: float, blur: float, scaling: float) -> list[float]:
    """Every eps in turn: diameter^p twice, down by scaling^p while above blur^p, and blur^p."""
    if diameter == 0:
        return [blur**p]
    start, step = p * math.log(diameter), p * math.log(scaling)
    count = max(0, math.ceil((p * math.log(blur) - start) / step))
    return [diameter**p, *(math.exp(start + k * step) for k in range(count)), blur**p]


def loss(a: Tensor, x: Tensor, b: Tensor, y: Tensor, s: Settings) -> Tensor:
    """(B,), the sums of weights times terms."""
    term_x, term_y = terms(a, x, b, y, s)
    return (a * term_x).sum(1) + (b * term_y).sum(1)


def terms(a: Tensor, x: Tensor, b: Tensor, y: Tensor, s: Settings) -> tuple[Tensor, Tensor]:
    """(B, N) and (B, M): what a unit of weight at each point adds to the loss, or with `potentials` those."""
    fixed_x, fixed_y = x.detach(), y.detach()
    with torch.no_grad():
        log_a, log_b = a.detach().log(), b.detach().log()
        between = _cost(fixed_x, fixed_y, s)
        back = between.mT if s.cost is None else _cost(fixed_y, fixed_x, s)
        h_x, h_y = _descend((between, back), log_a, log_b, s)
    f = _last_step(x, fixed_y, between, h_y, s)
    g = _last_step(y, fixed_x, back, h_x, s)
    own_f = own_g = None
    if s.debias:
        own_f, own_g = _self_potential(x, log_a, s), _self_potential(y, log_b, s)
    return _term(f, own_f, s), _term(g, own_g, s)


def _term(f: Tensor, own: Tensor | None, s: Settings) -> Tensor:
    """(rho + eps / 2) (exp(-own / rho) - exp(-f / rho)), f - own where balanced (Sejourne et al., proposition 12)."""
    if s.potentials or math.isinf(s.rho):
        return f if own is None else f - own
    # Both less 1, or a long reach would cost the digits. A point without weight may have any exponent.
    most = 0.9 * math.log(torch.finfo(f.dtype).max)
    less = (-f / s.rho).clamp(max=most).expm1()
    more = 0 if own is None else (-own / s.rho).clamp(max=most).expm1()
    return (s.rho + s.eps / 2) * (more - less)


def _cost(x: Tensor, y: Tensor, s: Settings) -> Tensor:
    return cost_of(x, y, s.p) if s.cost is None else s.cost(x, y)


def _self_potential(x: Tensor, log_a: Tensor, s: Settings) -> Tensor:
    """(B, N), the potential of the problem between a measure and itself."""
    fixed = x.detach()
    with torch.no_grad():
        within = _cost(fixed, fixed, s)
        h = _descend_within(within, log_a, s)
    return _last_step(x, fixed, within, h, s)


def _softmin(cost: Tensor, h: Tensor, eps: float, work: Tensor | None) -> Tensor:
    """(B, N) of C (B, N, M) and h (B, M); work (B, N, M) is overwritten; None where torch must see every step."""
    if work is None:
        return (h[:, None, :] - cost / eps).logsumexp(2) * -eps
    torch.sub(h[:, None, :], cost, alpha=1 / eps, out=work)
    top = work.amax(2, keepdim=True)
    # Every sum is at least 1: what the floor adds to it is below rounding.
    return (work.sub_(top).clamp_min_(lowest(work.dtype)).exp_().sum(2).log_() + top[:, :, 0]) * -eps


def _plain(*tensors: Tensor) -> bool:
    """Whether no transform and no forward mode looks on: then memory may be written over."""
    return forward_ad._current_level < 0 and direct(*tensors)


def _descend(
    costs: tuple[Tensor, Tensor], log_a: Tensor, log_b: Tensor, s: Settings
) -> tuple[Tensor, Tensor]:
    """What the last step reads of each side: log a + f / eps (B, N) and log b + g / eps (B, M)."""
    cost, back = costs
    work = torch.empty_like(cost) if _plain(cost, log_a, log_b) else None
    work_t = None if work is None else work.mT
    first = s.schedule[0]
    f = s.damping(first) * _softmin(cost, log_b, first, work)
    g = s.damping(first) * _softmin(back, log_a, first, work_t)
    for eps in s.schedule:
        new_f = s.damping(eps) * _softmin(cost, log_b + g / eps, eps, work)
        new_g = s.damping(eps) * _softmin(back, log_a + f / eps, eps, work_t)
        f, g = (f + new_f) / 2, (g + new_g) / 2
    return log_a + f / s.eps, log_b + g / s.eps


def _descend_within(cost: Tensor, log_a: Tensor, s: Settings) -> Tensor:
    """The same for the problem between a measure and itself, whose two potentials are one."""
    work = torch.empty_like(cost) if _plain(cost, log_a) else None
    f = s.damping(s.schedule[0]) * _softmin(cost, log_a, s.schedule[0], work)
    for eps in s.schedule:
        f = (f + s.damping(eps) * _softmin(cost, log_a + f / eps, eps, work)) / 2
    return log_a + f / s.eps


def _last_step(x: Tensor, y: Tensor, cost: Tensor, h: Tensor, s: Settings) -> Tensor:
    """(B, N), the damped softmin_eps(C(x, y), h) at fixed y and h."""
    if s.cost is None and _plain(x, y, h):
        step: Tensor = _LastStep.apply(x, y, cost, h, s.eps, s.p)
    else:
        step = _softmin(_cost(x, y, s), h, s.eps, None)
    return step if math.isinf(s.rho) else s.damping(s.eps) * step


class _LastStep(torch.autograd.Function):
    """`_last_step` on a cost already made; its gradient to x needs no second cost matrix."""

    @staticmethod
    def forward(ctx: Any, x, y, cost, h, eps, p):  # noqa: D102
        ctx.save_for_backward(x, y, cost, h)
        ctx.eps, ctx.p = eps, p
        return _softmin(cost, h, eps, torch.empty_like(cost))

    @staticmethod
    def backward(ctx: Any, grad_f):  # noqa: D102
        x, y, cost, h = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            if torch.is_grad_enabled():  # create_graph: again by torch, from x
                f = _softmin(cost_of(x, y, ctx.p), h, ctx.eps, None)
                return torch.autograd.grad(f, x, grad_f, create_graph=True)[0], *[None] * 5
            # Rows of softmax sum to 1; dC/dx = x - y where p = 2, (x - y) / C where p = 1, 0 under the floor.
            scores = torch.sub(h[:, None, :], cost, alpha=1 / ctx.eps)
            weight = exp_or_zero_(scores.sub_(scores.amax(2, keepdim=True)))
            weight.mul_((grad_f / weight.sum(2))[:, :, None])
            if ctx.p == 1:  # the margin is for the rounding of the floor itself
                floor = math.sqrt(SMALLEST_SQUARE) * (1 + 1e-6)
                weight = torch.where(cost > floor, weight / cost, 0)
            return weighted_differences(weight, x, y), *[None] * 5


def solve(m: Measures, s: Settings) -> Tensor | tuple[Tensor, Tensor]:
    """The loss (B,), or the potentials (B, N) and (B, M)."""
    return terms(*m.tensors, s) if s.potentials else loss(*m.tensors, s)
