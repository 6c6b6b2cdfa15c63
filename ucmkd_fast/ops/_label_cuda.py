"""Calls of the label-transport kernel for CUDA tensors."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from . import _solve_cuda
from ._solve_cuda import _address, _stream

_LOGIT_TYPES = {torch.float16: 1, torch.bfloat16: 2}  # LogitType of csrc/label_transport/cuda_call.h


def _call(
    student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int, smoothing: float, live: bool,
    ds: Tensor | None, dt: Tensor | None,
) -> Any:  # fmt: skip
    n, k = student.shape
    call = _solve_cuda.kernels.CudaLabel()
    call.f64, call.logit_type = student.dtype == torch.float64, _LOGIT_TYPES.get(student.dtype, 0)
    call.device, call.stream = student.device.index or 0, _stream(student)
    call.n, call.k, call.student, call.teacher = n, k, student.data_ptr(), teacher.data_ptr()
    call.student_stride, call.teacher_stride = student.stride(0), teacher.stride(0)
    call.target, call.ignore_index = target.data_ptr(), ignore_index
    call.label_smoothing, call.live_kappa = smoothing, live
    call.grad_student, call.grad_teacher = _address(ds), _address(dt)
    grad = ds if ds is not None else dt
    call.grad_stride = 0 if grad is None else grad.stride(0)
    return call


def run(
    student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int, smoothing: float, live: bool,
    ds: Tensor | None, dt: Tensor | None, first_row: int = 0,
) -> Tensor:  # fmt: skip
    """Loss of each row (n,); gradients go into ds, dt (n, K). NaN where the target is out of range.

    Logits and gradients of half precision stay as they are, their loss is float32.
    Raises ValueError for such a target under UCMKD_CHECK=1, which waits for the device.
    """
    n, k = student.shape
    loss = _solve_cuda.empty(student, n, dtype=torch.promote_types(student.dtype, torch.float32))
    call = _call(student, teacher, target, ignore_index, smoothing, live, ds, dt)
    call.loss = loss.data_ptr()
    _solve_cuda.kernels.cuda_label_transport(call)
    if os.environ.get("UCMKD_CHECK") == "1" and bool(loss.isnan().any()):
        inside = (target >= 0) & (target < k) | (target == ignore_index)
        if not bool(inside.all()):
            row = int((~inside).nonzero()[0])
            raise ValueError(
                f"target must hold classes 0 to {k - 1} or ignore_index ({ignore_index}), got {int(target[row])} in "
                f"row {first_row + row}"
            )
    return loss


def total(loss: Tensor, target: Tensor, ignore_index: int, mean: bool) -> tuple[Tensor, Tensor]:
    """Sum or mean () of the rows that are not ignored, and how many these are; the mean of none is NaN."""
    value, counted = _solve_cuda.empty(loss), _solve_cuda.empty(loss, dtype=torch.int64)
    call = _solve_cuda.kernels.CudaLabel()
    call.f64, call.device, call.stream = loss.dtype == torch.float64, loss.device.index or 0, _stream(loss)
    call.n, call.loss, call.target, call.ignore_index = (
        len(loss),
        loss.data_ptr(),
        target.data_ptr(),
        ignore_index,
    )
    call.mean, call.total, call.counted = mean, value.data_ptr(), counted.data_ptr()
    _solve_cuda.kernels.cuda_label_total(call)
    return value, counted


def gradients(
    student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int, smoothing: float, live: bool,
    needs: tuple[bool, bool], upstream: Tensor, counted: Tensor | None,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of both logits for that of the losses, () or (n,), over the number counted where there is one.

    The logits are read again: that is less traffic than gradients which are stored before their factor is known,
    read and stored once more.
    """
    grads = [_solve_cuda.empty(student, *student.shape) if need else None for need in needs]
    call = _call(student, teacher, target, ignore_index, smoothing, live, *grads)
    call.upstream, call.counted = upstream.data_ptr(), _address(counted)
    call.upstream_stride = upstream.stride(0) if upstream.dim() else 0
    _solve_cuda.kernels.cuda_label_transport(call)
    return grads
