"""The ops on the execution model of a GPU: the same Python way and the same kernels, on CPU tensors.

Every tensor that the CUDA side allocates is poisoned (NaN, or a huge integer) and lies between guard zones
that are looked at afterwards: an output that is not written and a write out of bounds both show.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "cuda_model"))
import build  # noqa: E402
from ucmkd_fast.ops._cuda import _device  # noqa: E402

GUARD = 64  # bytes on each side
PATTERN = 0x5A
REGIMES = {"block": 1, "resident": 2, "sweep": 3, "registers": 5, "cluster": 6}
ORDERS = {"forward": 0, "reverse": 1, "random": 2}


def _on_a_cpu(tensor: Tensor) -> bool:
    return tensor.is_cpu


class OutOfBounds(AssertionError):
    """A kernel wrote beside what it was given."""


class Memory:
    """An allocator with poison and guard zones."""

    def __init__(self) -> None:
        self.blocks: list[tuple[Tensor, int]] = []

    def empty(self, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """As `_device.empty`."""
        dtype = dtype or like.dtype
        size = torch.Size(shape).numel() * dtype.itemsize
        raw = torch.full((size + 2 * GUARD,), PATTERN, dtype=torch.uint8)
        raw[GUARD : GUARD + size] = 0xFF if dtype.is_floating_point else 0x77
        self.blocks.append((raw, size))
        return raw[GUARD : GUARD + size].view(dtype).view(shape)

    def check(self) -> None:
        """Raise OutOfBounds where a guard zone has changed."""
        for raw, size in self.blocks:
            if not bool((raw[:GUARD] == PATTERN).all() and (raw[GUARD + size :] == PATTERN).all()):
                raise OutOfBounds(f"a guard zone of a block of {size} bytes was written")


@contextmanager
def model(
    regime: str | None = None,
    order: str = "forward",
    seed: int = 0,
    multiprocessors: int = 3,
    shared: int = 48 * 1024,
    threads: int = 64,
    module: Any = None,
    skip_block_barrier: bool = False,
    own_barrier: bool = False,
    tuning: dict[str, int] | None = None,
) -> Iterator[Any]:
    """CPU tensors take the CUDA way inside; guard zones are looked at on leaving."""
    module = module or build.load()
    module.configure(multiprocessors, shared, threads, ORDERS[order], seed, skip_block_barrier)
    memory = Memory()
    names = (
        "kernels",
        "runs_on",
        "regime",
        "empty",
        "own_barrier",
        "tuning",
        "streamed",
        "clusters",
        "tensor_cores",
    )
    before = {name: getattr(_device, name) for name in names}
    _device.kernels, _device.runs_on, _device.empty = module, _on_a_cpu, memory.empty
    _device.regime = REGIMES.get(regime or "", 0)
    _device.own_barrier, _device.tuning = own_barrier, tuning or {}
    launched = module.launches()
    try:
        yield module
        assert module.launches() > launched, "nothing ran on the model"
        memory.check()
    finally:
        for name, value in before.items():
            setattr(_device, name, value)
