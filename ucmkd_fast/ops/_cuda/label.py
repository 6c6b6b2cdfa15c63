"""The label-transport losses on a GPU: nothing waits for the device, and gradients are left to the backward.

The backward reads the logits again: that is less traffic than gradients which are stored before their factor is known,
read and stored once more. Logits of half precision are read as they are. A target that is no class makes its row NaN,
and is refused under UCMKD_CHECK=1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._addresses import address
from .._label import Grads, LabelOptions, Logits, Losses, Prepared, refuse_logits, refuse_target
from ..checks import HALVES
from . import _device as device

_LOGIT_TYPES = {torch.float16: 1, torch.bfloat16: 2}  # LogitType of csrc/label_transport/cuda_call.h

# Logits of both heads that are alive at a time, or as many as CHUNK_ROWS have: the gradient of the heads is read and
# written once for each chunk.
CHUNK_ELEMENTS, CHUNK_ROWS = 1 << 23, 512


def chunk_rows(n: int, k: int) -> int:
    """As `LabelDoor.chunk_rows`."""
    return min(n, max(CHUNK_ROWS, CHUNK_ELEMENTS // (2 * k)))


def factors(feature: Tensor, *weights: Tensor) -> torch.dtype:
    """As `LabelDoor.factors`."""
    if feature.dtype in HALVES and all(w.dtype == feature.dtype for w in weights):
        return feature.dtype
    return torch.promote_types(feature.dtype, torch.float32)


def _read(logits: Logits) -> Logits:
    same = logits.student.dtype == logits.teacher.dtype
    return logits.readable(logits.student.dtype if same else logits.wide)


def _call(logits: Logits, options: LabelOptions, grads: Grads) -> Any:
    student, teacher, target, _ = logits
    ds, dt = grads
    call = device.kernels.CudaLabel()
    call.f64, call.logit_type = student.dtype == torch.float64, _LOGIT_TYPES.get(student.dtype, 0)
    call.device, call.stream = student.device.index or 0, device.stream(student)
    call.n, call.k = student.shape
    call.student, call.student_stride = student.data_ptr(), student.stride(0)
    call.teacher, call.teacher_stride = teacher.data_ptr(), teacher.stride(0)
    call.target, call.ignore_index = target.data_ptr(), options.ignore_index
    call.label_smoothing, call.live_kappa = options.label_smoothing, options.kappa == "live"
    call.grad_student, call.grad_teacher = address(ds), address(dt)
    grad = dt if ds is None else ds
    call.grad_stride = 0 if grad is None else grad.stride(0)
    return call


def rows(logits: Logits, options: LabelOptions, grads: Grads) -> Losses:
    """As `LabelDoor.rows`."""
    student, target = logits.student, logits.target
    n, k = student.shape
    losses = device.empty(student, n, dtype=logits.wide)
    call = _call(logits, options, grads)
    call.loss = losses.data_ptr()
    device.kernels.cuda_label_transport(call)
    if device.checked() and bool(losses.isnan().any()):
        outside = (target != options.ignore_index) & ((target < 0) | (target >= k))
        if bool(outside.any()):
            refuse_target(logits, options, int(outside.nonzero()[0]))
    return Losses(losses)


def is_nan(losses: Losses) -> bool:
    """As `LabelDoor.is_nan`."""
    return device.checked() and bool(losses.rows.isnan().any())


def total(parts: Sequence[Losses], target: Tensor, options: LabelOptions) -> tuple[Tensor, Tensor | None]:
    """As `LabelDoor.total`."""
    losses = parts[0].rows if len(parts) == 1 else torch.cat([part.rows for part in parts])
    value, counted = device.empty(losses), device.empty(losses, dtype=torch.int64)
    call = device.kernels.CudaLabel()
    call.f64, call.device, call.stream = (
        losses.dtype == torch.float64,
        losses.device.index or 0,
        device.stream(losses),
    )
    call.n, call.loss = len(losses), losses.data_ptr()
    call.target, call.ignore_index = target.data_ptr(), options.ignore_index
    mean = options.reduction == "mean"
    call.mean, call.total, call.counted = mean, value.data_ptr(), counted.data_ptr()
    device.kernels.cuda_label_total(call)
    return value, counted if mean else None


def loss(logits: Logits, options: LabelOptions, needs: Sequence[bool]) -> tuple[Tensor, Prepared]:
    """As `LabelDoor.loss`."""
    logits = _read(logits)
    found = rows(logits, options, (None, None))
    if is_nan(found):
        refuse_logits(logits, options)
    if options.reduction == "none":
        return found.rows, Prepared()
    value, count = total((found,), logits.target, options)
    return value, Prepared(count=count)


def gradients(
    logits: Logits, options: LabelOptions, needs: Sequence[bool], prepared: Prepared, upstream: Tensor
) -> Grads:
    """As `LabelDoor.gradients`."""
    logits = _read(logits)
    student = logits.student
    grads = [device.empty(student, *student.shape) if need else None for need in needs]
    call = _call(logits, options, grads)
    call.upstream, call.upstream_stride = upstream.data_ptr(), upstream.stride(0) if upstream.dim() else 0
    call.counted = address(prepared.count)
    device.kernels.cuda_label_transport(call)
    return grads


def scale_owned_(grads: Grads, upstream: Tensor, count: Tensor | None = None) -> Grads:
    """As `LabelDoor.scale_owned_`."""
    if count is not None:
        upstream = upstream / count.clamp_min(1)
    return [None if g is None else g.mul_(upstream) for g in grads]
