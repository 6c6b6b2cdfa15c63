"""The label-transport losses on a CPU: one read of the logits gives losses and gradients, so the forward makes both.

A second backward through the same graph finds the gradients gone and makes them again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._native import _C
from .. import _pieces
from .._addresses import address
from .._label import Grads, LabelOptions, Logits, Losses, Prepared, refuse_logits, refuse_target

# Logits of both heads that are alive at a time. Small enough for the second-level cache to help, large
# enough for the matrix products to run at full speed (`ucmkd bench label_transport`).
CHUNK_ELEMENTS = 1 << 20


def chunk_rows(n: int, k: int) -> int:
    """As `LabelDoor.chunk_rows`."""
    return min(n, max(1, CHUNK_ELEMENTS // (2 * k)))


def factors(feature: Tensor, *weights: Tensor) -> torch.dtype:
    """As `LabelDoor.factors`."""
    return torch.promote_types(feature.dtype, torch.float32)


def rows(logits: Logits, options: LabelOptions, grads: Grads) -> Losses:
    """As `LabelDoor.rows`."""
    student, teacher, target, _ = logits
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
    if bad >= 0:
        refuse_target(logits, options, bad)
    return Losses(losses, total, kept)


def is_nan(losses: Losses) -> bool:
    """As `LabelDoor.is_nan`."""
    return math.isnan(losses.total)


def total(parts: Sequence[Losses], target: Tensor, options: LabelOptions) -> tuple[Tensor, int | None]:
    """As `LabelDoor.total`."""
    value, kept = 0.0, 0
    for part in parts:
        value += part.total
        kept += part.kept
    if options.reduction == "sum":
        return torch.tensor(value, dtype=parts[0].rows.dtype), None
    return torch.tensor(value / kept if kept else math.nan, dtype=parts[0].rows.dtype), kept


def loss(logits: Logits, options: LabelOptions, needs: Sequence[bool]) -> tuple[Tensor, Prepared]:
    """As `LabelDoor.loss`."""
    logits = logits.readable(logits.wide)
    student, shape = logits.student, logits.student.shape
    grads = student.new_empty(shape) if needs[0] else None, student.new_empty(shape) if needs[1] else None
    found = rows(logits, options, grads)
    if is_nan(found):
        refuse_logits(logits, options)
    value = found.rows if options.reduction == "none" else total((found,), logits.target, options)[0]
    return value, Prepared(grads)


def gradients(
    logits: Logits, options: LabelOptions, needs: Sequence[bool], prepared: Prepared, upstream: Tensor
) -> Grads:
    """As `LabelDoor.gradients`."""
    grads = prepared.take() or loss(logits, options, needs)[1].take()
    return scale_owned_(grads, upstream[:, None] if options.reduction == "none" else upstream)


def scale_owned_(grads: Grads, upstream: Tensor, count: int | None = None) -> Grads:
    """As `LabelDoor.scale_owned_`."""
    if count is not None:
        upstream = upstream / max(count, 1)
    elif upstream.dim() == 0 and _C.is_one(upstream.dtype == torch.float64, upstream.data_ptr()):
        return grads
    return [None if g is None else _pieces.scale_(g, upstream) for g in grads]
