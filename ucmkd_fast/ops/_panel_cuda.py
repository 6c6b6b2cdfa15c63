"""Sinkhorn on features without the cost matrix, for CUDA tensors: the twin of `panel_sweeps`.

A sweep visits every panel of rows: one matrix product by torch, its epilogue, and two launches of
csrc/sinkhorn/panel.cu, in the log domain throughout. What the columns gathered is put together by a few operations
on (M,), in a fixed order, and over the processes where rows are spread.

Nothing waits for the device. Where an iteration may be the last (``tol``, the sweeps back) the device raises a flag,
and launches after it do nothing; the host looks at a copy of the flag that may have arrived, to stop launching.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _cost_cuda, _not_converged, _solve_cuda, class_aware, cost
from ._device_control import Flag, Relaxation
from ._loss import Classes
from ._solve import Options
from ._solve_cuda import Saved, _address, adjoint_tolerance, call_of
from .panel_sweeps import Alone, Vectors

# Sweep of csrc/sinkhorn/cuda.h
START, ITERATE, PLAN, BACK, COLUMN_MASS, FIXED_POINT = range(6)
_LOG_SUMS = (START, ITERATE)
_BLOCKS = 1024  # of a column pass: enough to fill any device


class Solved(NamedTuple):
    """What the iterations leave."""

    value: Tensor  # () <P, C> of all rows
    dual: Tensor  # ()
    f: Tensor  # (N,)
    g: Tensor  # (M,)
    marginal_error: Tensor  # ()
    n_iter: Tensor  # () or -(flags)
    sums: Tensor  # (M,) column sums of the plan
    first: Tensor  # (M,) sum_i P_ij (C_ij - alpha_i)


class Panels:
    """The costs of x (N, D) against y (M, D), some rows at a time, in one buffer; or kept, each in its own."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        metric: str,
        dtype: torch.dtype,
        rows: int,
        keep: bool,
        classes: Classes | None,
    ):
        self.features = _cost_cuda.features(x, y, metric, dtype)
        self.metric, self.dtype, self.rows, self.classes = metric, dtype, max(min(rows, len(x)), 1), classes
        self.scales = _solve_cuda.empty(x, len(x), dtype=dtype), _solve_cuda.empty(x, len(y), dtype=dtype)
        self._kept: dict[int, Tensor] | None = {} if keep else None
        self._buffer = None if keep else self.new()
        _solve_cuda.kernels.cuda_scales(self.call(slice(0, len(x)), self.scales[0]))

    def new(self) -> Tensor:
        """Memory for a panel."""
        return _solve_cuda.empty(self.features.x, self.rows, len(self.features.y), dtype=self.dtype)

    def call(self, rows: slice, matrix: Tensor, distance: Tensor | None = None) -> Any:
        """The native call on the features of these rows."""
        scales, classes = (self.scales[0][rows].data_ptr(), self.scales[1].data_ptr()), None
        features = self.features.rows(rows)
        if self.classes is not None:
            classes = Classes(self.classes.cost[rows], self.classes.labels, distance)
        return _cost_cuda.call(features, scales, matrix, classes)

    def _make(self, rows: slice, matrix: Tensor, distance: Tensor | None) -> None:
        if self.metric != "l1":
            _cost_cuda.product(self.features.x[rows], self.features.y, matrix)
        _solve_cuda.kernels.cuda_cost(self.call(rows, matrix, distance))

    def each(
        self, distances: Tensor | None = None, spare: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Rows, their costs (R, M), and these without the term by class where there is memory for them.

        ``spare`` is memory for a panel: of costs that are kept, the distances are made once more.
        """
        for start in range(0, len(self.features.x), self.rows):
            rows = slice(start, min(start + self.rows, len(self.features.x)))
            distance = None if distances is None else distances[: rows.stop - start]
            matrix = None if self._kept is None else self._kept.get(start)
            if matrix is None:
                memory = self.new() if self._buffer is None else self._buffer
                matrix = memory[: rows.stop - start]
                self._make(rows, matrix, distance)
                if self._kept is not None:
                    self._kept[start] = matrix
            elif distance is not None and spare is not None:
                self._make(rows, spare[: rows.stop - start], distance)
            yield rows, matrix, distance


class Problem(Vectors):
    """This process's rows against all columns, with the sweeps over them."""

    def __init__(
        self, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, classes: Classes | None, metric: str,
        dtype: torch.dtype, options: Options, rows: int, keep: bool, over: Alone,
    ):  # fmt: skip
        self._given = a is not None, b is not None
        y, b = over.gather(y), None if b is None else over.gather(b)
        if classes is not None:
            classes = Classes(classes.cost.contiguous(), over.gather(classes.labels).contiguous())
        self.n, self.m = len(x), len(y)
        uniform = x.new_full((1,), 1, dtype=dtype)
        a = (uniform / over.total_rows(self.n)).repeat(self.n) if a is None else a.contiguous()
        b = (uniform / self.m).repeat(self.m) if b is None else b.contiguous()
        super().__init__(a, b, options, over)
        self.panels = Panels(x, y, metric, dtype, rows, keep, classes)
        across = -(-self.m // 256)
        groups = max(1, min(32, self.panels.rows, _BLOCKS // across))
        self.states = _solve_cuda.empty(a, groups, self.m, 2)
        self.values = _solve_cuda.empty(a, self.panels.rows, 3)
        self.visit = _solve_cuda.kernels.CudaPanel()
        self.visit.groups, self.visit.states, self.visit.values = (
            groups,
            *map(_address, (self.states, self.values)),
        )

    def sweep(self, kind: int, t: int = 0, stop: Flag | None = None) -> Tensor:
        """Visit every panel; what the columns gathered, over all processes (M,): sums, or logarithms of sums."""
        self.visit.sweep, self.visit.t = kind, t
        self.visit.stop = 0 if stop is None else stop.raised.data_ptr()
        self.states.zero_()
        if kind in _LOG_SUMS:
            self.states[..., 0].fill_(-torch.inf)
        for rows, matrix, _ in self.panels.each():
            self._at(rows, matrix)
            _solve_cuda.kernels.cuda_panel(self.call, self.visit)
        top, rest = self.states.unbind(-1)
        if kind not in _LOG_SUMS:
            return self.over.add(top.sum(0))
        highest = self.over.greatest(top.amax(0))
        total = self.over.add(torch.where(top > -torch.inf, (top - highest).exp() * rest, 0).sum(0))
        return torch.where(total > 0, highest + total.log(), -torch.inf)

    def _at(self, rows: slice, matrix: Tensor) -> None:
        self.call.first_row, self.call.rows = rows.start, rows.stop - rows.start
        self.call.cost = matrix.data_ptr()

    # Forward

    def solve(self, init_f: Tensor | None, history: bool) -> Solved:
        """The iterations of `sinkhorn`, and the first sweep back."""
        _not_converged.flush_warnings()
        self._take_memory(history)
        tol, last = self.options.tol, self.options.max_iter
        self.hist_f[0] = self.first_potential(init_f)
        self.flags.copy_(self._mass_flags() + self._class_flags())
        self.n_iter.fill_(last)
        error, sums = self.b.new_zeros(()), torch.zeros_like(self.b)
        stop = Flag(self.a, self.over) if tol > 0 else None
        relaxation = Relaxation(self.a, self.options)
        assert not (history and relaxation.wanted)  # it is the one place of a potential that it goes on from
        self.visit.relaxed = relaxation.relaxed.data_ptr()
        log_sums = self.sweep(START)
        self._refuse_forbidden(log_sums)
        for t in range(1, last + 1):
            relaxation.begin(t)
            self._keep_g(t if history else 1, log_sums, stop, relaxation)
            log_sums = self.sweep(ITERATE, t, stop)
            if stop is None and not relaxation.wanted and t < last:
                continue
            g = self.hist_g[t - 1 if history else 0]
            reached = torch.where(self.b > 0, (g / self.reg + log_sums).exp(), 0)
            found = (reached - self.b).abs().sum(dtype=torch.float64).to(error.dtype)
            relaxation.watch(found)
            if stop is None:
                error, sums = found, reached
                continue
            ended = stop.raised[0] > 0
            error, sums = torch.where(ended, error, found), torch.where(ended, sums, reached)
            self.n_iter.copy_(torch.where(ended, self.n_iter, t))
            stop.raised |= (found <= tol) & (relaxation.relaxed == 0)
            if t < last and stop.seen():
                break
        self.visit.relaxed = 0
        self._take_last(history and tol > 0)
        first = self.sweep(PLAN)
        value, dual = self.of_values(self.f, self.g, self.row_value)
        solved = self._solved(value, dual, error, sums, first)
        _solve_cuda.check(solved.n_iter)
        return solved

    def _take_memory(self, history: bool) -> None:
        """What the backward needs, in one block (`_solve_cuda.Saved`), and views of it."""
        n, m, steps = self.n, self.m, self.options.max_iter if history else 1
        at = Saved(1, n, m, self.options.max_iter, history)
        self.saved = _solve_cuda.empty(self.a, at.size)
        self.f, self.g, self.row_value = (_solve_cuda.empty(self.a, size) for size in (n, m, n))
        self.hist_f = self.saved[at.hist_f :][: (steps + int(history)) * n].view(steps + int(history), n)
        self.hist_g = self.saved[at.hist_g :][: steps * m].view(steps, m)
        self.log_g = self.saved[at.log_g :][: steps * m].view(steps, m)
        self.alpha = self.saved[at.alpha :][:n]
        self.n_iter = self.saved[at.n_iter : at.n_iter + 2].view(torch.int64)[:1]
        self.flags = self.saved[at.flags : at.flags + 2].view(torch.int32)[:1]
        self.call = call_of(1, n, m, self.a, self.b, None, self.f, self.g, self.saved, self.options, history)
        self.visit.row_value = self.row_value.data_ptr()

    def _mass_flags(self) -> Tensor:
        """Flags of csrc/sinkhorn/cuda.h for the masses, (1,) int32."""
        a, b = self.a.double(), self.b.double()
        sum_a, sum_b = self.over.add(a.sum()), b.sum()
        bad = ~((a >= 0).all() & (b >= 0).all() & sum_a.isfinite() & sum_b.isfinite())
        none = ~((sum_a > 0) & (sum_b > 0))
        gap = 1e-4 if self.a.dtype == torch.float32 else 1e-6
        differ = ~((sum_a - sum_b).abs() <= gap * (sum_a + sum_b))
        flags = bad * _solve_cuda.BAD_MASS + none * _solve_cuda.NO_MASS + differ * _solve_cuda.SUMS
        return flags.to(torch.int32).view(1)

    def _class_flags(self) -> int | Tensor:
        """The same for the term by class."""
        if self.panels.classes is None:
            return 0
        return _solve_cuda.BAD_COST * class_aware.has_bad_values(*self.panels.classes[:2]).to(torch.int32)

    def _refuse_forbidden(self, log_sums: Tensor) -> None:
        """A column all of whose pairs are forbidden; rows are looked at by the sweeps."""
        if self.panels.classes is not None:
            nowhere = ((self.b > 0) & (log_sums == -torch.inf)).any()
            self.flags |= _solve_cuda.FORBIDDEN * nowhere.to(torch.int32)

    def _keep_g(self, t: int, log_sums: Tensor, stop: Flag | None, relaxation: Relaxation) -> None:
        """The half-step of the columns; its potentials and log-sums go where iteration t keeps them."""
        g = torch.where(self.b > 0, self.reg * (self.b.log() - log_sums), -torch.inf)
        g = relaxation.half_step(g, self.hist_g[t - 1])  # without a history the last one is there
        log_g = torch.where(self.b > 0, log_sums, torch.inf)
        for place, new in ((self.hist_g[t - 1], g), (self.log_g[t - 1], log_g)):
            place.copy_(new if stop is None else torch.where(stop.raised > 0, place, new))

    def _take_last(self, search: bool) -> None:
        """F and g of the last iteration; ``search`` where only the device knows which that was."""
        if search:
            torch.index_select(self.hist_f, 0, self.n_iter, out=self.f.view(1, -1))
            torch.index_select(self.hist_g, 0, self.n_iter - 1, out=self.g.view(1, -1))
        else:
            self.f.copy_(self.hist_f[-1])
            self.g.copy_(self.hist_g[-1])

    def _solved(self, value, dual, error, sums, first) -> Solved:
        """The outputs, NaN where a process refused its input."""
        bits = 1 << torch.arange(7, dtype=torch.int32, device=self.flags.device)
        anywhere = self.over.greatest(((self.flags & bits) > 0).to(torch.float32)) > 0
        flags = (anywhere * bits).sum(dtype=torch.int32)
        self.flags.copy_(flags)
        nan = value.new_full((), torch.nan)
        value, dual, error = (torch.where(flags > 0, nan, z) for z in (value, dual, error))
        n_iter = torch.where(flags > 0, -flags.long(), self.n_iter[0])
        return Solved(value, dual, self.f, self.g, error, n_iter, sums, first)

    # Backward

    def gradient(
        self, s: Solved, up_value: Tensor | None, up_dual: Tensor | None, need: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of ``up_value`` <P, C> + ``up_dual`` dual value: of x, y, W (where needed), a (N,), b (M,)."""
        none = self.a.new_zeros(())
        weight, dual = (none if up is None else up for up in (up_value, up_dual))
        grad = self.options.grad
        self.call.implicit, self.call.plan_only = grad == "implicit", grad == "envelope"
        if grad == "envelope":
            return *self._features(weight + dual, need), *self.envelope_masses(s, dual)
        # The dual value pulls f by a and g by b.
        last = weight / self.reg * s.first + dual * (self.b - s.sums)
        grad_a = weight * self.alpha + self.reg * dual * (self.a > 0)
        least = adjoint_tolerance(self.a.dtype, self.options.tol) * (weight.abs() + 2 * dual.abs())
        run = self._at_the_fixed_point if grad == "implicit" else self._unrolled
        df, dg, grad_b = run(last, dual * self.a, grad_a, least)
        self.call.df, self.call.dg = df.data_ptr(), dg.data_ptr()
        direct_a, direct_b = self.direct(s, dual)
        return *self._features(weight, need), grad_a + direct_a, grad_b + direct_b

    def without_mass(self, s: Solved) -> tuple[Tensor, Tensor]:
        """As of `Vectors`: of masses that were given, as nobody here knows whether one of them is 0."""
        f, g, call = torch.zeros_like(self.a), torch.zeros_like(self.b), self.call
        if self._given[1]:
            call.hist_f = s.f.data_ptr()
            g = -self.reg * self.sweep(START)
        if self._given[0]:
            ones, log_f = torch.ones_like(f), torch.empty_like(f)
            call.a, call.hist_f, call.hist_g, call.log_f = map(_address, (ones, f, s.g, log_f))
            self.sweep(ITERATE, 1)
        return f, g

    def _unrolled(self, last: Tensor, df_last: Tensor, grad_a: Tensor, least: Tensor) -> tuple[Tensor, ...]:
        """The adjoints df (T, N), dg (T, M) of every half-step, t from n_iter down; see csrc/sinkhorn/adjoint.cu."""
        steps = self.options.max_iter
        df, dg = _solve_cuda.empty(self.a, steps, self.n), _solve_cuda.empty(self.a, steps, self.m)
        df.index_copy_(0, self.n_iter - 1, df_last[None])
        self._first = torch.ones(1, dtype=torch.int64, device=df.device)
        self.call.df, self.call.dg, self.call.first = df.data_ptr(), dg.data_ptr(), self._first.data_ptr()
        self.call.grad_a = grad_a.data_ptr()
        inverse = torch.where(self.b > 0, 1 / self.b, 0)
        grad_b, gathered, done = torch.zeros_like(self.b), torch.zeros_like(self.b), Flag(self.a, self.over)
        for t in range(steps, 0, -1):
            runs = (t <= self.n_iter) & (t >= self._first)
            mine = torch.where(self.n_iter == t, last, gathered)
            mine = torch.where(runs & (self.b > 0), mine, 0)
            share = mine * inverse
            dg[t - 1] = mine
            grad_b += self.reg * share
            ends = runs & (2 * t * share.abs().max() <= least)
            self._first.copy_(torch.where(ends, t, self._first))
            done.raised |= ends.to(torch.int32)
            if t == 1 or done.seen():
                break
            gathered = self.sweep(BACK, t)
        return df, dg, grad_b

    def _at_the_fixed_point(
        self, last: Tensor, df_last: Tensor, grad_a: Tensor, least: Tensor
    ) -> tuple[Tensor, ...]:
        """The same at the fixed point, summed until it has converged: df (1, N), dg (1, M)."""
        df, dg, share = (
            df_last.clone()[None],
            torch.zeros_like(self.b)[None],
            _solve_cuda.empty(self.b, self.m),
        )
        self.call.df, self.call.grad_a, self.visit.share = df.data_ptr(), grad_a.data_ptr(), share.data_ptr()
        mass = self.sweep(COLUMN_MASS)
        total = mass.double().sum()
        grad_b, change, done = torch.zeros_like(self.b), last, Flag(self.a, self.over)
        before = least.new_zeros((), dtype=torch.float64)
        for _ in range(max(1000, 10 * self.options.max_iter)):
            # (f + c, g - c) is the same plan: the adjoints must sum to zero, and a drift would never decay.
            shift = (change.double().sum() / total).to(change.dtype)
            mine = torch.where((mass > 0) & (done.raised == 0), change / mass - shift, 0)
            share.copy_(mine)
            dg += mine * self.b
            grad_b += self.reg * mine
            size = mine.abs().max().double()
            rate = torch.where((before > 0) & (size < before), size / before, 0.999)
            before = size
            done.raised |= (2 * size / (1 - rate) <= least).to(torch.int32)
            if done.seen():
                break
            change = self.sweep(FIXED_POINT, stop=done)
        _not_converged.report_gradient(done.raised == 0)
        return df, dg, grad_b

    def _features(self, weight: Tensor, need: tuple[bool, bool, bool]) -> tuple[Tensor | None, ...]:
        """DC panel by panel, and from it the gradients of x, y and W."""
        p, kernels = self.panels, _solve_cuda.kernels
        weight = weight.contiguous()
        self.call.value_weight = weight.data_ptr()
        x, y = p.features.x.to(p.dtype), p.features.y.to(p.dtype)
        dx = _solve_cuda.empty(x, *x.shape) if need[0] else None
        dy = torch.zeros_like(y) if need[1] else None
        row_sums, col_sums = _solve_cuda.empty(self.a, self.n), torch.zeros_like(self.b)
        by_label = d_classes = None
        if p.classes is not None and need[2]:
            by_label = _cost_cuda.sorted_columns(p.classes)
            d_classes = _solve_cuda.empty(p.classes.cost, *p.classes.cost.shape)
        apart = p.classes is not None and p.metric in class_aware.READS_DISTANCE
        memory, distances = p.new(), p.new() if apart else None
        for rows, matrix, distance in p.each(distances, memory):
            weights = memory[: rows.stop - rows.start]
            self._at(rows, matrix)
            self.call.grad_cost = weights.data_ptr()
            kernels.cuda_sinkhorn_gradient(self.call)
            call = p.call(rows, matrix, distance)
            if by_label is not None and d_classes is not None:
                _cost_cuda.to_classes(call, by_label, d_classes[rows])
            _cost_cuda.weigh(call, p.metric, weights, None if dx is None else dx[rows], dy, adds_to_y=True)
            self._weigh(call, weights, rows, (x, y), (dx, dy))
            if p.metric != "l1":
                if dx is not None:
                    torch.sum(weights, 1, out=row_sums[rows])
                if dy is not None:
                    col_sums += weights.sum(0)
        if p.metric != "l1":
            _cost_cuda.finish(p.call(slice(0, self.n), row_sums), (row_sums, col_sums), dx, dy)
        return dx, None if dy is None else self.over.add(dy), d_classes

    def _weigh(self, call: Any, weights: Tensor, rows: slice, features, grads) -> None:
        """The panel's products with x and y; l1 takes signs in their place."""
        (x, y), (dx, dy) = features, grads
        dx = None if dx is None else dx[rows]
        if self.panels.metric != "l1":
            return cost.add_both(weights, x[rows], y, dx, dy, self.panels.metric)
        part = None if dy is None else _solve_cuda.empty(y, *y.shape)
        _cost_cuda.finish(call, (None, None), dx, part)
        if dy is not None:
            dy += part
