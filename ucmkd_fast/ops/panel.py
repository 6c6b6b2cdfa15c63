"""`sinkhorn_loss` without the cost matrix: autograd, refusals and the result.

The sweeps are in `panel_sweeps`, on a GPU in `_panel_cuda`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _devices, _not_converged, _panel_cuda, _solve_cuda, class_aware, cost, relative_reg
from ._loss import Classes
from ._solve import Options
from .panel_sweeps import Alone, Panels, Problem
from .refusals import explained
from .result import SinkhornResult


class PanelSinkhorn(torch.autograd.Function):
    """From x (N, D), y (M, D), W (N, K): (value, dual, f, g, marginal_error, n_iter); two of them differentiable."""

    @staticmethod
    def forward(ctx: Any, x, y, class_cost, a, b, y_labels, init_f, metric, dtype, options, rows, keep, over):  # noqa: D102
        needs = any(ctx.needs_input_grad[:5])
        problem: Any
        if _solve_cuda.runs_on(x):
            mass_a, mass_b, w = (t if t is None else t.detach() for t in (a, b, class_cost))
            classes = None if w is None else Classes(w, y_labels)
            how = metric, dtype, options, rows, keep, over
            problem = _panel_cuda.Problem(x.detach(), y.detach(), mass_a, mass_b, classes, *how)
        else:
            problem = _problem(x, y, class_cost, a, b, y_labels, metric, dtype, options, rows, keep, over)
        s = problem.solve(init_f, needs and options.grad == "unrolled")
        f, g = s.f, over.mine(s.g[: over.total_columns(len(y))]).clone()
        n_iter = torch.as_tensor(s.n_iter)
        ctx.mark_non_differentiable(f, g, s.marginal_error, n_iter)
        ctx.set_materialize_grads(False)
        if needs:
            # Autograd then sees that nobody wrote to them.
            ctx.save_for_backward(x, y, class_cost, a, b, y_labels)
            ctx.problem, ctx.dtypes = problem, (x.dtype, y.dtype)
            none = s.value.new_empty(0)  # an output of this Function here would be a cycle
            ctx.solved = s._replace(value=none, dual=none, marginal_error=none)
        return s.value, s.dual, f.clone(), g, s.marginal_error, n_iter

    @staticmethod
    def backward(ctx: Any, up_value, up_dual, *_):  # noqa: D102
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "double backward is not built for costs made panel by panel or spread over processes: it would keep "
                "the whole cost; raise memory_budget, or use smaller batches"
            )
        need_x, need_y, need_classes, need_a, need_b = ctx.needs_input_grad[:5]
        problem, _ = ctx.problem, ctx.saved_tensors
        need = need_x, problem.over.wants_y(need_y), need_classes
        dx, dy, d_classes, da, db = problem.gradient(ctx.solved, up_value, up_dual, need)
        dx = None if dx is None else dx.to(ctx.dtypes[0])
        dy = None if dy is None or not need_y else problem.over.mine(dy).to(ctx.dtypes[1])
        db = problem.over.mine(db) if need_b else None
        return dx, dy, d_classes, da if need_a else None, db, *[None] * 8


def _problem(x, y, class_cost, a, b, y_labels, metric, dtype, options, rows, keep, over) -> Problem:
    """The problem on the CPU, once every process has looked at its part."""
    wide_x = x.detach().to(dtype).contiguous()
    wide_y = over.gather(y.detach()).to(dtype).contiguous()
    try:
        features, refused = cost.scaled(wide_x, wide_y, metric), None
    except ValueError as error:
        refused = str(error)
    over.refuse(refused)
    total = over.total_rows(len(x))
    mass_a = wide_x.new_full((len(x),), 1 / total) if a is None else a.detach().contiguous()
    every_b = None if b is None else over.gather(b.detach())
    mass_b = wide_y.new_full((len(wide_y),), 1 / len(wide_y)) if every_b is None else every_b
    over.refuse(_bad_masses(mass_a, mass_b, over))
    classes = None
    if class_cost is not None:
        over.refuse(class_aware.bad_values(class_cost.detach(), y_labels))
        classes = Classes(class_cost.detach().contiguous(), over.gather(y_labels).contiguous())
    panels = Panels(features, options.reg, rows, keep, classes)
    return Problem(features, mass_a, mass_b, panels, options, over)


@torch.compiler.disable
def solve(
    x, y, a, b, init_fg, by_class, metric, dtype, options: Options, rows: int, keep=False, over=None, scale=None,
    quiet=False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(value, dual, f, g, marginal_error, n_iter) with the cost of ``rows`` rows at a time; no plan.

    Reg is in units of ``scale`` (), for a metric of `relative_reg.SCALABLE`.
    """
    _require_eager(x, y, a, b, by_class[0])
    over, init_f, class_cost = over or Alone(), init_fg[0], by_class[0]
    if scale is not None:
        x, y = relative_reg.features(x, y, metric, dtype, scale)
        init_f = relative_reg.over(init_f, scale)
        class_cost = None if class_cost is None else class_cost / scale
    settings = metric, dtype, options, rows, keep, over
    found = PanelSinkhorn.apply(x, y, class_cost, a, b, by_class[1], init_f, *settings)
    if not quiet:
        here = a if over.alone else None
        _not_converged.look(found[4], found[0], here, options, metric if class_cost is None else None)
    return found if scale is None else relative_reg.back(found, scale)


@torch.compiler.disable
def mean_cost(x, y, by_class, metric, dtype, rows: int, keep=False, over=None) -> Tensor:
    """The mean () of `relative_reg.mean_cost` over the rows of all processes, ``rows`` of them at a time."""
    _require_eager(x, y, by_class[0])
    over = over or Alone()
    total = count = torch.zeros((), dtype=torch.float64, device=x.device)
    for matrix in _matrices(x.detach(), y.detach(), by_class, metric, dtype, rows, over):
        more = relative_reg.sums(matrix)
        total, count = total + more[0], count + more[1]
    mean = relative_reg.ratio(*over.add(torch.stack([total, count])))
    return over.greatest(mean).to(dtype)  # the same bits everywhere


def _matrices(x, y, by_class, metric, dtype, rows: int, over: Alone) -> Iterator[Tensor]:
    """The costs of some rows at a time, once every process has looked at its part."""
    y, classes = over.gather(y), None
    if by_class[0] is not None:
        classes = Classes(by_class[0].detach().contiguous(), over.gather(by_class[1]).contiguous())
    if _solve_cuda.runs_on(x):
        panels = _panel_cuda.Panels(x, y, metric, dtype, rows, False, classes)
        yield from (matrix for _, matrix, _ in panels.each())
        return
    refused = None if classes is None else class_aware.bad_values(*classes[:2])
    try:
        cost.scaled(cost.plain(x, dtype), cost.plain(y, dtype), metric)
    except ValueError as error:
        refused = str(error)
    over.refuse(refused)
    for start in range(0, len(x), max(rows, 1)):
        here = slice(start, start + rows)
        matrix = cost.matrix(x[here], y, metric, dtype)
        yield matrix if classes is None else matrix + class_aware.by_label(classes.cost[here], classes.labels)


def _require_eager(*tensors: Tensor | None) -> None:
    if not _autograd.direct(*tensors):
        raise NotImplementedError(
            "costs made panel by panel or spread over processes are not supported under functorch transforms, forward "
            "mode and dispatch modes: raise memory_budget, or call sinkhorn_loss outside of them"
        )


def require_kernels(x: Tensor) -> None:
    """Raise NotImplementedError where no kernels run on x: only they make costs panel by panel."""
    if not _devices.has_kernels(x):
        raise NotImplementedError(
            "costs made panel by panel (memory_budget) or spread over processes (group) need kernels for the tensors' "
            f"device, this build has none for {x.device.type}: raise memory_budget, or move the features to the CPU"
        )


class PanelResult(SinkhornResult):
    """As `SinkhornResult`, of a cost that was never formed: value and value_regularized are differentiable."""

    def plan(self) -> Tensor:
        """Refused: the plan is as large as the cost that did not fit."""
        raise MemoryError(
            "the plan (N, M) was asked for, but its cost did not fit memory_budget: take rows of it from the "
            "potentials, exp((f_i + g - C_i) / reg)"
        )

    def plan_by_class(self) -> Tensor:
        """Refused, as `plan`; under ``grad="envelope"`` a gradient is the same."""
        raise MemoryError(
            "the plan (N, M) was asked for, but its cost did not fit memory_budget: with grad='envelope' its sums by "
            "class are the gradient of value_regularized with respect to class_cost"
        )


def _bad_masses(a: Tensor, b: Tensor, over: Alone) -> str | None:
    """A sentence about the masses of the whole problem, or None."""
    sums = [over.add(a.double().sum()), b.double().sum()]
    least = torch.stack([z.min().double() if len(z) else sums[0] * 0 for z in (a, b)])
    good = (least >= 0).all() & torch.stack(sums).isfinite().all()
    if not good:
        return explained("masses must be finite and >= 0, got a negative one, NaN or inf", a=a, b=b)
    if not (sums[0] > 0 and sums[1] > 0):
        return "masses must not all be 0, got an all-zero vector"
    if (sums[0] - sums[1]).abs() > (1e-4 if a.dtype == torch.float32 else 1e-6) * (sums[0] + sums[1]):
        return f"a and b must have equal sums (each is 1 where it is not given), got {sums[0]:.6g} and {sums[1]:.6g}"
    return None
