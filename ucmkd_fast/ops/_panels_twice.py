"""The gradient of a loss made panel by panel, so that it can be differentiated again.

For that it is written down here once more, in torch's operations, as a function that never holds more than a panel of
the cost; its derivative in a direction, by torch's forward mode, is the Hessian times that direction.

    memory: O(T (N + M)), eight vectors per iteration, and some panels (R, M); where distances are taken from
    differences, of D times fewer rows
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..reference import sinkhorn as reference
from . import _dual, transforms
from ._autograd import differentiable, given_back, of_all
from ._by_torch import Marked, half_step, plan_of
from ._problem import Gradients, Needs, Options, Problem, Upstream
from .sharded import Alone

_MATRICES = 8  # of a panel that are alive at the same time


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
        direction = Direction(
            *(
                _move(next(moves), z) if need else None
                for need, z in zip(needs, differentiable(p), strict=True)
            )
        )
        detached = Problem(*(None if z is None else z.detach() for z in p))
        found = directional(detached, Upstream(value, dual), direction, solver.options, solver.sizes)
        _, *of_leaves = given_back(of_all(found.gradient, p), needs)
        return None, None if value is None else found.value, None if dual is None else found.dual, *of_leaves


def _move(move: Tensor | None, z: Tensor | None) -> Tensor | None:
    return torch.zeros_like(z) if move is None and z is not None else move


class Direction(NamedTuple):
    """Where the inputs move that need a gradient, in the order of `Needs`; None: it needs none."""

    x: Tensor | None
    y: Tensor | None
    a: Tensor | None
    b: Tensor | None
    class_cost: Tensor | None


class Directional(NamedTuple):
    """What moves when the inputs do."""

    value: Tensor  # () the derivative of the value in the direction
    dual: Tensor  # () of the dual value
    gradient: Gradients  # the Hessian times the direction


def directional(
    p: Problem, up: Upstream, direction: Direction, options: Options, sizes: Sizes
) -> Directional:
    """Derivatives in a direction: of both values, and of the gradient of ``up.value`` times one, ``up.dual`` the other.

    Args:
        p: the problem, detached.
        up: weights () of value and dual value; None is 0.
        direction: one tensor for each that needs a gradient.
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
    """Values and gradient of one problem, by sweeps over panels of rows; differentiable in forward mode."""

    def __init__(self, p: Problem, options: Options, sizes: Sizes):
        x, y = p.features
        self._x, self._y, self._classes = x.to(options.dtype), y.to(options.dtype), p.classes
        self._metric, self._reg, self._n_iter = options.known_metric, options.reg, sizes.n_iter
        n, m, d = len(x), len(y), x.shape[-1]
        a = self._x.new_full((n,), 1 / n) if p.a is None else p.a
        b = self._x.new_full((m,), 1 / m) if p.b is None else p.b
        self._has_a, self._has_b = a.detach() > 0, b.detach() > 0
        # What has no mass takes no part, wherever it moves.
        self._a, self._b = torch.where(self._has_a, a, 0), torch.where(self._has_b, b, 0)
        self._safe_a, self._safe_b = torch.where(self._has_a, a, 1), torch.where(self._has_b, b, 1)
        self._start = (
            p.init_f.detach() if p.init_f is not None else torch.full_like(a, -self._reg * math.log(n))
        )
        by_products = self._metric == "cosine"
        self._rows = max(1, sizes.rows // (_MATRICES * (1 if by_products else d)))

    # Panels

    def _slices(self) -> Iterator[slice]:
        for begin in range(0, len(self._x), self._rows):
            yield slice(begin, begin + self._rows)

    def _distances(self, x: Tensor, y: Tensor) -> Tensor:
        return reference.cost(x, y, self._metric)

    def _panels(self) -> Iterator[tuple[slice, Marked]]:
        """Rows and their costs, with what takes part."""
        for rows in self._slices():
            cost = self._distances(self._x[rows], self._y)
            if self._classes is not None:
                table, labels = self._classes
                cost = cost + table[rows][:, labels]
            pairs = cost.detach() != math.inf
            a, has = self._safe_a[rows], self._has_a[rows]
            yield rows, Marked(torch.where(pairs, cost, 0), a, self._safe_b, has, self._has_b, pairs)

    # Forward

    def _columns(self, f: Tensor) -> Tensor:
        """G (M,) from f (N,): log-sums over the panels, each against the largest term so far."""
        top = torch.full_like(self._safe_b.detach(), -math.inf)
        total = torch.zeros_like(self._safe_b)
        for rows, m in self._panels():
            terms = (f[rows][:, None] - m.cost) / self._reg
            terms = torch.where(m.rows[:, None] & m.pairs, terms, -math.inf)
            highest = torch.maximum(top, terms.detach().amax(0))
            shift = torch.where(highest > -math.inf, highest, 0)
            total = total * (top - shift).exp() + (terms - shift).exp().sum(0)
            top = highest
        reached = total.detach() > 0
        log_sum = torch.where(reached, top, 0) + torch.where(reached, total, 1).log()
        return torch.where(self._has_b, self._reg * (self._safe_b.log() - log_sum), 0)

    def _row_potentials(self, g: Tensor) -> Tensor:
        return torch.cat([half_step(m, g, self._reg) for _, m in self._panels()])

    def _iterations(self) -> tuple[list[Tensor], list[Tensor]]:
        """F_0 to f_T, and g_1 to g_T behind a g_0 that nobody reads."""
        f, g = [torch.where(self._has_a, self._start, 0)], [torch.zeros_like(self._safe_b)]
        for _ in range(self._n_iter):
            g.append(self._columns(f[-1]))
            f.append(self._row_potentials(g[-1]))
        return f, g

    # Backward, as csrc/sinkhorn/adjoint_owned.cu has it

    def values_and_gradient(self, up: Upstream) -> tuple[Tensor, Tensor, Gradients]:
        """Value, dual value, and the gradient of their sum with weights ``up``."""
        reg, last = self._reg, self._n_iter
        weight, pull = (self._a.new_zeros(()) if u is None else u for u in (up.value, up.dual))
        f, g = self._iterations()
        value = self._a.new_zeros(())
        df, dg = [torch.zeros_like(f[0]) for _ in f], [torch.zeros_like(g[0]) for _ in g]
        parts = []
        for rows, m in self._panels():
            of_cost = plan_of(m, f[last][rows], g[last], reg) * m.cost
            value, dg[last] = value + of_cost.sum(), dg[last] + weight / reg * of_cost.sum(0)
            parts.append(weight / reg * of_cost.sum(1))
        df[last] = torch.cat(parts) + pull * self._a
        dg[last] = dg[last] + pull * self._b
        grad_a, grad_b = self._direct(f[last], g[last], pull)
        for t in range(last, 0, -1):
            for rows, m in self._panels():
                softmax = plan_of(m, f[t][rows], g[t], reg) / m.a[:, None]
                dg[t] = dg[t] - df[t][rows] @ softmax
            if t > 1:  # f_0 is given
                softmaxes = (plan_of(m, f[t - 1][rows], g[t], reg) / m.b for rows, m in self._panels())
                df[t - 1] = torch.cat([-(softmax @ dg[t]) for softmax in softmaxes])
            grad_a = grad_a + torch.where(self._has_a, reg * df[t] / self._safe_a, 0)
            grad_b = grad_b + torch.where(self._has_b, reg * dg[t] / self._safe_b, 0)
        sums = self._sums(f, g, df, dg, weight)
        return value, self._dual_value(f[last], g[last]), Gradients(a=grad_a, b=grad_b, **sums)

    def _dual_value(self, f: Tensor, g: Tensor) -> Tensor:
        reg = self._reg
        a, b = self._a, self._b
        free = ((f - reg * self._safe_a.log()) * a).sum() + ((g - reg * self._safe_b.log()) * b).sum()
        return free - reg * (a.sum() - a.sum() * b.sum())

    def _direct(self, f: Tensor, g: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
        """What the dual value gives the masses at constant potentials."""
        sides = (f, self._safe_a, self._has_a, self._b, 0), (g, self._safe_b, self._has_b, self._a, 1)
        found = [
            torch.where(has, pull * _dual.direct(z, mass, other.sum(), self._reg, side), 0)
            for z, mass, has, other, side in sides
        ]
        return found[0], found[1]

    def _sums(
        self, f: list[Tensor], g: list[Tensor], df: list[Tensor], dg: list[Tensor], weight: Tensor
    ) -> dict[str, Tensor | None]:
        """DC of one panel at a time, and what it gives the features and W."""
        reg, last = self._reg, self._n_iter
        dx, dy, d_classes = [], torch.zeros_like(self._y), []
        for rows, m in self._panels():
            plan = plan_of(m, f[last][rows], g[last], reg)
            d_cost = weight * plan * (1 - m.cost / reg)
            for t in range(last, 0, -1):
                d_cost = d_cost + plan_of(m, f[t][rows], g[t], reg) * (df[t][rows] / m.a)[:, None]
                d_cost = d_cost + plan_of(m, f[t - 1][rows], g[t], reg) * (dg[t] / m.b)
            chain: Any = torch.func.vjp(self._distances, self._x[rows], self._y)
            of_x, of_y = chain[1](d_cost)
            dx.append(of_x)
            dy = dy + of_y
            if self._classes is not None:
                table, labels = self._classes
                d_classes.append(torch.zeros_like(table[rows]).index_add(1, labels, d_cost))
        return {"x": torch.cat(dx), "y": dy, "class_cost": torch.cat(d_classes) if d_classes else None}
