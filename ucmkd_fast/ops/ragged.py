"""Many problems between features in one call: batches (B, N, D), and ragged lists by offsets.

A batch is a ragged list whose problems have one size. The kernels take the whole table of problems
(csrc/sinkhorn/ragged.h): no loop here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import _C, METRIC_CODES
from ..reference import sinkhorn as reference
from . import (
    _autograd,
    _not_converged,
    _ragged_cuda,
    _solve_cuda,
    _transforms,
    class_aware,
    cost,
    relative_reg,
)
from ._solve import GRAD_CODES, Options, _address
from .refusals import explained
from .result import BatchResult


class Offsets(NamedTuple):
    """Where the problems begin: problem k is rows x[k] .. x[k + 1] against rows y[k] .. y[k + 1]."""

    x: Tensor  # (B + 1,) int64 on the CPU, ascending from 0
    y: Tensor  # (B + 1,)

    @property
    def counts(self) -> tuple[Tensor, Tensor]:
        """N_k (B,), M_k (B,)."""
        return self.x.diff(), self.y.diff()

    def rows(self, k: int) -> tuple[slice, slice]:
        """Rows of problem k in x and in y."""
        return slice(int(self.x[k]), int(self.x[k + 1])), slice(int(self.y[k]), int(self.y[k + 1]))


def of_batch(batch: int, n: int, m: int) -> Offsets:
    """The offsets of B problems (N, M)."""
    steps = torch.arange(batch + 1)
    return Offsets(steps * n, steps * m)


def check_offsets(offsets: Any, n: int, m: int) -> Offsets:
    """A pair of offsets into n rows of x and m rows of y."""
    if not (isinstance(offsets, (tuple, list)) and len(offsets) == 2):
        raise TypeError(f"offsets must be a pair (x_offsets, y_offsets), got {type(offsets).__name__}")
    for name, at, rows in (("x_offsets", offsets[0], n), ("y_offsets", offsets[1], m)):
        if not isinstance(at, Tensor) or at.dtype != torch.int64 or at.dim() != 1 or at.device.type != "cpu":
            came = (
                f"{at.dtype} {tuple(at.shape)} on {at.device}"
                if isinstance(at, Tensor)
                else type(at).__name__
            )
            raise TypeError(f"{name} must be an int64 tensor of shape (B + 1,) on the CPU, got {came}")
        if len(at) < 2 or at[0] != 0 or at[-1] != rows or (at.diff() < 0).any():
            raise ValueError(f"{name} must ascend from 0 to the number of rows, {rows}, got {at.tolist()}")
    if len(offsets[0]) != len(offsets[1]):
        raise ValueError(
            "x_offsets and y_offsets must name equally many problems, got "
            f"{len(offsets[0]) - 1} and {len(offsets[1]) - 1}"
        )
    return Offsets(offsets[0].contiguous(), offsets[1].contiguous())


class RaggedSinkhorn(torch.autograd.Function):
    """From x (sum N_k, D), y (sum M_k, D): (value, dual, f, g, marginal_error, n_iter, costs)."""

    @staticmethod
    def forward(ctx: Any, x, y, class_cost, a, b, y_labels, init_f, init_g, offsets, metric, dtype, options):  # noqa: D102
        needs = any(ctx.needs_input_grad[:5])
        features = _features(x, y, metric, dtype, offsets)
        wide_x = features.x
        table = _table(features, offsets, a, b, init_f, init_g, options, needs)
        cost_size, saved_size = table.sizes()
        costs, saved = wide_x.new_empty(cost_size), wide_x.new_empty(saved_size)
        table.memory(costs.data_ptr(), saved.data_ptr())
        distance = None
        if class_cost is not None:
            if needs and metric in class_aware.READS_DISTANCE:
                distance = torch.empty_like(costs)
            table.set_classes(class_cost.shape[1], *map(_address, (class_cost, y_labels, distance, None)))
        batch = len(offsets.x) - 1
        f, g = wide_x.new_empty(len(x)), wide_x.new_empty(len(y))
        value, dual, error = (wide_x.new_empty(batch) for _ in range(3))
        n_iter = torch.empty(batch, dtype=torch.int64)
        refused = _C.sinkhorn_ragged_forward(table, needs, *map(_address, (f, g, value, dual, error, n_iter)))
        if refused:
            raise ValueError(explained(refused, a=a, b=b, class_cost=class_cost, y_labels=y_labels))
        if needs:
            constants = (f, g) if options.grad == "envelope" else ()
            ctx.mark_non_differentiable(*constants, error, n_iter, costs)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(
                x, y, class_cost, a, b, y_labels, init_f, init_g, features.scale, f, g, costs, saved, distance
            )
            ctx.settings = offsets, metric, dtype, options
        return value, dual, f, g, error, n_iter, costs

    @staticmethod
    def backward(ctx: Any, *upstream):  # noqa: D102
        x, y, class_cost, a, b, y_labels, init_f, init_g, *rest = ctx.saved_tensors
        scale, f, g, costs, saved, distance = rest
        offsets, metric, dtype, options = ctx.settings
        upstream, none = upstream[:4], [None] * 7
        if all(u is None for u in upstream):
            return (*[None] * 5, *none)
        if torch.is_grad_enabled():
            _transforms.refuse_second_order(options.grad)

            def again(x, y, class_cost, a, b):
                by_class = class_cost, y_labels
                return reference_outputs(
                    x, y, a, b, init_f, init_g, by_class, offsets, metric, dtype, options
                )

            return *_autograd.differentiate(again, (x, y, class_cost, a, b), upstream), *none
        features = _features(x, y, metric, dtype, offsets, scale)
        table = _table(features, offsets, a, b, init_f, init_g, options, True)
        table.memory(costs.data_ptr(), saved.data_ptr())
        up_value, up_f, up_g, direct_a, direct_b = _flat_upstream(
            table, offsets, costs, a, b, f, g, upstream, options
        )
        need_x, need_y, need_classes, need_a, need_b = ctx.needs_input_grad[:5]
        d_classes = torch.empty_like(class_cost) if need_classes else None
        if class_cost is not None:
            table.set_classes(
                class_cost.shape[1], *map(_address, (class_cost, y_labels, distance, d_classes))
            )
        dx = torch.empty_like(features.x) if need_x else None
        dy = torch.empty_like(features.y) if need_y else None
        envelope = options.grad == "envelope"
        da = torch.empty_like(a) if need_a and not envelope else None
        db = torch.empty_like(b) if need_b and not envelope else None
        converged = _C.sinkhorn_ragged_backward(
            table, GRAD_CODES[options.grad], *map(_address, (up_value, up_f, up_g, dx, dy, da, db))
        )
        if not converged:
            _not_converged.warn_of_gradient()
        if need_a:
            da = _sum(da, direct_a, a)
        if need_b:
            db = _sum(db, direct_b, b)
        dx = dx if dx is None else dx.to(x.dtype)
        dy = dy if dy is None else dy.to(y.dtype)
        return dx, dy, d_classes, da, db, *none


def _sum(grad: Tensor | None, direct: Tensor | None, mass: Tensor) -> Tensor:
    parts = [t for t in (grad, direct) if t is not None]
    return parts[0] + parts[1] if len(parts) == 2 else parts[0] if parts else torch.zeros_like(mass)


def _table(features: cost.Features, offsets, a, b, init_f, init_g, options: Options, needs: bool):
    x, y, scale, metric, given_x, given_y = features
    table = _C.SinkhornRagged(
        x.dtype == torch.float64, len(offsets.x) - 1, x.shape[1], options.max_iter, options.reg, options.tol,
        options.accelerate == "relax", needs and options.grad == "unrolled", METRIC_CODES[metric],
        *map(_address, offsets), *map(_address, (x, y, scale, scale[len(x) :], a, b, init_f, init_g)),
    )  # fmt: skip
    if given_x is not x:
        table.set_given(given_x.data_ptr(), given_y.data_ptr())
    return table


def _features(x, y, metric, dtype, offsets: Offsets, scale: Tensor | None = None) -> cost.Features:
    """Both sets as the kernels read them, every problem centred by itself; with scales that are known, or made."""
    given = cost.plain(x, dtype), cost.plain(y, dtype)
    x, y = given
    if metric in cost.CENTRED:
        x, y = (z.clone() for z in given)
        for k in range(len(offsets.x) - 1):
            rows, columns = offsets.rows(k)
            x[rows], y[columns] = cost.centred(given[0][rows], given[1][columns], metric)
    if scale is not None:
        return cost.Features(x, y, scale, metric, *given)
    return cost.with_scales(x, y, metric, *given)


def _flat_upstream(table, offsets: Offsets, costs, a, b, f, g, upstream, options: Options):
    """Upstream of value (B,), f, g, and what the dual value gives the masses directly.

    The dual value of a problem is <f - reg log a, a> + <g - reg log b, b> - reg (sum a - sum a sum b);
    under ``"envelope"`` the potentials are constants and its gradient is that of the value.
    """
    up_value, up_dual, up_f, up_g = upstream
    if up_dual is None:
        return *_contiguous(up_value, up_f, up_g), None, None
    counts = offsets.counts
    wide = [torch.repeat_interleave(up_dual, count) for count in counts]
    empty = (counts[0] == 0) | (counts[1] == 0)
    if options.grad == "envelope":
        value = up_dual if up_value is None else up_value + up_dual
        free = [
            None if mass is None else w * _free(table, offsets, side, costs, f, g, mass, options.reg)
            for side, (mass, w) in enumerate(zip((a, b), wide, strict=True))
        ]
        return *_contiguous(value, None, None), *free
    masses, totals = [], []
    for mass, count in zip((a, b), counts, strict=True):
        each = 1 / count.clamp_min(1).to(f.dtype)
        masses.append(torch.repeat_interleave(each, count) if mass is None else mass)
        totals.append(torch.ones_like(each) if mass is None else _sums(mass, count))
    live = [torch.repeat_interleave(~empty, count) for count in counts]
    grads = [torch.where(keep, w * m, 0) for keep, w, m in zip(live, wide, masses, strict=True)]
    grads = [
        grad if up is None else grad + torch.where(keep, up, 0)
        for grad, up, keep in zip(grads, (up_f, up_g), live, strict=True)
    ]
    direct: list[Tensor | None] = [None, None]
    for side, (mass, z, other, shift) in enumerate(((a, f, totals[1], 2), (b, g, totals[0], 1))):
        if mass is not None:
            sums = torch.repeat_interleave(other, counts[side])
            free = z - options.reg * mass.log() - shift * options.reg + options.reg * sums
            direct[side] = wide[side] * torch.where((mass > 0) & live[side], free, 0)
    return *_contiguous(up_value, *grads), *direct


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _problem_of_row(count: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(count)), count)


def _free(table, offsets: Offsets, side: int, costs, f, g, mass, reg: float) -> Tensor:
    """Potentials without their log-mass; finite also where the mass is 0 (those problems one by one)."""
    z = (f, g)[side]
    free = torch.where((mass > 0) & (z > -torch.inf), z - reg * mass.log(), 0)
    for k in _problem_of_row(offsets.counts[side])[mass == 0].unique().tolist():
        rows = offsets.rows(k)
        if any(r.start == r.stop for r in rows):
            continue
        matrix = _matrix(table, offsets, costs, k)
        scores = (g[rows[1]][None, :] - matrix) if side == 0 else (f[rows[0]][:, None] - matrix).T
        everywhere = -reg * torch.logsumexp(scores / reg, 1)
        here = rows[side]
        free[here] = torch.where(mass[here] > 0, free[here], everywhere)
    return free


def _matrix(table, offsets: Offsets, costs: Tensor, k: int) -> Tensor:
    """The cost (N_k, M_k) of problem k, a view."""
    n, m = (r.stop - r.start for r in offsets.rows(k))
    at = table.cost_offset(k)
    return costs[at : at + n * m].view(n, m)


def _cost_of(x, y, by_class, rows: slice, columns: slice, metric, dtype) -> Tensor:
    """The cost (N_k, M_k) of one problem, differentiable."""
    matrix = reference.cost(x[rows].to(dtype), y[columns].to(dtype), metric)
    if by_class[0] is None:
        return matrix
    return class_aware.cost_by_class(matrix, by_class[0][rows], by_class[1][columns])


def reference_outputs(
    x, y, a, b, init_f, init_g, by_class, offsets: Offsets, metric, dtype, options
) -> tuple[Tensor, ...]:
    """(value, dual, f, g) problem by problem by the reference; differentiable to any order."""
    parts: list[tuple[Tensor, ...]] = []
    for k in range(len(offsets.x) - 1):
        rows, columns = offsets.rows(k)
        if rows.start == rows.stop or columns.start == columns.stop:
            parts.append(nothing(rows.stop - rows.start, columns.stop - columns.start, x, dtype)[:4])
            continue
        matrix = _cost_of(x, y, by_class, rows, columns, metric, dtype)

        def part(t, at):
            return t if t is None else t[at]

        parts.append(
            _autograd.reference_outputs(
                matrix, part(a, rows), part(b, columns), part(init_f, rows), part(init_g, columns), options
            )
        )
    value, dual, f, g = zip(*parts, strict=True)
    return torch.stack(value), torch.stack(dual), torch.cat(f), torch.cat(g)


@torch.compiler.disable
def solve(
    x,
    y,
    a,
    b,
    init_fg,
    by_class,
    offsets: Offsets,
    metric: str,
    dtype,
    options: Options,
    scale=None,
    quiet=False,
) -> tuple[Any, ...]:
    """(value, dual, f, g, marginal_error, n_iter, costs) of every problem, by the kernels of the tensors' device.

    The costs are flat, padded to ``_C.padded`` each; by the kernels of a GPU a list of matrices. There reg may be in
    units of ``scale`` (B,).
    """
    if not _autograd.direct(x, y, a, b, by_class[0]):
        raise NotImplementedError(
            "ragged batches are not supported under functorch transforms, forward mode and dispatch modes: form the "
            "cost and call sinkhorn, or call sinkhorn_loss once per problem"
        )
    if _solve_cuda.runs_on(x):
        return _ragged_cuda.solve(
            x, y, a, b, init_fg, by_class, offsets, metric, dtype, options, scale, quiet
        )
    a, b, class_cost, y_labels = (None if t is None else t.contiguous() for t in (a, b, *by_class))
    found = RaggedSinkhorn.apply(x, y, class_cost, a, b, y_labels, *init_fg, offsets, metric, dtype, options)
    if not quiet:
        live = (offsets.counts[0] > 0) & (offsets.counts[1] > 0)
        mass = None if a is None else torch.where(live, _sums(a.detach(), offsets.counts[0]), 1)[:, None]
        _not_converged.look(found[4], found[0], mass, options, metric if class_cost is None else None)
    return found


def _sums(mass: Tensor, count: Tensor) -> Tensor:
    """Sums (B,) of flat masses, problem by problem."""
    return mass.new_zeros(len(count)).index_add_(0, _problem_of_row(count), mass)


@torch.no_grad()
def cost_sums(x, y, by_class, offsets: Offsets, metric: str, dtype) -> tuple[Tensor, Tensor]:
    """Of every problem the sum (B,) of its finite costs, and their number."""
    x, y = x.detach(), y.detach()
    total = x.new_zeros(len(offsets.x) - 1, dtype=relative_reg.dtype_of_sums(x.device))
    count = torch.zeros_like(total, dtype=torch.int64)
    if _solve_cuda.runs_on(x):
        for at, left, right in _ragged_cuda.launches(offsets, dtype, x.device):
            matrix = _ragged_cuda.padded_cost(x, y, by_class, left, right, metric)
            found = relative_reg.sums(matrix, left.inside[:, :, None] & right.inside[:, None, :])
            total[at], count[at] = found
        return total, count
    for k in range(len(total)):
        rows, columns = offsets.rows(k)
        if x.is_cpu:
            matrix = cost.matrix(x[rows], y[columns], metric, dtype)
            if by_class[0] is not None:
                matrix = class_aware.cost_by_class(matrix, by_class[0][rows], by_class[1][columns])
        else:
            matrix = _cost_of(x, y, by_class, rows, columns, metric, dtype)
        total[k], count[k] = relative_reg.sums(matrix)
    return total, count


def mean_costs(x, y, by_class, offsets: Offsets, metric: str, dtype) -> Tensor:
    """The mean (B,) of `relative_reg.mean_cost`; 1 where there is nothing to transport."""
    n, m = offsets.counts
    empty = ((n == 0) | (m == 0)).to(x.device, non_blocking=True)
    mean = relative_reg.ratio(*cost_sums(x, y, by_class, offsets, metric, dtype))
    return torch.where(empty, 1, mean).to(dtype)


def nothing(n: int, m: int, like: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(value, dual, f, g, marginal_error, n_iter, cost) of a problem without rows on one side."""
    zero = like.new_zeros((), dtype=dtype)
    f, g = (like.new_full((size,), -torch.inf, dtype=dtype) for size in (n, m))
    return (
        zero,
        zero,
        f,
        g,
        zero,
        torch.zeros_like(zero, dtype=torch.int64),
        like.new_zeros((n, m), dtype=dtype),
    )


def result(
    outputs: tuple[Any, ...],
    offsets: Offsets,
    shape: torch.Size | None,
    options: Options,
    by_class,
    scale=None,
) -> BatchResult:
    """The `BatchResult`; ``shape`` (B, N, M) where the batch is not ragged."""
    *outputs6, costs = outputs
    if shape is not None:
        outputs6[2], outputs6[3] = outputs6[2].view(shape[0], shape[1]), outputs6[3].view(shape[0], shape[2])
    counts = offsets.counts
    matrices = costs
    if isinstance(costs, Tensor):
        sizes = [_C.padded(n * m) for n, m in zip(*(c.tolist() for c in counts), strict=True)]
        matrices = [
            block[: n * m].view(n, m)
            for block, n, m in zip(costs.split(sizes), *(c.tolist() for c in counts), strict=True)
        ]
    classes = None if by_class[0] is None else (by_class[1], by_class[0].shape[-1])
    return BatchResult(matrices, tuple(outputs6), options, shape is None, classes, scale)
