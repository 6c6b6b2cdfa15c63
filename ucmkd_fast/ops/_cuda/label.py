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
from .._label import Grads, LabelOptions, Logits, Losses, Made, refuse
from . import _device as device

_LOGIT_TYPES = {torch.float16: 1, torch.bfloat16: 2}  # LogitType of csrc/label_transport/cuda_call.h

# Of the linear form: logits of both heads that are alive at a time, or as many as so many rows have: the gradient of
# the heads is read and written once for each chunk. Features and heads of half precision are multiplied as they are.
CHUNK_ELEMENTS, CHUNK_ROWS = 1 << 23, 512
HALF_PRODUCTS = True


def _read(logits: Logits) -> Logits:
    same = logits.student.dtype == logits.teacher.dtype
    return logits.readable(logits.student.dtype if same else logits.wide)


def _call(like: Tensor, target: Tensor, options: LabelOptions) -> Any:
    """What every call says of its rows."""
    call = device.kernels.CudaLabel()
    call.f64, call.device, call.stream = (
        like.dtype == torch.float64,
        like.device.index or 0,
        device.stream(like),
    )
    call.n, call.target, call.ignore_index = len(like), target.data_ptr(), options.ignore_index
    return call


def _call_on_logits(logits: Logits, options: LabelOptions, grads: Grads) -> Any:
    student, teacher, target, *_ = logits
    ds, dt = grads
    call = _call(student, target, options)
    call.k, call.logit_type = student.shape[1], _LOGIT_TYPES.get(student.dtype, 0)
    call.student, call.student_stride = student.data_ptr(), student.stride(0)
    call.teacher, call.teacher_stride = teacher.data_ptr(), teacher.stride(0)
    call.label_smoothing, call.live_kappa = options.label_smoothing, options.kappa == "live"
    call.grad_student, call.grad_teacher = address(ds), address(dt)
    grad = dt if ds is None else ds
    call.grad_stride = 0 if grad is None else grad.stride(0)
    return call


def rows(logits: Logits, options: LabelOptions, grads: Grads) -> Losses:
    """Losses of `Logits.readable`; gradients of their sum go into ``grads``, which may lie over the logits."""
    losses = device.empty(logits.student, len(logits.target), dtype=logits.wide)
    call = _call_on_logits(logits, options, grads)
    call.loss = losses.data_ptr()
    device.kernels.cuda_label_transport(call)
    if device.checked() and bool(losses.isnan().any()):
        refuse(logits, options)
    return Losses(losses)


def total(parts: Sequence[Losses], target: Tensor, options: LabelOptions) -> tuple[Tensor, Tensor | None]:
    """Sum or mean () of the parts, and what the gradient of their sum is divided by."""
    losses = parts[0].rows if len(parts) == 1 else torch.cat([part.rows for part in parts])
    value, counted, mean = (
        device.empty(losses),
        device.empty(losses, dtype=torch.int64),
        options.reduction == "mean",
    )
    call = _call(losses, target, options)
    call.loss, call.mean, call.total, call.counted = (
        losses.data_ptr(),
        mean,
        value.data_ptr(),
        counted.data_ptr(),
    )
    device.kernels.cuda_label_total(call)
    return value, counted if mean else None


def loss(logits: Logits, options: LabelOptions, needs: Sequence[bool]) -> Made:
    """The loss, () or (n,), without its gradients, and what these are to be divided by."""
    logits = _read(logits)
    found = rows(logits, options, (None, None))
    if options.reduction == "none":
        return found.rows, (), None
    value, count = total((found,), logits.target, options)
    return value, (), count


def gradients(
    logits: Logits, options: LabelOptions, needs: Sequence[bool], count: Tensor | None, upstream: Tensor
) -> Grads:
    """Of both logits for that of the loss, over ``count`` where there is one."""
    logits = _read(logits)
    student = logits.student
    grads = [device.empty(student, *student.shape) if need else None for need in needs]
    call = _call_on_logits(logits, options, grads)
    call.upstream, call.upstream_stride = upstream.data_ptr(), upstream.stride(0) if upstream.dim() else 0
    call.counted = address(count)
    device.kernels.cuda_label_transport(call)
    return grads


def scale_owned_(grads: Grads, upstream: Tensor, count: Tensor | None = None) -> Grads:
    """Gradients times that of the loss () over ``count`` where there is one, in place and owned."""
    if count is not None:
        upstream = upstream / count.clamp_min(1)  # of no rows: their gradients are 0 and stay so
    return [None if g is None else g.mul_(upstream) for g in grads]
