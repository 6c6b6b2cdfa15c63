"""Which way a problem goes, decided here from the problem alone; and the ways of one problem.

`way` and `solver` are the tables. Lists and batches of problems are in `_lists`.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import (
    _autograd,
    _by_torch,
    _panels,
    _reference,
    _registered,
    memory,
    not_converged,
    relative_reg,
    sharded,
    transforms,
)
from ._devices import door, require_kernels, warn_without_kernels
from ._problem import Convergence, Options, Problem, Solution
from .matrix import cost_matrix, with_classes
from .result import PanelResult, SinkhornResult


class Way(enum.Enum):
    """How a loss between features is made."""

    LOSS = "one op from the features to the loss"
    COST = "the cost as a matrix, and what `Solver` runs on it"
    PANELS = "panel by panel: the cost does not fit, or its rows are spread over processes"
    LIST = "one native call for a list of problems"
    PADDED = "a list of problems as batches that are padded to one size"
    ONE_BY_ONE = "a list of problems one after the other"


class Solver(enum.Enum):
    """What runs on a cost."""

    KERNELS = "the door's, as an eager Function"
    REGISTERED = (
        "the same as ops of torch.library, for compilers, dispatch modes and one derivative by torch.func"
    )
    BY_TORCH = "torch's own operations, for forward mode and derivatives of derivatives"
    REFERENCE = "the reference: the device has no kernels"


class Many(enum.Enum):
    """How many problems a call has."""

    ONE = "one"
    BATCH = "a batch (B, ...)"
    LIST = "a list, flat"


def way(
    many: Many, kernels: bool, batched: bool, plain: bool, panels: bool, scaled: bool, result: bool
) -> Way:
    """The way of a loss between features.

    Args:
        many: how many problems.
        kernels: this build has some for the tensors' device.
        batched: they take costs (B, N, M) in one call.
        plain: eager tensors: no transform, compiler or mode in between.
        panels: the matrices do not fit, or a group shares the rows.
        scaled: reg is in units of a scale that is not read.
        result: potentials are asked for, not the loss alone.
    """
    if many is Many.ONE:
        if panels:
            return Way.PANELS
        return Way.LOSS if kernels and plain and not scaled and not result else Way.COST
    if many is Many.BATCH:
        return Way.LIST if kernels and not batched and plain else Way.COST
    if not kernels or (scaled and not batched):
        return Way.ONE_BY_ONE
    return Way.PADDED if batched else Way.LIST


def solver(kernels: bool, plain: bool, transformed: bool, by_torch: bool) -> Solver:
    """What runs on a cost, where a transform of torch.func is under way and where its kind needs torch's operations."""
    if not plain and (by_torch or (transformed and not kernels)):
        return Solver.BY_TORCH
    if not kernels:
        return Solver.REFERENCE
    return Solver.KERNELS if plain else Solver.REGISTERED


class Call(NamedTuple):
    """What is asked of a call beside its problem and options."""

    told: Convergence | None = None  # to fill in; its caller looks at the marginal error
    result: bool = False  # else the loss
    divergence: bool = False
    relative: bool = False  # reg is a factor of the mean cost
    budget: int | None = None  # bytes
    group: Any = None  # of processes that share the problem

    def within(self) -> Call:
        """Of a problem within one set, of a divergence: nobody asks how it converged, or all are quiet."""
        return self._replace(told=None if self.told is None else Convergence(), result=False)


# A cost that is given


def solve(p: Problem, options: Options, quiet: bool = False) -> Solution:
    """Of a cost (B?, N, M), by what `solver` says; ``quiet``: nothing is said of its convergence."""
    if p.scale is not None:
        p, scale = relative_reg.over(p, options)
        return relative_reg.back(solve(p, options, quiet), scale)
    cost, kernels = p.matrix, door(p.matrix).KERNELS
    plain = transforms.direct(cost, p.a, p.b, p.init_f, p.init_g)
    chosen = solver(kernels, plain, not plain and transforms.active(), not plain and transforms.by_torch())
    if chosen is Solver.BY_TORCH:
        return _by_torch.solve(p, options)
    if chosen is Solver.REGISTERED:  # the op itself looks, when it runs
        if not quiet or torch.compiler.is_compiling():
            return _registered.solve(p, options)
        with not_converged.silent():
            return _registered.solve(p, options)
    if chosen is Solver.REFERENCE and not door(cost).KERNELS:
        warn_without_kernels(cost.device)
    found = _autograd.solve(p, options) if chosen is Solver.KERNELS else _reference.solve(p, options)
    if plain and not quiet:
        not_converged.look(found.marginal_error, found.value, p.a, options)
    return found


def given(p: Problem, options: Options, relative: bool) -> SinkhornResult:
    """The result of a cost."""
    if relative:
        cost, host = p.matrix, relative_reg.on_host(p.cost, p.a, p.b)
        mean = relative_reg.mean_cost_on_host if host and cost.dim() == 2 else relative_reg.mean_cost
        p, options = relative_reg.settle(p, mean(cost), options, host)
    return SinkhornResult(p.matrix, solve(p, options), options, None, p.scale)


# One problem between features


def cost_of(p: Problem, options: Options) -> Tensor:
    """The cost (B?, N, M) of features, with its term by class."""
    x, y = p.features
    return with_classes(cost_matrix(x, y, options.known_metric, options.dtype), p)


def solved(p: Problem, options: Options, told: Convergence | None) -> tuple[Tensor, Solution]:
    """The cost (B?, N, M) of features, and the solution on it; ``told`` is filled in."""
    matrix = cost_of(p, options)
    found = solve(p._replace(cost=matrix), options, told is not None)
    if told is not None:
        told.take(found.marginal_error, found.n_iter)
    return matrix, found


def by_cost(p: Problem, options: Options, call: Call) -> Tensor | SinkhornResult:
    """Through the cost (B?, N, M)."""
    matrix, found = solved(p, options, call.told)
    if not call.result:
        return found.loss(options.regularized)
    return SinkhornResult(matrix, found, options, p.labelled, p.scale)


def one(p: Problem, options: Options, call: Call) -> Tensor | SinkhornResult:
    """The loss or the result of one problem."""
    x, y = p.features
    at, spread = door(x), _spread(p, options, call)
    plain = transforms.direct(x, y, p.a, p.b, p.class_cost, p.labels)
    scaled = p.scale is not None
    chosen = way(Many.ONE, at.KERNELS, at.BATCHED, plain, spread is not None, scaled, call.result)
    if chosen is Way.LOSS:
        return _autograd.loss(p, options, call.told)
    if chosen is Way.COST:
        return by_cost(p, options, call)
    assert spread is not None
    if p.scale is not None and options.metric not in relative_reg.SCALABLE:
        # Read, which waits for a device.
        p, options = relative_reg.settle(p._replace(scale=None), p.scale, options, True)
    return _by_panels(p, options, call, spread)


def _by_panels(p: Problem, options: Options, call: Call, spread: _panels.Spread) -> Tensor | SinkhornResult:
    scale, given = p.scale, p
    if scale is not None:
        p, _ = relative_reg.over(p, options)
    found = _panels.solve(p, options, spread)
    if call.told is None:
        metric = options.metric if p.class_cost is None else None
        not_converged.look(
            found.marginal_error, found.value, p.a if spread.over.alone else None, options, metric
        )
    else:
        call.told.take(found.marginal_error, found.n_iter)
    if scale is not None:
        found = relative_reg.back(found, scale)
    if call.result:
        return PanelResult(given, found, options, spread, scale)
    return found.loss(options.regularized)


def _spread(p: Problem, options: Options, call: Call, wanted: str = "") -> _panels.Spread | None:
    """The panels of a cost that does not fit, or whose rows are spread over processes; else None."""
    (x, y), size = p.features, options.dtype.itemsize
    n, m = x.shape[0], y.shape[0]
    if call.group is None and not memory.worth_asking(n, m, size, call.budget):
        return None
    over = sharded.Alone()
    if call.group is not None:
        require_kernels(x)
        given = "".join(name for name, z in (("a", p.a), ("b", p.b)) if z is not None)
        classes = "" if p.class_cost is None else f"K {p.class_cost.shape[1]}"
        alike = f"xy{given} {classes} {x.shape[1]} {options} {wanted or call.result}"
        over = sharded.Shards(call.group, n, m, torch.is_grad_enabled() and y.requires_grad, alike)
        m = over.total_columns(m)
    fits = not _streamed(p, m, size, call.budget)
    if fits and over.alone:
        return None
    require_kernels(x)
    return _panels.Spread(memory.panel_rows(n, m, size, call.budget, x.device), fits, over)


def _streamed(p: Problem, columns: int, itemsize: int, budget: int | None) -> bool:
    """Whether the matrices do not fit; without kernels for the device only a given budget is asked about."""
    x = p.features[0]
    if not memory.worth_asking(len(x), columns, itemsize, budget) or not (
        door(x).KERNELS or budget is not None
    ):
        return False
    tensors = (p.x, p.y, p.a, p.b, p.class_cost)
    return memory.needs_panels(len(x), columns, itemsize, transforms.recorded(*tensors), budget, x.device)


def _relative(p: Problem, options: Options, call: Call) -> tuple[Problem, Options]:
    """With reg relative to the mean cost of one problem."""
    x, y = p.features
    host = relative_reg.on_host(x, y, p.class_cost)
    masses = p._replace(a=None, b=None)
    spread = _spread(masses, options, call, "mean cost")
    with torch.no_grad():
        if spread is not None:
            scale = _panels.mean_cost(p, options, spread)
        elif host and p.class_cost is None:
            scale = relative_reg.mean_cost_on_host(door(x).matrix(x, y, options.metric, options.dtype))
        else:
            scale = relative_reg.mean_cost(cost_of(p._replace(x=x.detach(), y=y.detach()), options))
    return relative_reg.settle(p, scale, options, host)


def loss(p: Problem, options: Options, call: Call) -> Tensor | SinkhornResult:
    """The loss or the result of one problem between features."""
    if call.relative:
        p, options = _relative(p, options, call)
    if not call.divergence:
        return one(p, options, call)
    with not_converged.at_most_one():
        between = one(p, options, call)
        within = [one(part, options.within(side), call.within()) for side, part in enumerate(p.within())]
    return debiased(between, within, mass_term(p, options, call.group))


def debiased(between: Any, within: list[Any], mass: Tensor | None) -> Tensor:
    """The divergence from the values of its problems, and its `mass_term`."""
    found: Tensor = between - (within[0] + within[1]) / 2
    return found if mass is None else found + mass


def mass_term(p: Problem, options: Options, group: Any = None) -> Tensor | None:
    """What debiases unbalanced transport, reg / 2 (sum a - sum b)^2 (B?,), Sejourne et al. 2019; None: it is 0."""
    if options.unbalanced is None or (p.a is None and p.b is None):
        return None
    x, _ = p.features
    one = x.new_ones((), dtype=options.dtype)
    sum_a, sum_b = (one if z is None else sharded.summed(z.sum(-1), group) for z in (p.a, p.b))
    return half_square(sum_a - sum_b, p, options)


def half_square(gap: Tensor, p: Problem, options: Options) -> Tensor:
    """Of the gap between sums of masses, in units of cost."""
    half = options.reg / 2 if p.scale is None else options.reg / 2 * p.scale
    return half * gap**2
