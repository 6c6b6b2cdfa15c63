"""Pairs drawn from transport plans: a row by the row sums, then a column of it, by inversion of both distributions.

All random numbers are drawn first, so that what comes out does not depend on the blocks. Only the rows that were drawn
are gone through again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from . import checks, transforms
from ._devices import dtype_of_sums
from ._plan_rows import Plans, log_row_sums, shifted_exp_

Pairs = tuple[Tensor, Tensor]  # i and j


@transforms.not_compiled
def check(n: Any, generator: Any, *tensors: Tensor) -> int:
    """The number of pairs.

    Raises:
        TypeError: no integer, or no generator.
        ValueError: n below 1.
        NotImplementedError: the call is under a transform.
    """
    n = checks.count_at_least_one("n", n)
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    if not transforms.direct(*tensors):
        raise NotImplementedError(
            "sample is not supported under functorch transforms, forward mode and dispatch modes: call it outside of "
            "them, for a batch of costs (B, N, M) at once"
        )
    return int(n)


@transforms.not_compiled
def pairs(parts: Iterable[Plans], batch: int, n: int, generator: torch.Generator | None) -> Pairs:
    """Pairs (B, n) of each of ``batch`` plans, which come in parts; with a group (1, k), those of this process."""
    found, uniforms, done = [], None, 0
    for plans in parts:
        if uniforms is None:
            uniforms = _uniforms((2, batch, n), generator, plans.f.device)
        found.append(_of_plans(plans, uniforms[:, done : done + len(plans.f)]))
        done += len(plans.f)
    i, j = zip(*found, strict=True)
    return torch.cat(i), torch.cat(j)


def _uniforms(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Numbers in [0, 1), drawn where the generator is."""
    source = device if generator is None else generator.device
    drawn = torch.rand(shape, generator=generator, device=source, dtype=dtype_of_sums(source))
    return drawn.to(device, dtype_of_sums(device))


def _of_plans(plans: Plans, uniforms: Tensor) -> Pairs:
    """Of uniforms (2, B, n)."""
    (batch, rows), columns = plans.f.shape, plans.g.shape[1]
    if not columns or (plans.over.alone and not rows):  # of a ragged batch
        nothing = torch.full(uniforms.shape[1:], -1, device=plans.f.device)
        return nothing, nothing.clone()
    weights, of_rows, of_columns = _rows_of_process(plans, *uniforms)
    problem = torch.arange(batch, device=plans.f.device).repeat_interleave(of_rows.shape[1])
    row = _inverted(weights, problem, of_rows.flatten())
    column = _columns(plans, problem, row, of_columns.flatten())
    return row.view(of_rows.shape), column.view(of_rows.shape)


def _rows_of_process(plans: Plans, of_rows: Tensor, of_columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (B, N) of the rows, and the uniforms of the draws that fall on rows of this process.

    Raises:
        ValueError: a plan without mass, or processes that do not draw alike.
    """
    logs = log_row_sums(plans).to(of_rows.dtype)
    own = logs.logsumexp(-1)
    # What each process has, and what it is about to draw: the first number stands for its generator.
    asked = own.new_full(own.shape, float(of_rows.shape[1]))
    table = plans.over.each(torch.stack([own, asked, of_rows[:, 0]]))  # (P, 3, B)
    masses = table[:, 0]
    top = masses.amax(0)
    bounds = torch.nn.functional.pad((masses - top).exp().cumsum(0), (0, 0, 1, 0))  # (P + 1, B)
    if not plans.over.alone and bool((table[:, 1:] != table[:1, 1:]).any()):
        raise ValueError(
            "every process of the group must call sample with the same n and a generator of the same seed and state"
        )
    if not bool((bounds[-1] > 0).all()):  # also NaN
        raise ValueError("sample needs a plan with mass, got one whose entries are all 0 or NaN")
    weights = (logs - top[:, None]).exp()
    if plans.over.alone:
        return weights, of_rows, of_columns
    low, high = bounds[plans.over.rank], bounds[plans.over.rank + 1]
    at = of_rows * bounds[-1]
    mine = (low <= at) & (at < high)
    return weights, (at[mine] - low)[None] / (high - low), of_columns[mine][None]


def _columns(plans: Plans, problem: Tensor, row: Tensor, uniforms: Tensor) -> Tensor:
    """For each drawn row (k,) a column of it; each row is gone through once, however often it was drawn."""
    if not len(row):
        return row
    n, most = plans.f.shape[1], plans.costs.most_rows
    different, place = torch.unique(problem * n + row, return_inverse=True)
    order = place.argsort()
    starts = torch.arange(0, len(different), most, device=row.device)
    ends = [*torch.searchsorted(place[order], starts).tolist()[1:], len(row)]
    column = torch.empty_like(row)
    begin = 0
    for start, end in zip(range(0, len(different), most), ends, strict=True):
        here, rows = order[begin:end], different[start : start + most]
        weights, _ = shifted_exp_(plans.log_rows(rows // n, rows % n), -1)
        column[here] = _inverted(weights, place[here] - start, uniforms[here])
        begin = end
    return column


def _inverted(weights: Tensor, row: Tensor, uniforms: Tensor) -> Tensor:
    """For each u (k,) in [0, 1) the first entry of row ``row`` (k,) at which the weights (R, M) add up to more than u.

    Of the sum of that row; by bisection. Never an entry of weight 0.
    """
    if not len(row):  # of a process that may have no rows
        return row
    last = weights.shape[1] - 1
    sums = weights.cumsum(-1, dtype=uniforms.dtype)
    wanted = uniforms * sums[row, last]
    low, high = torch.zeros_like(row), torch.full_like(row, last)
    for _ in range(last.bit_length()):
        middle = (low + high) // 2
        above = sums[row, middle] > wanted
        low, high = torch.where(above, low, torch.minimum(middle + 1, high)), torch.where(above, middle, high)
    # Sums that are added up in parallel may step by their rounding where a weight is 0.
    missed = (weights[row, low] <= 0).nonzero()[:, 0]
    low[missed] = weights[row[missed]].argmax(-1)
    return low
