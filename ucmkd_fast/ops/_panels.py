"""`sinkhorn_loss` without the cost matrix, panel by panel or spread over processes: calls and autograd.

The loops are in `_panel_loops`, what a device does in a sweep in its `panels`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _transforms, relative_reg
from ._devices import door
from ._panel_loops import PanelSolver, everywhere
from ._problem import Needs, Options, Problem, Solution, Upstream
from .sharded import Spread as Spread


class Call(NamedTuple):
    """What a call runs on and with."""

    problem: Problem  # detached
    options: Options
    spread: Spread


class PanelSinkhorn(torch.autograd.Function):
    """The `Solution` of a call, whose value and dual value are differentiable.

    X (N, D), y (M, D), W (N, K) and the masses are those of the call's problem, for autograd.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: Tensor,
        y: Tensor,
        class_cost: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        call: Call,
    ) -> tuple[Tensor, ...]:
        needs = any(ctx.needs_input_grad[:5])
        problem, options, spread = call
        solver = PanelSolver(problem, options, spread, needs and options.grad == "unrolled")
        found = solver.solve()
        ctx.mark_non_differentiable(found.f, found.g, found.marginal_error, found.n_iter)
        ctx.set_materialize_grads(False)
        if needs:
            # Autograd then sees that nobody wrote to them.
            ctx.save_for_backward(x, y, class_cost, a, b, problem.labels)
            ctx.solver, ctx.dtypes = solver, (x.dtype, y.dtype)
        return tuple(found)

    @staticmethod
    def backward(
        ctx: Any, up_value: Tensor | None, up_dual: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "double backward is not built for costs made panel by panel or spread over processes: it would keep "
                "the whole cost; raise memory_budget, or use smaller batches"
            )
        need_x, need_y, need_classes, need_a, need_b = ctx.needs_input_grad[:5]
        solver, _saved = ctx.solver, ctx.saved_tensors
        over = solver.over
        needs = Needs(x=need_x, y=over.wants_y(need_y), class_cost=need_classes)
        found = solver.gradient(Upstream(value=up_value, dual=up_dual), needs)
        dx = None if found.x is None else found.x.to(ctx.dtypes[0])
        dy = None if found.y is None or not need_y else over.mine(found.y).to(ctx.dtypes[1])
        db = over.mine(found.b) if need_b else None
        return dx, dy, found.class_cost, found.a if need_a else None, db, None


@torch.compiler.disable
def solve(problem: Problem, options: Options, spread: Spread) -> Solution:
    """With the cost of ``spread.rows`` rows at a time; no plan, and init_g takes no part."""
    p = problem
    require_eager(p.x, p.y, p.a, p.b, p.class_cost)
    call = Call(_detached(p), options, spread)
    return Solution(*PanelSinkhorn.apply(p.x, p.y, p.class_cost, p.a, p.b, call))


@torch.compiler.disable
def mean_cost(problem: Problem, options: Options, spread: Spread) -> Tensor:
    """The mean () of `relative_reg.mean_cost` over the rows of all processes, panel by panel."""
    require_eager(problem.x, problem.y, problem.class_cost)
    p, over = everywhere(_detached(problem)._replace(a=None, b=None), options.dtype, spread.over), spread.over
    x, _ = p.features
    total = count = torch.zeros((), dtype=torch.float64, device=x.device)
    for matrix in door(x).cost_panels(p, options, spread):
        more = relative_reg.sums(matrix)
        total, count = total + more[0], count + more[1]
    mean = relative_reg.ratio(*over.add(torch.stack([total, count])))
    return over.greatest(mean).to(options.dtype)  # the same bits everywhere


def require_eager(*tensors: Tensor | None) -> None:
    """Raise NotImplementedError where something other than plain autograd is at work."""
    if not _transforms.direct(*tensors):
        raise NotImplementedError(
            "costs made panel by panel or spread over processes are not supported under functorch transforms, forward "
            "mode and dispatch modes: raise memory_budget, or call sinkhorn_loss outside of them"
        )


def _detached(problem: Problem) -> Problem:
    return Problem(*(None if z is None else z.detach() for z in problem))
