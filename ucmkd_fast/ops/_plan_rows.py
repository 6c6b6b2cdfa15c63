"""Rows of transport plans from potentials and costs, a block at a time: the plan itself is never formed.

    log P = (f + g - C) / reg

Of a cost that was formed a block is a view; of one that was not, its rows are made anew. Nothing here is recorded by
autograd.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ._problem import Options, Problem
from .matrix import cost_matrix, with_classes
from .sharded import Alone

#: Entries of a block: large enough for torch's threads, and with the copies that are made of it under 100 MB.
BLOCK = 1 << 21


def exponents(f: Tensor, g: Tensor, cost: Tensor, reg: float | Tensor) -> Tensor:
    """(f + g - C) / reg, with the rounding of f + g put back (two-sum): f and g may be large against what is left.

    -inf where f or g is, or where C is +inf.
    """
    both = f + g
    with torch.no_grad():
        of_g = both - f
        rest = (f - (both - of_g)) + (g - of_g)
        rest = torch.where(rest.isfinite(), rest, 0)
    return ((both - cost) + rest) / reg


class Costs(Protocol):
    """The costs of B problems (N, M); rows of any problems, or blocks of rows."""

    most_rows: int  # of a block

    def block(self, problems: slice, rows: slice) -> Tensor:
        """(B', R, M)."""

    def rows(self, problem: Tensor, row: Tensor) -> Tensor:
        """(R, M): row ``row`` (R,) of problem ``problem`` (R,)."""


class GivenCosts:
    """A cost (B, N, M) that is there."""

    def __init__(self, cost: Tensor):
        self._cost = cost.detach()
        self.most_rows = max(1, BLOCK // max(1, cost.shape[-1]))

    def block(self, problems: slice, rows: slice) -> Tensor:
        """A view."""
        return self._cost[problems, rows]

    def rows(self, problem: Tensor, row: Tensor) -> Tensor:
        """A copy of some rows."""
        return self._cost[problem, row]


class MadeCosts:
    """The cost of one problem between features, of which ``most_rows`` rows fit."""

    def __init__(self, p: Problem, options: Options, most_rows: int):
        """Y and its labels are those of all processes."""
        self._p, self._options, self.most_rows = p.detached(), options, max(1, most_rows)

    def _made(self, at: slice | Tensor) -> Tensor:
        x, y = self._p.features
        part = self._p._replace(class_cost=None if self._p.class_cost is None else self._p.class_cost[at])
        return with_classes(cost_matrix(x[at], y, self._options.known_metric, self._options.dtype), part)

    def block(self, problems: slice, rows: slice) -> Tensor:
        """Of the one problem there is."""
        return self._made(rows)[None]

    def rows(self, problem: Tensor, row: Tensor) -> Tensor:
        """The cost of some rows alone."""
        return self._made(row)


class Block(NamedTuple):
    """Some rows of some problems: several problems only where each is whole."""

    problems: slice
    rows: slice


class Plans:
    """The plans of B problems of one size (N, M); a single problem is a batch of one.

    Where processes share the problem, N counts this process's rows, and M the columns of all.
    """

    def __init__(self, costs: Costs, f: Tensor, g: Tensor, reg: float | Tensor, over: Alone | None = None):
        """Of potentials (B, N) and (B, M), and a reg that is a number, () or (B,)."""
        self.costs, self.over = costs, over or Alone()
        self.f, self.g = f.detach(), g.detach()
        self._reg = reg.detach().expand(len(f)) if isinstance(reg, Tensor) else reg

    def blocks(self) -> Iterator[Block]:
        """Together all rows of all plans, in order."""
        (batch, n), most = self.f.shape, self.costs.most_rows
        if not n:
            return
        together = max(1, most // n)
        for first in range(0, batch, together):
            for start in range(0, n, most):
                yield Block(slice(first, min(first + together, batch)), slice(start, min(start + most, n)))

    def log_block(self, block: Block) -> Tensor:
        """Log P (B', R, M) of a block, -inf where P is 0; the caller may write to it."""
        problems, rows = block
        reg = self._reg[problems, None, None] if isinstance(self._reg, Tensor) else self._reg
        f, g = self.f[problems, rows, None], self.g[problems, None, :]
        return exponents(f, g, self.costs.block(problems, rows), reg)

    def log_rows(self, problem: Tensor, row: Tensor) -> Tensor:
        """Log P (R, M) of row ``row`` (R,) of plan ``problem`` (R,), as `log_block`."""
        reg = self._reg[problem, None] if isinstance(self._reg, Tensor) else self._reg
        g = self.g if len(self.g) == 1 else self.g[problem]
        return exponents(self.f[problem, row, None], g, self.costs.rows(problem, row), reg)


def exp_(logs: Tensor) -> Tensor:
    """In place; 0 below the dtype's normal numbers, over which exponentials take thirty times as long, as over -inf."""
    tiny = torch.finfo(logs.dtype).tiny
    shares = logs.clamp_(min=math.log(4 * tiny)).exp_()
    return torch.nn.functional.threshold(shares, 8 * tiny, 0, inplace=True)


def shifted_exp_(logs: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Exp of what logs are below their maximum, in place, and the maximum, kept as a dimension; it may be -inf."""
    top = logs.amax(dim, keepdim=True)
    return exp_(logs.sub_(torch.where(top == -torch.inf, 0, top))), top


def _log_sum_exp_(logs: Tensor, dim: int) -> Tensor:
    """As torch's; the logs are written over."""
    if not logs.shape[dim]:
        return logs.logsumexp(dim)
    shares, top = shifted_exp_(logs, dim)
    return shares.sum(dim).log_().add_(top.squeeze(dim))


def log_row_sums(plans: Plans) -> Tensor:
    """Log sum_j P_ij (B, N), -inf for a row without mass: of the plan itself, whatever masses were asked for."""
    sums = torch.empty_like(plans.f)
    for block in plans.blocks():
        sums[block] = _log_sum_exp_(plans.log_block(block), -1)
    return sums


def log_column_sums(plans: Plans) -> Tensor:
    """Log sum_i P_ij (B, M) over the rows of all processes, -inf for a column without mass."""
    sums = torch.full_like(plans.g, -torch.inf)
    for block in plans.blocks():
        of_block = _log_sum_exp_(plans.log_block(block), -2)
        sums[block.problems] = torch.logaddexp(sums[block.problems], of_block)
    if plans.over.alone:
        return sums
    top = plans.over.greatest(sums.clone())
    shares = torch.where(top > -torch.inf, (sums - top).exp(), 0)
    return top + plans.over.add(shares).log()


def of_list(costs: list[Tensor], f: list[Tensor], g: list[Tensor], reg: float | Tensor) -> Iterator[Plans]:
    """The plans of a list of costs (N_k, M_k): those of one size that follow each other together, up to a block.

    ``reg`` is a number, or (B,).
    """
    start = 0
    while start < len(costs):
        n, m = costs[start].shape
        stop, most = start + 1, start + BLOCK // max(1, n * m)
        while stop < min(len(costs), most) and costs[stop].shape == (n, m):
            stop += 1
        here = slice(start, stop)
        cost = costs[start][None] if stop == start + 1 else torch.stack(costs[here])
        regs = reg[here] if isinstance(reg, Tensor) else reg
        yield Plans(GivenCosts(cost), torch.stack(f[here]), torch.stack(g[here]), regs)
        start = stop
