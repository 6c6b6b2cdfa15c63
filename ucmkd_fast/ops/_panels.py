"""`sinkhorn_loss` without the cost matrix, panel by panel or spread over processes: calls and autograd.

The loops are in `_panel_loops`, what a device does in a sweep in its `panels`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import relative_reg, transforms
from ._autograd import given_back, needed, of_all
from ._devices import door
from ._panel_loops import PanelSolver, everywhere
from ._problem import Needs, Options, Problem, Solution, Upstream
from .sharded import Spread as Spread


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
        solver = PanelSolver(_detached(p), options, spread, bool(leaves) and options.grad == "unrolled")
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
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "double backward is not built for costs made panel by panel or spread over processes: it would keep "
                "the whole cost; raise memory_budget, or use smaller batches"
            )
        solver, needs, p = ctx.solver, ctx.needs, Problem(*ctx.saved_tensors)
        over = solver.over
        found = solver.gradient(Upstream(*upstream[:2]), needs._replace(y=over.wants_y(needs.y)))
        if needs.y:
            found = found._replace(y=over.mine(found.y))
        return given_back(of_all(found._replace(b=over.mine(found.b)), p), needs)


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
    if not transforms.direct(*tensors):
        raise NotImplementedError(
            "costs made panel by panel or spread over processes are not supported under functorch transforms, forward "
            "mode and dispatch modes: raise memory_budget, or call sinkhorn_loss outside of them"
        )


def _detached(problem: Problem) -> Problem:
    return Problem(*(None if z is None else z.detach() for z in problem))
