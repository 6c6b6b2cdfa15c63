"""The doubly stochastic projection on a GPU: nothing waits for the device, and a bad matrix is NaN.

Half precision is read and written as it is. The backward runs the iterations again and keeps their scalings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._addresses import address
from .._projection import ProjectionOptions, refuse
from . import _device as device

_MOST_ENTRIES = 1 << 31  # places in a matrix are 32 bits there
_ELEMENT_TYPES = {torch.float16: 1, torch.bfloat16: 2}  # ElementType of csrc/doubly_stochastic/cuda_call.h


def project(logits: Tensor, options: ProjectionOptions) -> Tensor:
    """The result (..., n, m), in the dtype of the logits."""
    return _run(logits, None, options)


def project_backward(logits: Tensor, upstream: Tensor, options: ProjectionOptions) -> Tensor:
    """The gradient of the logits (..., n, m), in their dtype."""
    return _run(logits, upstream.to(logits.dtype), options)


def _run(logits: Tensor, upstream: Tensor | None, options: ProjectionOptions) -> Tensor:
    n, m = logits.shape[-2:]
    if n * m >= _MOST_ENTRIES:
        raise ValueError(
            f"a matrix must have less than 2^31 entries on a GPU, got {n} x {m}: compute it on the CPU, or by sinkhorn"
        )
    logits = logits.contiguous()
    given = None if upstream is None else upstream.contiguous()
    out = device.empty(logits, *logits.shape)
    call = device.kernels.CudaProjection()
    call.f64, call.element_type = logits.dtype == torch.float64, _ELEMENT_TYPES.get(logits.dtype, 0)
    call.device, call.stream = logits.device.index or 0, device.stream(logits)
    call.batch, call.n, call.m, call.n_iter = logits.numel() // (n * m), n, m, options.n_iter
    call.logits, call.upstream, call.out = logits.data_ptr(), address(given), out.data_ptr()
    call.eps, call.softmax = options.eps, options.start == "softmax"
    call.rows_first = options.order == "rows-columns"
    work = device.empty(logits, device.kernels.cuda_project_work(call), dtype=torch.uint8)
    call.work = work.data_ptr()
    device.kernels.cuda_project(call)
    if device.checked() and upstream is None and bool(out.isnan().any()):
        refuse(logits)
    return out
