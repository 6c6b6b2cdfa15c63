"""`sinkhorn_loss` without the cost matrix: autograd, refusals and the result.

The sweeps are in `panel_sweeps`, on a GPU in `_panel_cuda`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _autograd, _panel_cuda, _solve_cuda, class_aware, cost
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
    x, y, a, b, init_fg, by_class, metric, dtype, options: Options, rows: int, keep=False, over=None
) -> tuple[Tensor, ...]:
    """(value, dual, f, g, marginal_error, n_iter) with the cost of ``rows`` rows at a time; no plan."""
    if not _autograd.direct(x, y, a, b, by_class[0]):
        raise NotImplementedError(
            "costs made panel by panel or spread over processes are not built for functorch transforms and dispatch "
            "modes: raise memory_budget, or call sinkhorn_loss outside of them"
        )
    if x.device.type != "cpu" and not _solve_cuda.runs_on(x):
        raise NotImplementedError(
            "costs made panel by panel or spread over processes need kernels for the tensors' device, this build has "
            f"none for {x.device.type}"
        )
    settings = metric, dtype, options, rows, keep, over or Alone()
    return PanelSinkhorn.apply(x, y, by_class[0], a, b, by_class[1], init_fg[0], *settings)


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
