"""The device behind the CUDA kernels: the module that has them, memory, streams, and what they refused.

Everything stays on the device and on torch's current stream: nothing is read back, nothing waits. Input that the
kernels refuse gives NaN, and ``n_iter`` tells why (`refusal`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._native import _C
from ..refusals import explained, refusal


def _on_a_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _nowhere(_: Tensor) -> bool:
    return False


# The module with the kernels' entries, and whether they run on a tensor. Tests put the execution model here, which runs
# them on CPU tensors.
kernels: Any = _C if _C.build_info()["cuda_architectures"] else None
runs_on: Callable[[Tensor], bool] = _nowhere if kernels is None else _on_a_gpu
regime = 0  # kAuto of csrc/sinkhorn/regime.h; tests force another
# Switches; ops/cuda_switches.py says what each does and on which cards it has been run.
own_barrier = True  # of cooperative grids: 0.15 us quicker each time than the runtime's own (H100)
clusters = False  # of blocks, for problems between one block and the grid
#: "threads", "quads", "grid" of csrc/sinkhorn/regime.h's Tuning, instead of its choice.
tuning: dict[str, int] = {}
#: Whether costs that do not fit are made anew in every pass (csrc/sinkhorn/streamed.cu); None: as regime.h chooses.
streamed: bool | None = None
tensor_cores = False  # for products of half precision in such passes


def fits_block(n: int, m: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a problem (N, M) fits the shared memory of one block (`shared_of_block` of csrc/sinkhorn/regime.h)."""
    call = kernels.CudaSinkhorn()
    call.f64, call.device, call.n, call.m = dtype == torch.float64, device.index or 0, n, m
    return bool(kernels.cuda_sinkhorn_fits_block(call))


def checked() -> bool:
    """Whether every call is looked at, which waits for the device: UCMKD_CHECK=1."""
    return os.environ.get("UCMKD_CHECK") == "1"


def check(n_iter: Tensor, **tensors: Tensor | None) -> None:
    """Raise ValueError for input that the kernels refused, where calls are `checked`."""
    if checked() and (text := refusal(n_iter)):
        raise ValueError(explained(text, **tensors))


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised memory from torch's allocator: the only place where these calls take some."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def stream(tensor: Tensor) -> int:
    """The stream that calls on this tensor are put on."""
    return torch._C._cuda_getCurrentRawStream(tensor.device.index or 0) if tensor.is_cuda else 0


def even(size: int) -> int:
    """Elements of a part of a block, the next of which is to be aligned for eight bytes."""
    return (size + 1) // 2 * 2


def adjoint_tolerance(dtype: torch.dtype, tol: float) -> float:
    """When the sweep back may stop (csrc/sinkhorn/rules.h); measurements put another in its place."""
    return _C.adjoint_tolerance(dtype == torch.float64, tol)
