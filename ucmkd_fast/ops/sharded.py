"""Rows of one problem spread over the processes of a torch.distributed group.

Every process holds some rows of x and some of y. y is gathered once, x never; what a sweep over the local rows
leaves, sums over the columns (M,), is added up by one all-reduce. Nothing of size N x M leaves a process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import transforms


class Alone:
    """All rows are here."""

    alone = True
    rank = 0

    def total_rows(self, rows: int) -> int:
        """Rows of x in all processes; ``rows`` are here."""
        return rows

    def total_columns(self, columns: int) -> int:
        """Rows of y in all processes; ``columns`` are here."""
        return columns

    def add(self, vector: Tensor) -> Tensor:
        """The sum over processes, in place."""
        return vector

    def greatest(self, vector: Tensor) -> Tensor:
        """The maximum over processes, in place."""
        return vector

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of y of all processes."""
        return rows

    def mine(self, rows: Tensor) -> Tensor:
        """This process's share of what `gather` returned."""
        return rows

    def each(self, tensor: Tensor) -> Tensor:
        """The tensors (P, ...) of all processes, of one shape, in the order of ranks."""
        return tensor[None]

    def wants_y(self, needed: bool) -> bool:
        """Whether any process needs the gradient of y; this one where ``needed``."""
        return needed

    def refuse(self, problem: str | None) -> None:
        """Raise ValueError on every process where one has a problem."""
        if problem:
            raise ValueError(problem)


class Shards(Alone):
    """This process's rows among those of a group; every process calls the same methods in the same order."""

    alone = False

    def __init__(self, group: Any, n: int, m: int, wants_y: bool, settings: str):
        self._group, self.rank = group, dist.get_rank(group)
        everyone: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(everyone, (n, m, wants_y, settings), group=group)
        self._counts: list[int] = [one[1] for one in everyone]
        self._rows: int = sum(one[0] for one in everyone)
        self._wants_y = any(one[2] for one in everyone)
        different = sorted({one[3] for one in everyone})
        if len(different) > 1:
            raise ValueError(
                "every process of the group must call sinkhorn_loss alike, got " + " and ".join(different)
            )
        if not sum(self._counts):
            raise ValueError("y must have at least one row in some process of the group, got none")

    def total_rows(self, rows: int) -> int:
        """Rows of x in all processes."""
        return self._rows

    def total_columns(self, columns: int) -> int:
        """Rows of y in all processes."""
        return sum(self._counts)

    def add(self, vector: Tensor) -> Tensor:
        """The sum over processes, in place."""
        dist.all_reduce(vector, group=self._group)
        return vector

    def greatest(self, vector: Tensor) -> Tensor:
        """The maximum over processes, in place."""
        dist.all_reduce(vector, dist.ReduceOp.MAX, group=self._group)
        return vector

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (m, ...) of this process, any number, to the rows of all, in the order of ranks."""
        return _gather(rows, self._counts, self._group)

    def mine(self, rows: Tensor) -> Tensor:
        """This process's part of rows of all."""
        return torch.split(rows, self._counts)[self.rank]

    def each(self, tensor: Tensor) -> Tensor:
        """The tensors (P, ...) of all processes, of one shape, in the order of ranks."""
        parts = [torch.empty_like(tensor) for _ in self._counts]
        dist.all_gather(parts, tensor.contiguous(), group=self._group)
        return torch.stack(parts)

    def wants_y(self, needed: bool) -> bool:
        """Whether y of some process takes part in autograd: it was asked once, in the forward call."""
        return self._wants_y

    def refuse(self, problem: str | None) -> None:
        """Raise ValueError on every process where one has a problem, so that none waits for another; on the CPU."""
        if self.greatest(torch.tensor(float(problem is not None))):
            raise ValueError(problem or "another process of the group refused its part of the input")


class Spread(NamedTuple):
    """How the rows of one problem are gone through."""

    rows: int  # of a panel
    keep: bool  # the cost is made once and kept, else in every sweep
    over: Alone  # the processes that have rows

    def panels(self, n: int) -> Iterator[slice]:
        """The panels of n rows."""
        for start in range(0, n, max(self.rows, 1)):
            yield slice(start, min(start + max(self.rows, 1), n))


def _gather(rows: Tensor, counts: Sequence[int], group: Any) -> Tensor:
    mine = rows.new_zeros((max(counts), *rows.shape[1:]))
    mine[: len(rows)] = rows
    parts = [torch.empty_like(mine) for _ in counts]
    dist.all_gather(parts, mine, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _Summed(torch.autograd.Function):
    """The sum over processes, whose gradient every process passes on to its own part."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: Any) -> Tensor:
        total = mine.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def summed(mine: Tensor, group: Any) -> Tensor:
    """A scalar summed over the processes of a group, differentiable; without one the same."""
    if group is None:
        return mine
    total: Tensor = transforms.applied(_Summed)(mine, group)
    return total


def gather_rows(rows: Tensor, group: Any) -> Tensor:
    """Rows (n, ...) of this process, any number, to those of all, in the order of ranks; without a group the same."""
    if group is None:
        return rows
    counts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(counts, len(rows), group=group)
    return _gather(rows, counts, group)


def check_group(group: Any) -> None:
    """Raise unless ``group`` is one that this process belongs to.

    Raises:
        TypeError: it is no process group.
        ValueError: torch.distributed is not initialised, or this process is not in the group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "group must be a group of torch.distributed, which is not initialised in this process"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "group must be a process group (torch.distributed.group.WORLD, or one of new_group), got "
            f"{type(group).__name__}"
        )
    if dist.get_rank(group) < 0:
        raise ValueError("group must be one that this process belongs to")
