"""The gradient of a loss made panel by panel, so that it can be differentiated again.

For that it is written down here once more, in torch's operations, as a function that never holds more than a panel of
the cost; its derivative in a direction, by torch's forward mode, is the Hessian times that direction.

    memory: O(T (N + M)), eight vectors per iteration, and some panels (R, M); where distances are taken from
    differences, of D times fewer rows
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..reference import sinkhorn as reference
from . import _dual, transforms
from ._autograd import differentiable, given_back, of_all
from ._by_torch import Marked, half_step, plan_of
from ._classes import by_label
from ._problem import Gradients, Needs, Options, Problem, Upstream
from .cost import NORMALISED
from .sharded import Alone


class Sizes(NamedTuple):
    """How the sweeps go: both known once the loss is."""

    rows: int  # of a panel of the first derivative
    n_iter: int


class Solver(Protocol):
    """What `_panels.PanelSolver` is used for here."""

    over: Alone
    options: Options

    @property
    def sizes(self) -> Sizes:
        """Of its sweeps."""

    def gradient(self, up: Upstream, needs: Needs) -> Gradients:
        """The first derivative."""


class _Call(NamedTuple):
    """Of `PanelGradient`."""

    solver: Solver
    p: Problem
    needs: Needs


def gradients(solver: Solver, p: Problem, needs: Needs, up: Upstream) -> tuple[Tensor | None, ...]:
    """Gradients of the tensors that need one, in their order; with a graph where autograd records."""
    if not torch.is_grad_enabled():
        return _gradients(_Call(solver, p, needs), up)
    if not solver.over.alone:
        raise NotImplementedError(
            "double backward is not built for rows that are spread over processes (group=)"
        )
    transforms.refuse_second_order(solver.options.grad)
    if solver.options.shifted:
        raise NotImplementedError(
            "double backward of unbalanced transport panel by panel is not built with tol > 0: give tol=0, or raise "
            "memory_budget"
        )
    leaves = (z for z, need in zip(differentiable(p), needs, strict=True) if need)
    return tuple(transforms.applied(PanelGradient)(_Call(solver, p, needs), up.value, up.dual, *leaves))


def _gradients(call: _Call, up: Upstream) -> tuple[Tensor | None, ...]:
    solver, p, needs = call
    over = solver.over
    found = solver.gradient(up, needs._replace(y=over.wants_y(needs.y)))
    if found.y is not None and needs.y:
        found = found._replace(y=over.mine(found.y))
    if found.b is not None:
        found = found._replace(b=over.mine(found.b))
    return given_back(of_all(found, p), needs)[1:]


class PanelGradient(torch.autograd.Function):
    """Upstream gradients () of value and dual value, and the tensors that need one: their gradients."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """By the kernels, as without a graph."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*call.p, *tensors[:2])
        ctx.call = call._replace(p=Problem())
        return _gradients(call, Upstream(*tensors[:2]))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Derivatives of both values in that direction, and the Hessian times it."""
        if torch.is_grad_enabled():
            raise NotImplementedError("a third derivative is not built for costs made panel by panel")
        *tensors, value, dual = ctx.saved_tensors
        p, (solver, _, needs) = Problem(*tensors), ctx.call
        moves = iter(upstream)
        by_need = zip(needs, differentiable(p), strict=True)
        direction = Gradients(None, *(_move(next(moves), z) if need else None for need, z in by_need))
        found = directional(p.detached(), Upstream(value, dual), direction, solver.options, solver.sizes)
        _, *of_leaves = given_back(of_all(found.gradient, p), needs)
        return None, None if value is None else found.value, None if dual is None else found.dual, *of_leaves


def _move(move: Tensor | None, z: Tensor | None) -> Tensor | None:
    return torch.zeros_like(z) if move is None and z is not None else move


class Directional(NamedTuple):
    """What moves when the inputs do."""

    value: Tensor  # () the derivative of the value in the direction
    dual: Tensor  # () of the dual value
    gradient: Gradients  # the Hessian times the direction


def directional(
    p: Problem, up: Upstream, direction: Gradients, options: Options, sizes: Sizes
) -> Directional:
    """Derivatives in a direction: of both values, and of the gradient of ``up.value`` times one, ``up.dual`` the other.

    Args:
        p: the problem, detached.
        up: weights () of value and dual value; None is 0.
        direction: where the inputs move that need a gradient.
        options: with ``grad="unrolled"``.
        sizes: rows and iterations.
    """
    names = [name for name, move in direction._asdict().items() if move is not None]
    given = tuple(getattr(p, name).to(options.dtype) for name in names)
    moves = tuple(getattr(direction, name).to(options.dtype) for name in names)

    def all_of(*tensors: Tensor) -> tuple[Tensor, ...]:
        explicit = _Explicit(p._replace(**dict(zip(names, tensors, strict=True))), options, sizes)
        value, dual, gradient = explicit.values_and_gradient(up)
        return value, dual, *(getattr(gradient, name) for name in names)

    both: Any = torch.func.jvp(all_of, given, moves)
    value, dual, *moved = both[1]
    return Directional(value, dual, Gradients(**dict(zip(names, moved, strict=True))))


class _Explicit:
    """Values and gradient of one problem, by sweeps over panels of rows; differentiable in forward mode.

    A sweep does what it is for with the rows of a panel, and at once what follows for the columns, as
    csrc/sinkhorn/steps.cuh does.
    """

    def __init__(self, p: Problem, options: Options, sizes: Sizes):
        x, y = (z.to(options.dtype) for z in p.features)
        self._given, self._classes = (x, y), p.classes
        self._unit = options.metric in NORMALISED
        self._x, self._y = (reference.normalise(z) if self._unit else z for z in (x, y))
        self._metric, self._reg, self._n_iter = options.known_metric, options.reg, sizes.n_iter
        self._options, self._rho = options, options.rho
        n, m, d = len(x), len(y), x.shape[-1]
        a = x.new_full((n,), 1 / n) if p.a is None else p.a
        b = x.new_full((m,), 1 / m) if p.b is None else p.b
        self._has_a, self._has_b = a.detach() > 0, b.detach() > 0
        # What has no mass takes no part, wherever it moves.
        self._a, self._b = torch.where(self._has_a, a, 0), torch.where(self._has_b, b, 0)
        self._safe_a, self._safe_b = torch.where(self._has_a, a, 1), torch.where(self._has_b, b, 1)
        self._start = (
            p.init_f.detach() if p.init_f is not None else torch.full_like(a, -self._reg * math.log(n))
        )
        self._rows = max(1, sizes.rows if self._metric == "cosine" else sizes.rows // d)

    def _distances(self, x: Tensor, y: Tensor) -> Tensor:
        """Of rows, of unit length where the metric is of such."""
        if self._metric == "cosine":
            return (1 - x @ y.mT).clamp_min(0)
        return reference.cost(x, y, "l2" if self._unit else self._metric)

    def _panels(self) -> Iterator[tuple[slice, Marked]]:
        """Rows and their costs, with what takes part."""
        for begin in range(0, len(self._x), self._rows):
            rows = slice(begin, begin + self._rows)
            cost = self._distances(self._x[rows], self._y)
            if self._classes is not None:
                table, labels = self._classes
                cost = cost + by_label(table[rows], labels)
            pairs = cost.detach() != math.inf
            a, has = self._safe_a[rows], self._has_a[rows]
            yield rows, Marked(torch.where(pairs, cost, 0), a, self._safe_b, has, self._has_b, pairs)

    # Forward

    def _iterations(self) -> tuple[list[Tensor], list[Tensor]]:
        """F_0 to f_T, and g_1 to g_T behind a g_0 that nobody reads."""
        f, g = [torch.where(self._has_a, self._start, 0)], [torch.zeros_like(self._safe_b)]
        for t in range(self._n_iter + 1):
            columns, parts = _LogSums(self._safe_b), []
            for rows, m in self._panels():
                mine = f[0][rows] if t == 0 else half_step(m, g[t], self._reg, self._rho[0])
                parts.append(mine)
                if t < self._n_iter:
                    terms = (mine[:, None] - m.cost) / self._reg
                    columns.add(torch.where(m.rows[:, None] & m.pairs, terms, -math.inf))
            if t > 0:
                f.append(torch.cat(parts))
            if t < self._n_iter:
                damping = reference.damping(self._rho[1], self._reg)
                next_g = self._reg * (self._safe_b.log() - damping * columns.value())
                g.append(torch.where(self._has_b, next_g, 0))
        return f, g

    # Backward

    def values_and_gradient(self, up: Upstream) -> tuple[Tensor, Tensor, Gradients]:
        """Value, dual value, and the gradient of their sum with weights ``up``."""
        reg, last = self._reg, self._n_iter
        weight, pull = (self._a.new_zeros(()) if u is None else u for u in (up.value, up.dual))
        f, g = self._iterations()
        value = self._a.new_zeros(())
        df, dg = [torch.zeros_like(f[0]) for _ in f], [torch.zeros_like(g[0]) for _ in g]
        dg[last] = pull * torch.where(self._has_b, _dual.pull(g[last], self._safe_b, self._options, 1), 0)
        pull_f = pull * torch.where(self._has_a, _dual.pull(f[last], self._safe_a, self._options, 0), 0)
        for t in range(last, 0, -1):
            parts = []
            for rows, m in self._panels():
                plan = plan_of(m, f[t][rows], g[t], reg)
                if t == last:
                    of_cost = plan * m.cost
                    value, dg[t] = value + of_cost.sum(), dg[t] + weight / reg * of_cost.sum(0)
                    mine = weight / reg * of_cost.sum(1) + pull_f[rows]
                else:
                    mine = -(plan_of(m, f[t][rows], g[t + 1], reg) @ (dg[t + 1] / self._over_b(g[t + 1])))
                parts.append(mine)
                dg[t] = dg[t] - mine / self._over_a(f[t])[rows] @ plan
            df[t] = torch.cat(parts)
        grad_a, grad_b = self._direct(f[last], g[last], pull)
        grad_a = grad_a + torch.where(self._has_a, reg * sum(df) / self._safe_a, 0)
        grad_b = grad_b + torch.where(self._has_b, reg * sum(dg) / self._safe_b, 0)
        sums = self._sums((f, g), (df, dg), weight)
        return value, self._dual_value(f[last], g[last]), Gradients(a=grad_a, b=grad_b, **sums)

    def _over_a(self, f: Tensor) -> Tensor:
        """What the adjoint of f (N,) is handed on over: the masses, or what an undamped half-step would have left."""
        return _dual.kept(f, self._safe_a, self._options, 0) / reference.damping(self._rho[0], self._reg)

    def _over_b(self, g: Tensor) -> Tensor:
        """The same of g (M,)."""
        return _dual.kept(g, self._safe_b, self._options, 1) / reference.damping(self._rho[1], self._reg)

    def _dual_value(self, f: Tensor, g: Tensor) -> Tensor:
        reg, a, b, (rho_a, rho_b) = self._reg, self._a, self._b, self._rho
        free_f, free_g = f - reg * self._safe_a.log(), g - reg * self._safe_b.log()
        paid = (_dual.paid(free_f, rho_a) * a).sum() + (_dual.paid(free_g, rho_b) * b).sum()
        moved = torch.where(self._has_a, _dual.kept(f, self._safe_a, self._options, 0), 0)
        return paid - reg * (moved.sum() - a.sum() * b.sum())

    def _direct(self, f: Tensor, g: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
        """What the dual value gives the masses at constant potentials."""
        sides = (f, self._safe_a, self._has_a, self._b, 0), (g, self._safe_b, self._has_b, self._a, 1)
        found = [
            torch.where(has, pull * _dual.direct(z, mass, other.sum(), self._options, side), 0)
            for z, mass, has, other, side in sides
        ]
        return found[0], found[1]

    def _sums(self, potentials: Histories, adjoints: Histories, weight: Tensor) -> dict[str, Tensor | None]:
        """DC of one panel at a time, and what it gives the features and W."""
        reg, last, (f, g), (df, dg) = self._reg, self._n_iter, potentials, adjoints
        dx, dy = [], torch.zeros_like(self._y)
        d_classes: list[Tensor] = []
        for rows, m in self._panels():
            plan = plan_of(m, f[last][rows], g[last], reg)
            d_cost = weight * plan * (1 - m.cost / reg)
            for t in range(last, 0, -1):
                d_cost = d_cost + plan_of(m, f[t][rows], g[t], reg) * (df[t] / self._over_a(f[t]))[rows, None]
                d_cost = d_cost + plan_of(m, f[t - 1][rows], g[t], reg) * (dg[t] / self._over_b(g[t]))
            of_x, of_y = _chain(self._distances, (self._x[rows], self._y), d_cost)
            dx.append(of_x)
            dy = dy + of_y
            if self._classes is not None:
                table, labels = self._classes
                d_classes += _chain(partial(by_label, labels=labels), (table[rows],), d_cost)
        of_x, of_y = torch.cat(dx), dy
        if self._unit:
            (of_x,), (of_y,) = (
                _chain(reference.normalise, (z,), grad)
                for z, grad in zip(self._given, (of_x, of_y), strict=True)
            )
        return {"x": of_x, "y": of_y, "class_cost": torch.cat(d_classes) if d_classes else None}


Histories = tuple[list[Tensor], list[Tensor]]  # (N,) and (M,) of every iteration


class _LogSums:
    """The logarithm of sums of exponentials over the rows, (M,), each against the largest term so far."""

    def __init__(self, like: Tensor):
        self._top = torch.full_like(like.detach(), -math.inf)
        self._total = torch.zeros_like(like)

    def add(self, terms: Tensor) -> None:
        """Terms (R, M)."""
        highest = torch.maximum(self._top, terms.detach().amax(0))
        shift = torch.where(highest > -math.inf, highest, 0)
        self._total = self._total * (self._top - shift).exp() + (terms - shift).exp().sum(0)
        self._top = highest

    def value(self) -> Tensor:
        """(M,); 0 where there was nothing."""
        reached = self._total.detach() > 0
        return torch.where(reached, self._top, 0) + torch.where(reached, self._total, 1).log()


def _chain(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of inputs, in a way that forward mode goes through."""
    found: Any = torch.func.vjp(function, *inputs)
    gradients: tuple[Tensor, ...] = found[1](grad)
    return gradients
