"""Many problems between features in one call: batches (B, N, D), and lists of problems by offsets.

On a CPU a batch is a list whose problems have one size, and a list is one native call. On a GPU a batch goes through
its cost (B, N, M), and a list through `_padded` batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _autograd, _padded, _reference, _route, not_converged, relative_reg, transforms
from ._devices import door, dtype_of_sums
from ._problem import Convergence, Kept, Needs, Offsets, Options, Problem, Solution, Upstream
from ._route import Call, Many, Way, way
from .matrix import with_classes
from .result import BatchResult, SinkhornResult


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


class _Found(NamedTuple):
    """What a way leaves; of one by one, only what is asked for."""

    solution: Solution  # values (B,), potentials flat
    costs: list[Tensor]  # (N_k, M_k)


def loss(p: Problem, offsets: Any, options: Options, call: Call) -> Tensor | SinkhornResult:
    """The losses (B,) of a batch (B, N, D) or of a list, or their result."""
    p = transforms.alive(p)
    x, y = p.features
    at_door = door(x)
    batch = x.dim() == 3
    if batch and offsets is not None:
        raise ValueError(f"offsets are for flat x (sum N_k, D), got x of shape {tuple(x.shape)}")
    plain = transforms.direct(x, y, p.a, p.b, p.class_cost)
    device = at_door.KERNELS, at_door.BATCHED, plain, False
    if way(Many.BATCH if batch else Many.LIST, *device, False, call.result) is Way.COST:
        return _by_costs(p, options, call)
    at = (
        Offsets.of_batch(x.shape[0], x.shape[1], y.shape[1])
        if batch
        else check_offsets(offsets, len(x), len(y))
    )
    p, sizes = (p.flat(), x.shape[:2] + y.shape[1:2]) if batch else (p, None)
    if call.relative:
        p, options = relative_reg.settle(
            p, mean_costs(p, at, options), options, relative_reg.on_host(*p.features)
        )
    chosen = way(Many.LIST, *device, p.scale is not None, call.result)
    found = _solve(p, at, options, call, chosen)
    if call.told is not None:
        call.told.take(found.solution.marginal_error, found.solution.n_iter)
    if call.result:
        return _result(found, p, options, sizes)
    value = found.solution.loss(options.regularized)
    if not call.divergence:
        return value
    own = Offsets(at.x, at.x), Offsets(at.y, at.y)
    within = [
        _solve(part, k, options.within(side), call.within(), chosen).solution.dual
        for side, (part, k) in enumerate(zip(p.within(), own, strict=True))
    ]
    divergence = _route.debiased(value, within, _mass_term(p, at, options))
    return torch.where(at.empty.to(x.device, non_blocking=True), 0, divergence)


def _mass_term(p: Problem, at: Offsets, options: Options) -> Tensor | None:
    """As `_route.mass_term`, of a list: (B,)."""
    if options.unbalanced is None or (p.a is None and p.b is None):
        return None
    x = p.features[0]
    owner = [torch.repeat_interleave(torch.arange(len(count)), count).to(x.device) for count in at.counts]
    one = torch.ones(len(at.x) - 1, dtype=options.dtype, device=x.device)
    sums = [
        one if z is None else torch.zeros_like(one).index_add(0, k, z)
        for z, k in zip((p.a, p.b), owner, strict=True)
    ]
    return _route.half_square(sums[0] - sums[1], p, options)


def _by_costs(p: Problem, options: Options, call: Call) -> Tensor | SinkhornResult:
    """A batch through its cost (B, N, M): on GPUs, under transforms and compilers."""
    if call.relative:
        x, y = p.features
        matrix = _route.cost_of(p._replace(x=x.detach(), y=y.detach()), options)
        p = p._replace(scale=relative_reg.mean_cost(matrix))
    found = _route.by_cost(p, options, call)
    if not call.divergence:
        return found
    within = [
        _route.by_cost(part, options.within(side), call.within()) for side, part in enumerate(p.within())
    ]
    return _route.debiased(found, within, _route.mass_term(p, options))


def _solve(p: Problem, at: Offsets, options: Options, call: Call, chosen: Way) -> _Found:
    if chosen is Way.ONE_BY_ONE:
        return _one_by_one(p, at, options, call)
    _require_eager(p)
    if chosen is Way.PADDED:
        return _Found(*_padded.solve(p, at, options, call.told is not None))
    return in_one_call(p, at, options, call)


def _require_eager(p: Problem) -> None:
    if not transforms.direct(p.x, p.y, p.a, p.b, p.class_cost):
        raise NotImplementedError(
            "ragged batches are not supported under functorch transforms, forward mode and dispatch modes: form the "
            "cost and call sinkhorn, or call sinkhorn_loss once per problem"
        )


# In one native call


class _OfList(NamedTuple):
    """A call of `ListSinkhorn`."""

    p: Problem
    offsets: Offsets
    options: Options
    needs: Needs


class ListSinkhorn(torch.autograd.Function):
    """Of x (sum N_k, D), y (sum M_k, D): the `Solution`, and the costs as the door keeps them."""

    @staticmethod
    def forward(ctx: Any, call: _OfList, *leaves: Tensor) -> tuple[Tensor, ...]:
        """Everything but features is contiguous."""
        p, offsets, options, needs = call
        found, kept = door(p.features[0]).solve_list(p, offsets, options, bool(leaves))
        if leaves:
            constants = (found.f, found.g) if options.grad == "envelope" else ()
            ctx.mark_non_differentiable(*constants, found.marginal_error, found.n_iter, kept.costs)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*p, *kept)
            ctx.settings = offsets, options, needs
        return *found, kept.costs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of features, masses and W."""
        saved, (offsets, options, needs), up = ctx.saved_tensors, ctx.settings, Upstream(*upstream[:4])
        p, kept = Problem(*saved[: len(Problem._fields)]), Kept(*saved[len(Problem._fields) :])
        if not up.any:
            return _autograd.given_back((None,) * len(needs), needs)
        if torch.is_grad_enabled():
            transforms.refuse_second_order(options.grad)

            def again(
                x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, class_cost: Tensor | None
            ) -> tuple[Tensor, ...]:
                return _by_reference(p._replace(x=x, y=y, a=a, b=b, class_cost=class_cost), offsets, options)

            found = transforms.differentiate(again, _autograd.differentiable(p), up)
            return _autograd.given_back(found, needs)
        grads = door(p.features[0]).solve_list_backward(p, offsets, kept, up, options, needs)
        return _autograd.given_back(_autograd.of_all(grads, p), needs)


@transforms.not_compiled
def in_one_call(p: Problem, at: Offsets, options: Options, call: Call) -> _Found:
    """Costs are told apart where a result is asked for."""
    p = p.contiguous()
    door_ = door(p.features[0])
    needs, wanted = _autograd.needed(p)
    *found, costs = transforms.applied(ListSinkhorn)(_OfList(p, at, options, needs), *wanted)
    solution = Solution(*found)
    if call.told is None:
        mass = None
        if p.a is not None:
            mass = torch.where(at.empty, 1, door_.sums(p.a.detach(), at.counts[0]))[:, None]
        metric = options.metric if p.class_cost is None else None
        not_converged.look(solution.marginal_error, solution.value, mass, options, metric)
    return _Found(solution, door_.matrices(at, costs) if call.result else [])


def _by_reference(p: Problem, offsets: Offsets, options: Options) -> tuple[Tensor, ...]:
    """(value, dual, f, g) problem by problem; differentiable to any order."""
    parts = []
    for k in range(len(offsets.x) - 1):
        rows, columns = offsets.rows(k)
        part = p.one(rows, columns)
        if rows.start == rows.stop or columns.start == columns.stop:
            parts.append(_nothing(part, options)[0])
            continue
        parts.append(_reference.solve(part._replace(cost=_reference_cost(part, options)), options))
    value, dual, f, g, *_ = zip(*parts, strict=True)
    return torch.stack(value), torch.stack(dual), torch.cat(f), torch.cat(g)


def _reference_cost(p: Problem, options: Options) -> Tensor:
    """The cost (N_k, M_k) of one problem, differentiable."""
    return with_classes(_reference.cost(*p.features, options.known_metric, options.dtype), p)


def _nothing(p: Problem, options: Options) -> tuple[Solution, Tensor]:
    """The solution of a problem without rows on one side, and its cost."""
    (x, y), dtype = p.features, options.dtype
    zero = x.new_zeros((), dtype=dtype)
    f, g = (z.new_full((len(z),), -torch.inf, dtype=dtype) for z in (x, y))
    count = torch.zeros_like(zero, dtype=torch.int64)
    return Solution(zero, zero, f, g, zero, count), x.new_zeros((len(x), len(y)), dtype=dtype)


# One by one

_NO_PANELS = 1 << 62  # a budget that every problem of a list is in


def _one_by_one(p: Problem, at: Offsets, options: Options, call: Call) -> _Found:
    """Problem by problem; of a loss, potentials and costs are left out."""
    parts: list[tuple[Any, ...]] = []
    for k in range(len(at.x) - 1):
        part, told = p._replace(scale=None).one(*at.rows(k)), Convergence()
        x, y = part.features
        if not len(x) or not len(y):
            solution, cost = _nothing(part, options)
            parts.append((*solution, cost))
            continue
        mine = options
        if p.scale is not None:
            part, mine = relative_reg.settle(part, p.scale[k], options, relative_reg.on_host(*p.features))
        quiet = told if call.told is not None else None
        if call.result:
            cost, solution = _route.solved(part, mine, quiet)
            parts.append((*solution, cost.detach()))
        else:
            found = _route.one(part, mine, Call(quiet, budget=_NO_PANELS))
            parts.append((found, found, None, None, told.marginal_error, told.n_iter, None))
    value, dual, f, g, error, n_iter, costs = zip(*parts, strict=True)
    if not call.result:
        ends = [torch.stack(z) if call.told is not None else value[0].new_zeros(()) for z in (error, n_iter)]
        empty = value[0].new_zeros(0)
        return _Found(Solution(torch.stack(value), torch.stack(dual), empty, empty, ends[0], ends[1]), [])
    vectors = torch.cat(f), torch.cat(g), torch.stack(error), torch.stack(n_iter)
    return _Found(Solution(torch.stack(value), torch.stack(dual), *vectors), list(costs))


def _result(found: _Found, p: Problem, options: Options, sizes: torch.Size | None) -> BatchResult:
    """``sizes`` (B, N, M) where the batch is not ragged."""
    solution = found.solution
    if sizes is not None:
        batch, n, m = sizes
        solution = solution._replace(f=solution.f.view(batch, n), g=solution.g.view(batch, m))
    return BatchResult(found.costs, solution, options, sizes is None, p.labelled, p.scale)


# Mean costs


@torch.no_grad()
def cost_sums(p: Problem, offsets: Offsets, options: Options) -> tuple[Tensor, Tensor]:
    """Of every problem the sum (B,) of its finite costs, and their number."""
    x, y = p.features
    p, at = p._replace(x=x.detach(), y=y.detach()), door(x)
    if at.KERNELS and at.BATCHED:
        return _padded.cost_sums(p, offsets, options)
    total = x.new_zeros(len(offsets.x) - 1, dtype=dtype_of_sums(x.device))
    count = torch.zeros_like(total, dtype=torch.int64)
    for k in range(len(total)):
        part = p.one(*offsets.rows(k))
        if at.HOST:
            matrix = with_classes(at.matrix(*part.features, options.metric, options.dtype), part)
        else:
            matrix = _reference_cost(part, options)
        total[k], count[k] = relative_reg.sums(matrix)
    return total, count


def mean_costs(p: Problem, offsets: Offsets, options: Options) -> Tensor:
    """The mean (B,) of `relative_reg.mean_cost`; 1 where there is nothing to transport."""
    mean = relative_reg.ratio(*cost_sums(p, offsets, options))
    empty = offsets.empty.to(mean.device, non_blocking=True)
    return torch.where(empty, 1, mean).to(options.dtype)
