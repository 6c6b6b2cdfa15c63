"""The label-transport losses on a CPU: one read of the logits gives losses and gradients, so the forward makes both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._native import _C
from .. import _pieces
from .._addresses import address
from .._label import Grads, LabelOptions, Logits, Losses, Made, refuse

# Of the linear form: logits of both heads that are alive at a time, and rows that there are at least. Small enough for
# the second-level cache to help, large enough for the matrix products to run at full speed (`ucmkd bench
# label_transport`). Products of half precision are made in float32.
CHUNK_ELEMENTS, CHUNK_ROWS = 1 << 20, 1
HALF_PRODUCTS = False


def rows(logits: Logits, options: LabelOptions, grads: Grads) -> Losses:
    """Losses of `Logits.readable`; gradients of their reduction go into ``grads``, which may lie over the logits."""
    student, teacher, target, *_ = logits
    ds, dt = grads
    n, k = student.shape
    losses = student.new_empty(n)
    grad = dt if ds is None else ds
    total, kept, bad = _C.label_transport_forward(
        f64=student.dtype == torch.float64, n=n, k=k, student=student.data_ptr(), student_stride=student.stride(0),
        teacher=teacher.data_ptr(), teacher_stride=teacher.stride(0), target=target.data_ptr(),
        ignore_index=options.ignore_index, label_smoothing=options.label_smoothing, live_kappa=options.kappa == "live",
        mean=options.reduction == "mean", loss=losses.data_ptr(), grad_student=address(ds), grad_teacher=address(dt),
        grad_stride=0 if grad is None else grad.stride(0),
    )  # fmt: skip
    if bad >= 0 or math.isnan(total):
        refuse(logits, options)
    return Losses(losses, total, kept)


def total(parts: Sequence[Losses], target: Tensor, options: LabelOptions) -> tuple[Tensor, int | None]:
    """Sum or mean () of the parts, and what the gradient of their sum is divided by."""
    value, kept, dtype = 0.0, sum(part.kept for part in parts), parts[0].rows.dtype
    for part in parts:  # in turn: sum() of some Pythons corrects for rounding
        value += part.total
    if options.reduction == "sum":
        return torch.tensor(value, dtype=dtype), None
    return torch.tensor(value / kept if kept else math.nan, dtype=dtype), kept


def loss(logits: Logits, options: LabelOptions, needs: Sequence[bool]) -> Made:
    """The loss, () or (n,), with its gradients where needed, which nothing is left to divide by."""
    logits = logits.readable(logits.wide)
    student = logits.student
    grads = [student.new_empty(student.shape) if need else None for need in needs]
    found = rows(logits, options, grads)
    value = found.rows if options.reduction == "none" else total((found,), logits.target, options)[0]
    return value, grads, None


def gradients(
    logits: Logits, options: LabelOptions, needs: Sequence[bool], count: None, upstream: Tensor
) -> Grads:
    """Of both logits for that of the loss, where those that `loss` made are gone."""
    return scale_owned_(loss(logits, options, needs)[1], upstream)


def scale_owned_(grads: Grads, upstream: Tensor, count: int | None = None) -> Grads:
    """Gradients times that of the loss, () or (n,), over ``count`` where there is one, in place and owned."""
    if count is not None:
        upstream = upstream / max(count, 1)  # of no rows: their gradients are 0 and stay so
    elif upstream.dim() == 0 and _C.is_one(upstream.dtype == torch.float64, upstream.data_ptr()):
        return grads
    factor = upstream[:, None] if upstream.dim() else upstream
    return [None if g is None else _pieces.scale_(g, factor) for g in grads]
