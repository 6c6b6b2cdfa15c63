"""Costs made panel by panel on a GPU: what one sweep over the rows does (`Sweeps` of `_panels`).

A sweep visits every panel of rows: one matrix product by torch, its epilogue, and two launches of
csrc/sinkhorn/panel.cu; or, of few features, all rows at once, whose costs are made where they are read
(csrc/sinkhorn/streamed.cu). In the log domain throughout. What the columns gathered is put together by a few operations
on (M,), in a fixed order, and over the processes where rows are spread.

Nothing waits for the device. Launches after the flag that ends a loop do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._native import _C
from .. import not_converged
from .._addresses import address
from .._classes import has_bad_values
from .._control import Flag, Relaxation
from .._held import Held, Left
from .._problem import Needs, Options, Problem, Solution
from .._products import add_both
from ..cost import BY_DIFFERENCE, SUMMED
from ..sharded import Alone, Spread
from . import _device as device
from . import costs
from .panel_costs import Panels
from .panels_back import FixedPoint, Unrolled
from .sinkhorn import Place, Saved, call_of

# Sweep of csrc/sinkhorn/cuda.h
START, ITERATE, PLAN, BACK, COLUMN_MASS, FIXED_POINT = range(6)
_LOG_SUMS = (START, ITERATE)
_BLOCKS = 1024  # of a column pass: enough to fill any device
_LOOK_EVERY = 8  # sweeps, between two looks at a flag that all processes must answer alike


class DeviceFlag(Flag):
    """One that the host never waits for: it looks at a copy that may have arrived."""

    def __init__(self, like: Tensor, over: Alone):
        super().__init__(like)
        self._over, self._looks = over, 0
        self._copy: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def seen(self) -> bool:
        self._looks += 1
        if not self._over.alone:  # a process that stops alone would leave the others waiting
            return self._looks % _LOOK_EVERY == 0 and bool(self.raised)
        if not self.raised.is_cuda:
            return bool(self.raised)
        if torch.cuda.is_current_stream_capturing():
            return False
        if self._event is None:
            if self._copy is None:
                self._copy = torch.zeros(1, dtype=torch.int32, pin_memory=True)
            self._copy.copy_(self.raised, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(self.raised.device))
        elif self._event.query():
            self._event = None
            return bool(self._copy)
        return False


class Sweeps:
    """As `Sweeps` of `_panels`, which says what the methods do."""

    HOST = False

    def __init__(self, p: Problem, options: Options, spread: Spread, history: bool):
        assert p.a is not None and p.b is not None
        not_converged.flush_warnings()
        self.a, self.b, self.reg = p.a, p.b, options.reg
        self.options, self._over, self._history = options, spread.over, history
        self.held = Held(options, self.a, self.b, spread.over)
        self.grad_b = torch.zeros_like(self.b)
        self._panels = Panels(p, options, spread)
        n, m = self._panels.n, self._panels.m
        # What the backward needs, in one block, and views of it.
        shape, steps = (1, n, m), options.max_iter if history else 1
        at = Saved(shape, options, history)
        saved = device.empty(self.a, at.size)
        self.f, self.g, self._row_value = (device.empty(self.a, size) for size in (n, m, n))
        self._hist_f = saved[at.hist_f :][: (steps + int(history)) * n].view(steps + int(history), n)
        self._hist_g = saved[at.hist_g :][: steps * m].view(steps, m)
        self._log_g = saved[at.log_g :][: steps * m].view(steps, m)
        self.alpha = saved[at.alpha :][:n]
        if not self.held.exact:  # what rows and columns kept, and their last potentials: for the kernels
            places = (at.kept_a, n), (at.kept_b, m), (at.last_f, n), (at.last_g, m)
            self._of_held = [saved[start:][:size] for start, size in places]
        self._at_shift = torch.zeros(2, dtype=torch.float64, device=saved.device)  # what the visit points to
        self.n_iter = saved[at.n_iter : at.n_iter + 2].view(torch.int64)[:1]
        self._flags = saved[at.flags : at.flags + 2].view(torch.int32)[:1]
        self._place = Place(saved, self.f, self.g, shape, history)
        self._call = self._new_call()
        self.sums = self.centred = self.grad_a = self.a
        self._back: Unrolled | FixedPoint | None = None
        self._gathered = self.b  # by the columns, in the last sweep
        self._t = 0  # of the iteration that was made last
        self._pointed: Any = ()  # memory that the call points to
        chosen = device.kernels.cuda_stream_plan(self._panels.whole, device.tensor_cores)
        streams, tensor_cores, row_groups, groups = chosen
        asked = streams if device.streamed is None else device.streamed
        self._streams = asked and not spread.keep and n > 0
        if not self._streams:
            row_groups, groups = 0, max(1, min(32, self._panels.rows, _BLOCKS // -(-m // 256)))
        self._states, self._parts = device.empty(self.a, groups, m, 2), device.empty(self.a, row_groups, n, 2)
        self._values = device.empty(self.a, n if self._streams else self._panels.rows, 3)
        self._visit = device.kernels.CudaPanel()
        self._visit.tensor_cores = tensor_cores
        self._visit.groups, self._visit.row_groups, self._visit.parts = (
            groups,
            row_groups,
            address(self._parts),
        )
        self._visit.states, self._visit.values = address(self._states), address(self._values)
        self._visit.row_value = address(self._row_value)

    def _new_call(self) -> Any:
        return call_of(Problem(a=self.a, b=self.b), self.options, self._place)

    def _sweep(self, kind: int, t: int = 0, stop: Flag | None = None, call: Any = None) -> Tensor:
        """Visit all rows; what the columns gathered, over all processes (M,): sums, or logarithms of sums."""
        call, visit = call or self._call, self._visit
        visit.sweep, visit.t, visit.stop = kind, t, address(None if stop is None else stop.raised)
        if self._streams:
            call.first_row, call.rows = 0, self._panels.n
            device.kernels.cuda_streamed(call, visit, self._panels.whole)
        else:
            self._visit_panels(call, kind)
        top, rest = self._states.unbind(-1)
        if kind not in _LOG_SUMS:
            return self._over.add(top.sum(0))
        highest = self._over.greatest(top.amax(0))
        total = self._over.add(torch.where(top > -torch.inf, (top - highest).exp() * rest, 0).sum(0))
        return torch.where(total > 0, highest + total.log(), -torch.inf)

    def _visit_panels(self, call: Any, kind: int) -> None:
        self._states.zero_()
        if kind in _LOG_SUMS:
            self._states[..., 0].fill_(-torch.inf)
        for rows, matrix in self._panels.each():
            _at(call, rows, matrix)
            device.kernels.cuda_panel(call, self._visit)

    # Forward

    def refuse(self, flags: Tensor, sums: tuple[Tensor, Tensor]) -> None:
        if (classes := self._panels.classes) is not None:
            bad = has_bad_values(classes.cost, classes.labels)
            flags = flags | _C.FLAGS["bad_cost"] * bad.to(torch.int32)
        self._flags.copy_(flags)

    def flag(self) -> DeviceFlag:
        return DeviceFlag(self.a, self._over)

    def start(self, f: Tensor) -> None:
        self._hist_f[0] = f
        self._gathered = self._sweep(START)
        if self._panels.classes is not None:
            # A column all of whose pairs are forbidden; rows are looked at by the sweeps.
            nowhere = ((self.b > 0) & (self._gathered == -torch.inf)).any()
            self._flags |= _C.FLAGS["forbidden"] * nowhere.to(torch.int32)

    def iterate(self, t: int, relaxation: Relaxation, stop: Flag | None) -> None:
        # Over-relaxed, an iteration goes on from the last one: without a history that is where it is written to.
        assert not (self._history and relaxation.wanted)
        ended = None if stop is None else stop.raised[0] > 0
        if t > 1:
            self.held.between(ended)
        self._t = t if self._history else 1
        g = self._next_columns()
        if relaxation.wanted:
            before = self._hist_g[self._t - 1]
            g = torch.where((relaxation.relaxed > 0) & (g > -torch.inf), g + (g - before) / 2, g)
        log_g = torch.where(self.b > 0, self._gathered, torch.inf)
        for history, new in ((self._hist_g, g), (self._log_g, log_g)):
            place = history[self._t - 1]
            place.copy_(new if ended is None else torch.where(ended, place, new))
        self._visit.relaxed = address(relaxation.relaxed)
        with self._held_by(self.held.shift):
            self._gathered = self._sweep(ITERATE, t, stop)
        self._visit.relaxed = 0
        self.held.record(self._hist_f[t if self._history else 0], g, self._history, ended)

    def _next_columns(self) -> Tensor:
        """G (M,) from the log-sums of the columns; damped as by `Damped` of csrc/sinkhorn/unbalanced.cuh."""
        g = self.b.log() - self._gathered
        lost = self.reg / (self.options.rho[1] + self.reg)
        if lost > 0:
            g = g + lost * (self._gathered + (self.held.shift / self.reg).to(g.dtype))
        return torch.where(self.b > 0, self.reg * g, -torch.inf)

    @contextmanager
    def _held_by(self, shift: Tensor, lost: Tensor | None = None) -> Iterator[None]:
        """Half-steps of unbalanced transport, behind these shifts (); rows lose ``lost`` to the next."""
        if not self.held.exact:
            self._at_shift[0] = shift
            self._at_shift[1] = 0 if lost is None else lost
            self._visit.held = address(self._at_shift)
        yield
        self._visit.held = 0

    def column_sums(self) -> Tensor:
        log_plan = self._hist_g[self._t - 1] / self.reg + self._gathered
        return torch.where(self.b > 0, log_plan.exp(), 0)

    def plan(self) -> Tensor:
        if self._history and self.options.tol > 0:  # only the device knows which iteration was the last
            torch.index_select(self._hist_f, 0, self.n_iter, out=self.f.view(1, -1))
            torch.index_select(self._hist_g, 0, self.n_iter - 1, out=self.g.view(1, -1))
        else:
            self.f.copy_(self._hist_f[-1])
            self.g.copy_(self._hist_g[-1])
        self._keep_held()
        self.centred = self._sweep(PLAN)
        return self._row_value

    def _keep_held(self) -> None:
        """What the kernels know of unbalanced transport: what is kept, if more than nothing; their potentials."""
        if self.held.exact:
            return
        rows, columns, f, g = self._of_held
        least = _C.rules(self.a.dtype == torch.float64).least_mass
        for z, last, kept, left in (
            (self.f, f, rows, self.held.rows),
            (self.g, g, columns, self.held.columns),
        ):
            kept.copy_(torch.where(left > least, left, 0))
            last.copy_(torch.where(left > least, z, -torch.inf))

    def outcome(self, solution: Solution) -> Solution:
        """NaN where a process refused its input; ``n_iter`` tells why."""
        bits = 1 << torch.arange(7, dtype=torch.int32, device=self._flags.device)
        anywhere = self._over.greatest(((self._flags & bits) > 0).to(torch.float32)) > 0
        flags = (anywhere * bits).sum(dtype=torch.int32)
        self._flags.copy_(flags)
        value, dual, f, g, error, n_iter = solution
        nan = value.new_full((), torch.nan)
        value, dual, error = (torch.where(flags > 0, nan, z) for z in (value, dual, error))
        n_iter = torch.where(flags > 0, -flags.long(), n_iter)
        device.check(n_iter)
        return Solution(value, dual, f, g, error, n_iter)

    def free_columns(self) -> Tensor:
        call = self._new_call()
        call.hist_f = address(self.f)
        return -self.reg * self._sweep(START, call=call)

    def free_rows(self) -> Tensor:
        f, ones = torch.zeros_like(self.a), torch.ones_like(self.a)
        log_f, call = torch.empty_like(f), self._new_call()
        call.a, call.hist_f, call.hist_g, call.log_f = map(address, (ones, f, self.g, log_f))
        self._sweep(ITERATE, 1, call=call)
        return f

    # Backward

    def begin_back(self, weight: Tensor, dual: Tensor, first: Tensor) -> None:
        """The adjoints df (T, N), dg (T, M) of every half-step; see csrc/sinkhorn/adjoint.cu."""
        self._back = Unrolled(self, weight, dual, first)
        self._point(self._back.df, self._back.dg, first)

    def _point(self, df: Tensor, dg: Tensor, first: Tensor | None) -> None:
        """Where the sweeps back, and the gradient, read and write."""
        call = self._call
        self._pointed = df, dg, first, self.grad_a
        call.df, call.dg, call.first, call.grad_a = map(address, self._pointed)

    def back(self, t: int, runs: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self._back, Unrolled)
        return self._back.to(t, runs)

    def step_back(self, t: int, left: Left, lost: Tensor) -> Tensor:
        """As `Sweeps.step_back` of `panels_back`."""
        with self._held_by(left.shift, lost):
            return self._sweep(BACK, t)

    def begin_fixed_point(self, weight: Tensor, dual: Tensor, shares: Tensor) -> Tensor:
        self._back = FixedPoint(self, weight, dual, shares)
        self._point(self._back.df, shares, None)
        call = self._new_call()
        call.a = address(self.held.rows)
        return self._sweep(COLUMN_MASS, call=call)

    def settle(self, change: Tensor) -> Tensor:
        assert isinstance(self._back, FixedPoint)
        return self._back.settle(change)

    def fixed_point(self, share: Tensor, stop: Flag) -> Tensor:
        assert isinstance(self._back, FixedPoint)
        return self._back.again(share, stop)

    def fixed_point_step(self, share: Tensor, stop: Flag, lost: Tensor) -> Tensor:
        """As `Sweeps.fixed_point_step` of `panels_back`."""
        self._visit.share = address(share)
        with self._held_by(self.held.shift, lost):
            return self._sweep(FIXED_POINT, stop=stop)

    # The gradient

    def begin_gradient(self, weight: Tensor, needs: Needs) -> _Into:
        p, call = self._panels, self._call
        weight = weight.to(p.dtype)
        call.value_weight = address(weight)
        call.implicit, call.plan_only = self.options.grad == "implicit", self.options.grad == "envelope"
        if self._back is not None:
            self._point(self._back.df, self._back.dg, self._back.first)
        x, y = p.features.x.to(p.dtype), p.features.y.to(p.dtype)
        by_label = d_classes = None
        if p.classes is not None and needs.class_cost:
            by_label = costs.sorted_columns(p.classes)
            d_classes = device.empty(p.classes.cost, *p.classes.cost.shape)
        apart = p.classes is not None and p.metric in BY_DIFFERENCE
        return _Into(
            weight, x, y, by_label, device.empty(x, *x.shape) if needs.x else None,
            torch.zeros_like(y) if needs.y else None, d_classes, device.empty(self.a, p.n), torch.zeros_like(self.b),
            p.new(), p.new() if apart else None,
        )  # fmt: skip

    def add_gradient(self, into: _Into, rows: slice) -> None:
        p, size = self._panels, rows.stop - rows.start
        weights = into.weights[:size]
        distance = None if into.distance is None else into.distance[:size]
        dx, dy = None if into.dx is None else into.dx[rows], into.dy
        matrix = p.of(rows, distance, weights)
        _at(self._call, rows, matrix)
        self._call.grad_cost = address(weights)
        device.kernels.cuda_sinkhorn_gradient(self._call)
        call = p.call(rows, matrix, distance)
        if into.by_label is not None and into.d_classes is not None:
            costs.to_classes(call, into.by_label, into.d_classes[rows])
        costs.weigh(call, p.metric, weights, dx, dy, adds_to_y=True)
        if p.metric in SUMMED:  # no products
            part = None if dy is None else device.empty(dy, *dy.shape)
            costs.finish(call, (None, None), dx, part)
            if dy is not None and part is not None:
                dy += part
            return
        add_both(weights, into.x[rows], into.y, dx, dy, p.metric)
        if dx is not None:
            torch.sum(weights, 1, out=into.row_sums[rows])
        if dy is not None:
            into.column_sums.add_(weights.sum(0))

    def end_gradient(self, into: _Into) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        p = self._panels
        if p.metric not in SUMMED:
            sums = into.row_sums, into.column_sums
            costs.finish(p.call(slice(0, p.n), into.row_sums), sums, into.dx, into.dy)
        self._back, self._pointed = None, ()
        return into.dx, into.dy, into.d_classes


class _Into(NamedTuple):
    """Where the gradient goes, and what it is made from."""

    weight: Tensor  # () of <P, C>
    x: Tensor  # (N, D) of the cost's dtype
    y: Tensor  # (M, D)
    by_label: tuple[Tensor, Tensor] | None  # the columns sorted by label, and where each label begins
    dx: Tensor | None  # (N, D)
    dy: Tensor | None  # (M, D)
    d_classes: Tensor | None  # (N, K)
    row_sums: Tensor  # (N,) of the weights
    column_sums: Tensor  # (M,)
    weights: Tensor  # (R, M) of a panel
    distance: Tensor | None  # (R, M)


def _at(call: Any, rows: slice, matrix: Tensor) -> None:
    """Let the call read the costs of these rows."""
    call.first_row, call.rows, call.cost = rows.start, rows.stop - rows.start, address(matrix)
