"""Samples that stay on the disk: rows of a memory-mapped array, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2**26  # bytes looked at together


class _Place(NamedTuple):
    """Where a mapped array lies in its file."""

    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    order: Literal["C", "F"]


def _lies_whole(array: np.memmap) -> bool:
    """Whether it is all of one map, and not a view of a part, whose ``offset`` would be that of the whole."""
    return not isinstance(array.base, np.memmap) and (array.flags.c_contiguous or array.flags.f_contiguous)


class MappedRows:
    """Chosen rows of a memory-mapped array (n, ...). The map is only read: it may be read-only.

    Args:
        array: the map.
        rows: which, (r,) int64; None: all.

    Raises:
        TypeError: its numbers are of a kind that torch does not have.
    """

    def __init__(self, array: np.memmap, rows: Tensor | None = None):
        self._array, self._rows = array, rows
        self.dtype = torch.from_numpy(np.empty(0, self._native)).dtype

    def __getstate__(self) -> dict[str, Any]:
        """Where the numbers lie in the file, not the numbers: what a worker process is sent."""
        array = self._array
        state = dict(self.__dict__)
        if isinstance(array, np.memmap) and array.filename is not None and _lies_whole(array):
            order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"
            state["_array"] = _Place(str(array.filename), array.dtype, array.shape, array.offset, order)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._array, _Place):
            place = self._array
            self._array = np.memmap(place.path, place.dtype, "r", place.offset, place.shape, place.order)

    def __len__(self) -> int:
        return len(self._array) if self._rows is None else len(self._rows)

    def __getitem__(self, indices: Tensor | int) -> Tensor:
        """The samples at indices (k,) as a tensor (k, ...) of their own, or one sample (...)."""
        chosen = indices if self._rows is None else self._rows[indices]
        own = np.take(np.asarray(self._array), np.asarray(chosen), axis=0)  # copied
        return torch.from_numpy(own.astype(self._native, copy=False))

    @property
    def shape(self) -> tuple[int, ...]:
        """(r, ...)."""
        return (len(self), *self._array.shape[1:])

    def take(self, rows: Tensor) -> MappedRows:
        """Some of these rows; nothing is read."""
        return MappedRows(self._array, rows if self._rows is None else self._rows[rows])

    def blocks(self) -> Iterator[Tensor]:
        """All rows in order, some at a time."""
        width = max(1, self._array.itemsize * int(np.prod(self._array.shape[1:])))
        yield from (self[rows] for rows in torch.arange(len(self)).split(max(1, _BLOCK // width)))

    @property
    def _native(self) -> np.dtype:
        """The dtype in this machine's order of bytes."""
        return self._array.dtype.newbyteorder("=")
