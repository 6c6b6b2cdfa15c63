"""Tensors whose memory is a mapped file: its pages count as this process's memory from when they are touched.

What a pass has gone over can be given back: the file still has it. Linux only; elsewhere pages stay until the system
needs their memory.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

#: Bytes from which a tensor is worth a look at the table of mappings, which takes about a millisecond.
_WORTH_A_LOOK = 1 << 20
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (....) \S+ \S+ (\d+)")
_MAPS = Path("/proc/self/maps")


class Mapping(NamedTuple):
    """A mapped file."""

    writable: bool
    shared: (
        bool  # with the file: dropped pages are read from it again. Else they may hold changes of their own
    )


def mapping(tensor: Tensor) -> Mapping | None:
    """The mapped file that a CPU tensor lies in; None where there is none, or where the system does not tell."""
    if span(tensor) < _WORTH_A_LOOK or not _MAPS.exists():
        return None
    start, end = tensor.data_ptr(), tensor.data_ptr() + span(tensor)
    for line in _MAPS.read_text().splitlines():
        found = _MAPPING.match(line)
        if found and int(found[1], 16) <= start < int(found[2], 16):
            shared = found[3][3] == "s" and end <= int(found[2], 16)
            return Mapping(found[3][1] == "w", shared) if int(found[4]) else None
    return None


def span(tensor: Tensor) -> int:
    """Bytes from the first to the last element."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def drop(tensor: Tensor) -> None:
    """Give back the pages that lie wholly in a tensor of a shared mapping. Nothing is lost: the file has them."""
    advise, page = _advise(), mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + span(tensor)) // page * page
    if advise is not None and end > start:
        advise(start, end - start, mmap.MADV_DONTNEED)


@lru_cache(maxsize=1)
def _advise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is not None:
        advise.argtypes, advise.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    found: Callable[[int, int, int], int] | None = advise
    return found
