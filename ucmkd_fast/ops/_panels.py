"""`sinkhorn_loss` without the cost matrix, panel by panel or spread over processes: loops over sweeps, and autograd.

    memory: the histories, O(T (N + M)), y once more, and two panels (R, M)

A sweep makes the cost of a few rows, does what it is for, drops it and goes on to the next. What a device does in one
is in its `panels` (`Sweeps`); the loops are here, once for all devices. What a sweep leaves are sums over the columns,
(M,): so the same code serves rows that are spread over processes, with one sum over the processes behind each sweep
(`sharded.Shards`).

Where a loop may end is decided where the numbers are (`_control`). A host that does not know yet goes on: all that it
starts after the end changes nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .._native import _C
from . import _dual, _panels_twice, not_converged, relative_reg, transforms
from ._autograd import needed
from ._control import Flag, Relaxation
from ._devices import door
from ._held import Held
from ._problem import Gradients, Needs, Options, Problem, Solution, Upstream
from .sharded import Alone
from .sharded import Spread as Spread


class Sweeps(Protocol):
    """One problem on a device: what it does in one sweep over this process's rows, and what it keeps between them.

    Vectors over columns, (M,), may be padded by columns without mass. What columns gather is of all processes.
    """

    HOST: bool
    a: Tensor  # (N,) masses
    b: Tensor  # (M,)
    n_iter: Tensor  # (1,) int64, iterations that ran; the loop writes it
    sums: Tensor  # (M,) column sums of the plan; the loop writes them
    f: Tensor  # (N,) of the last iteration, as the next three from `plan` on
    g: Tensor  # (M,)
    alpha: Tensor  # (N,) <P_i, C_i> / sum(P_i)
    centred: Tensor  # (M,) sum_i P_ij (C_ij - alpha_i)
    grad_a: Tensor  # (N,) through the iterations
    grad_b: Tensor  # (M,) by shifts between them
    held: Held

    def __init__(self, p: Problem, options: Options, spread: Spread, history: bool):
        """Of all columns, with masses; ``history``: every iteration is kept. On the host refuses bad features."""

    def refuse(self, flags: Tensor, sums: tuple[Tensor, Tensor]) -> None:
        """Flags (1,) int32 that were raised against the masses, of these sums; and what speaks against W or labels."""

    def flag(self) -> Flag:
        """A new one, to end a loop with."""

    def start(self, f: Tensor) -> None:
        """The first sweep, from f (N,) before the first iteration."""

    def iterate(self, t: int, relaxation: Relaxation, stop: Flag | None) -> None:
        """G of what the columns gathered, f of g, and what the columns gather of that; nothing behind ``stop``."""

    def column_sums(self) -> Tensor:
        """Of the plan (M,) of the iteration that was made last."""

    def plan(self) -> Tensor:
        """The plan of the last iteration that counts: <P_i, C_i> (N,)."""

    def outcome(self, solution: Solution) -> Solution:
        """What is told of a solution: where the device refused input it is NaN."""

    def begin_back(self, weight: Tensor, dual: Tensor, first: Tensor) -> None:
        """Back through the iterations, of ``weight`` <P, C> + ``dual`` dual value, t from n_iter to ``first`` (1,)."""

    def back(self, t: int, runs: Tensor) -> tuple[Tensor, Tensor]:
        """From iteration t + 1, where there is one, to t: what is handed on (M,), and what it gives b (M,).

        Where not ``runs`` (1,) they are 0. Of exact marginals they are equal.
        """

    def begin_fixed_point(self, weight: Tensor, dual: Tensor, shares: Tensor) -> Tensor:
        """At the fixed point, one iteration, again and again: the column sums of the plan (M,).

        ``shares`` (M,), which the loop adds to, is read once it has ended.
        """

    def settle(self, change: Tensor) -> Tensor:
        """Reg times the adjoint of g (M,), of unbalanced transport, without what rounding added to its sum."""

    def fixed_point(self, share: Tensor, stop: Flag) -> Tensor:
        """From what goes to the gradient of b to the next adjoint (M,), both times reg."""

    def begin_gradient(self, weight: Tensor, needs: Needs) -> Any:
        """Memory for gradients of features and W, of ``weight`` <P, C> and of what went back before."""

    def add_gradient(self, into: Any, rows: slice) -> None:
        """Those of some rows, a panel: dC, and from it the rest."""

    def end_gradient(self, into: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, y and W, of this process's rows."""

    def free_rows(self) -> Tensor:
        """-reg LSE_j((g_j - C_ij) / reg) (N,)."""

    def free_columns(self) -> Tensor:
        """-reg LSE_i((f_i - C_ij) / reg) (M,)."""


def everywhere(p: Problem, dtype: torch.dtype, over: Alone) -> Problem:
    """With the columns of all processes, and masses where none were given."""
    x, y = p.features
    y = over.gather(y)
    a, b, labels = p.a, p.b, p.labels
    return p._replace(
        y=y,
        a=x.new_full((len(x),), 1 / over.total_rows(len(x)), dtype=dtype) if a is None else a,
        b=y.new_full((len(y),), 1 / len(y), dtype=dtype) if b is None else over.gather(b),
        labels=None if labels is None else over.gather(labels),
    ).contiguous()


class PanelSolver:
    """One problem: its solution and the gradient of it."""

    def __init__(self, p: Problem, options: Options, spread: Spread, history: bool):
        self.over, self.options, self._problem = spread.over, options, p
        every = everywhere(p, options.dtype, self.over)
        self._spread, self._n, self._m = spread, len(every.features[0]), len(every.features[1])
        self._sweeps: Sweeps = door(every.features[0]).Sweeps(every, options, spread, history)
        s = self._sweeps
        sums = self.over.add(s.a.double().sum()), s.b.double().sum()
        s.refuse(_flags_of_masses(s.a, s.b, sums, s.held.exact), sums)

    # Forward

    def solve(self) -> Solution:
        """The iterations of `sinkhorn`, and the sweep that its value takes."""
        s, options, tol, last = self._sweeps, self.options, self.options.tol, self.options.max_iter
        stop = s.flag() if tol > 0 else None
        relaxation = Relaxation(s.a, options)
        error, s.sums = s.a.new_zeros(()), torch.zeros_like(s.b)
        s.n_iter.fill_(last)
        s.start(self._first_potential())
        for t in range(1, last + 1):
            relaxation.begin(t)
            s.iterate(t, relaxation, stop)
            if stop is None and not relaxation.wanted and t < last:
                continue
            sums = s.column_sums()
            found = (sums - s.held.columns).abs().sum()
            relaxation.watch(found)
            if stop is None:
                error, s.sums = found, sums
                continue
            ended = stop.raised[0] > 0
            error, s.sums = torch.where(ended, error, found), torch.where(ended, s.sums, sums)
            s.n_iter.copy_(torch.where(ended, s.n_iter, t))
            stop.raised |= (found <= tol) & (relaxation.relaxed == 0)
            if t < last and stop.seen():
                break
        value, dual = self._values(s.plan())
        f, g = s.held.rows_of(s.f), self.over.mine(s.held.columns_of(s.g)[: self._m])
        return s.outcome(Solution(value, dual, f.clone(), g.clone(), error, s.n_iter[0].clone()))

    def _first_potential(self) -> Tensor:
        """F (N,) before the first iteration."""
        a, init_f = self._sweeps.a, self._problem.init_f
        if init_f is None:
            init_f = torch.full_like(a, -self.options.reg * math.log(self.over.total_rows(len(a))))
        return torch.where(a > 0, init_f, -torch.inf)

    def _values(self, row_value: Tensor) -> tuple[Tensor, Tensor]:
        """<P, C>, and the dual value of <P, C> + reg KL(P | a b'), in double."""
        s, reg, (rho_a, rho_b) = self._sweeps, self.options.reg, self.options.rho
        a, b, kept, f, g = (z.double() for z in (s.a, s.b, s.held.rows, *self._potentials))
        free_f, free_g = (torch.where(m > 0, z - reg * m.log(), 0) for m, z in ((a, f), (b, g)))
        paid_f = (_dual.paid(free_f, rho_a) * a).sum()
        here = self.over.add(torch.stack([row_value.double().sum(), paid_f, a.sum(), kept.sum()]))
        value, dual_f, sum_a, moved = here
        dual = dual_f + (_dual.paid(free_g, rho_b) * b).sum() - reg * (moved - sum_a * b.sum())
        return value.to(s.a.dtype), dual.to(s.a.dtype)

    @property
    def _potentials(self) -> tuple[Tensor, Tensor]:
        """F and g of the last iteration, with the shifts of unbalanced ones."""
        s = self._sweeps
        return s.held.rows_of(s.f), s.held.columns_of(s.g)

    # Backward

    def gradient(self, up: Upstream, needs: Needs) -> Gradients:
        """Of x, y and W where needed, and of the masses, given or not; of y and b of all processes."""
        s, options = self._sweeps, self.options
        none = s.a.new_zeros((), dtype=torch.float64)
        weight, dual = (none if z is None else z.double() for z in (up.value, up.dual))
        if options.grad == "envelope":
            grad_a, grad_b = self._envelope_masses(dual)
            weight = weight + dual
        else:
            tolerance = _C.adjoint_tolerance(s.a.dtype == torch.float64, options.tol)
            least = tolerance * options.reg * (weight.abs() + 2 * dual.abs())
            run = self._fixed_point if options.grad == "implicit" else self._unrolled
            grad_b = run(weight, dual, least)
            direct_a, direct_b = self._direct(dual)
            grad_a, grad_b = s.grad_a + direct_a, grad_b + s.grad_b + direct_b
        into = s.begin_gradient(weight, needs)
        for rows in self._spread.panels(self._n):
            s.add_gradient(into, rows)
        dx, dy, d_classes = s.end_gradient(into)
        dy = None if dy is None else self.over.add(dy)
        return Gradients(x=dx, y=dy, a=grad_a, b=grad_b[: self._m], class_cost=d_classes)

    @property
    def sizes(self) -> _panels_twice.Sizes:
        """What the second derivative is to know; on a device it waits for the number of iterations."""
        return _panels_twice.Sizes(self._spread.rows, int(self._sweeps.n_iter))

    def _direct(self, dual: Tensor) -> tuple[Tensor, Tensor]:
        """What the dual value gives the masses at constant potentials."""
        s, options = self._sweeps, self.options
        sum_a = self.over.add(s.a.double().sum()).to(s.a.dtype)
        sum_b = s.b.double().sum().to(s.a.dtype)
        f, g = self._potentials
        of_a, of_b = _dual.direct(f, s.a, sum_b, options, 0), _dual.direct(g, s.b, sum_a, options, 1)
        return dual * of_a, dual * of_b

    def _envelope_masses(self, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Where the plan is a constant: the potentials without the masses, which samples without mass have as well."""
        s, options = self._sweeps, self.options
        if s.HOST:
            lacks_a, lacks_b = bool((s.a == 0).any()), bool((s.b == 0)[: self._m].any())
        else:  # nobody here knows whether one of the given masses is 0
            lacks_a, lacks_b = self._problem.a is not None, self._problem.b is not None
        free_a = s.free_rows() if lacks_a else torch.zeros_like(s.a)
        free_b = s.free_columns() if lacks_b else torch.zeros_like(s.b)
        found, sums = [], (self.over.add(s.a.double().sum()), s.b.double().sum())
        for side, (m, z, free) in enumerate(zip((s.a, s.b), self._potentials, (free_a, free_b), strict=True)):
            if not s.held.exact:  # the softmin of the other side, which is shifted
                shift = (s.held.shift, -s.held.shift)[side].to(free.dtype)
                free = s.held.damping[side] * (free + shift)
            free = torch.where(m > 0, z - options.reg * m.log(), free)
            found.append(dual * _dual.of_envelope(free, sums[1 - side].to(m.dtype), options, side))
        return found[0], found[1]

    def _unrolled(self, weight: Tensor, dual: Tensor, least: Tensor) -> Tensor:
        """Back through the iterations; the gradient of b.

        Adjoints of the potentials, over the masses, are averaged by each half-step: their maximum does not grow, so t
        iterations that remain change Z by at most 2 t times it (csrc/sinkhorn/adjoint.cpp).
        """
        s = self._sweeps
        done, first, grad_b = s.flag(), torch.ones_like(s.n_iter), torch.zeros_like(s.b)
        s.begin_back(weight, dual, first)
        for t in range(int(s.n_iter) if s.HOST else self.options.max_iter, 0, -1):
            runs = (t <= s.n_iter) & (done.raised == 0)
            change, of_b = s.back(t, runs)
            grad_b += of_b
            ends = runs & (2 * t * change.abs().max().double() <= least)
            first.copy_(torch.where(ends, t, first))
            done.raised |= ends
            if done.seen():
                break
        return grad_b

    def _fixed_point(self, weight: Tensor, dual: Tensor, least: Tensor) -> Tensor:
        """Back through the iteration at the fixed point, again and again until it has converged; the gradient of b."""
        s, reg, exact = self._sweeps, self.options.reg, self.options.unbalanced is None
        done, shares = s.flag(), torch.zeros_like(s.b)
        grad_b = shares if exact else torch.zeros_like(s.b)
        change = weight * s.centred + reg * dual * (s.held.columns - s.sums)
        mass = s.begin_fixed_point(weight, dual, shares)
        total = mass.double().sum()
        before = torch.zeros_like(least)
        for _ in range(_C.max_sweeps(self.options.max_iter)):
            if exact:
                # (f + c, g - c) is the same plan: adjoints must sum to zero, and drift would never decay.
                change = change - (change.double().sum() / total).to(change.dtype) * mass
            else:
                change = s.settle(change)
                grad_b += torch.where(s.b > 0, change / s.b, 0)
            share = torch.where((mass > 0) & (done.raised == 0), s.held.damping[1] * change / mass, 0)
            shares += share
            size = share.abs().max().double()
            rate = torch.where((before > 0) & (size < before), size / before, _C.UNKNOWN_RATE)
            before = size
            done.raised |= 2 * size / (1 - rate) <= least
            if done.seen():
                break
            change = s.fixed_point(share, done)
        not_converged.report_gradient(done.raised == 0)
        return grad_b


def _flags_of_masses(a: Tensor, b: Tensor, sums: tuple[Tensor, Tensor], exact: bool) -> Tensor:
    """Flags (1,) int32 of csrc/sinkhorn/cuda.h for the masses of the whole problem, and their sums."""
    sum_a, sum_b = sums
    bad = ~((a >= 0).all() & (b >= 0).all() & sum_a.isfinite() & sum_b.isfinite())
    none = ~((sum_a > 0) & (sum_b > 0))
    differ = exact & ~((sum_a - sum_b).abs() <= _C.rules(a.dtype == torch.float64).sums_gap * (sum_a + sum_b))
    flags = bad * _C.FLAGS["bad_mass"] + none * _C.FLAGS["no_mass"] + differ * _C.FLAGS["sums"]
    return flags.to(torch.int32).view(1)


# Calls and autograd


class _OfPanels(NamedTuple):
    """A call of `PanelSinkhorn`."""

    p: Problem
    options: Options
    spread: Spread
    needs: Needs


class PanelSinkhorn(torch.autograd.Function):
    """Of features x (N, D), y (M, D), or of this process's rows of them: the `Solution`; potentials are constants."""

    @staticmethod
    def forward(ctx: Any, call: _OfPanels, *leaves: Tensor) -> tuple[Tensor, ...]:
        """Any layout."""
        p, options, spread, needs = call
        solver = PanelSolver(p.detached(), options, spread, bool(leaves) and options.grad == "unrolled")
        found = solver.solve()
        if leaves:
            ctx.mark_non_differentiable(found.f, found.g, found.marginal_error, found.n_iter)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*p)  # autograd then sees that nobody wrote to them
            ctx.solver, ctx.needs = solver, needs
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of features, masses and W."""
        solver, p = ctx.solver, Problem(*ctx.saved_tensors)
        return None, *_panels_twice.gradients(solver, p, ctx.needs, Upstream(*upstream[:2]))


@transforms.not_compiled
def solve(problem: Problem, options: Options, spread: Spread) -> Solution:
    """With the cost of ``spread.rows`` rows at a time; no plan, and init_g takes no part."""
    p = transforms.alive(problem)
    require_eager(p.x, p.y, p.a, p.b, p.class_cost)
    needs, wanted = needed(p)
    return Solution(*transforms.applied(PanelSinkhorn)(_OfPanels(p, options, spread, needs), *wanted))


@transforms.not_compiled
def mean_cost(problem: Problem, options: Options, spread: Spread) -> Tensor:
    """The mean () of `relative_reg.mean_cost` over the rows of all processes, panel by panel."""
    problem = transforms.alive(problem)
    require_eager(problem.x, problem.y, problem.class_cost)
    p, over = everywhere(problem.detached()._replace(a=None, b=None), options.dtype, spread.over), spread.over
    x, _ = p.features
    total = count = torch.zeros((), dtype=torch.float64, device=x.device)
    for matrix in door(x).cost_panels(p, options, spread):
        more = relative_reg.sums(matrix)
        total, count = total + more[0], count + more[1]
    mean = relative_reg.ratio(*over.add(torch.stack([total, count])))
    return over.greatest(mean).to(options.dtype)  # the same bits everywhere


def require_eager(*tensors: Tensor | None) -> None:
    """Raise NotImplementedError where something other than plain autograd is at work."""
    if not transforms.direct(*tensors):
        raise NotImplementedError(
            "costs made panel by panel or spread over processes are not supported under functorch transforms, forward "
            "mode and dispatch modes: raise memory_budget, or call sinkhorn_loss outside of them"
        )
