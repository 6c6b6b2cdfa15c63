"""The label-transport loss, as obvious as possible (paper: Definition of LA, Appendix D).

L_i = CE(s_i, y_i) - kappa_i CE(t_i, y_i),   kappa_i = softmax(t_i)[y_i]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_of_rows(total: Tensor, kept: Tensor) -> Tensor:
    """``total`` () over the number of rows kept (); of none NaN with gradient 0, as ``F.cross_entropy``."""
    return torch.where(kept > 0, total / kept.clamp_min(1), torch.nan)


def label_transport_loss(
    student_logits: Tensor,  # (n, K)
    teacher_logits: Tensor,  # (n, K) teacher's head on the student's feature
    target: Tensor,  # (n,) class indices
    *,
    kappa: str = "detached",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Mean (over rows that are not ignored), sum, or one value a row (0 where ignored)."""
    keep = target != ignore_index
    safe = torch.where(keep, target, 0)
    # An ignored row may hold anything: 0 times the gradient of NaN would be NaN.
    student_logits, teacher_logits = (
        torch.where(keep[:, None], z, 0) for z in (student_logits, teacher_logits)
    )
    weight = teacher_logits.softmax(-1).gather(-1, safe[:, None])[:, 0]
    if kappa == "detached":
        weight = weight.detach()
    student = F.cross_entropy(student_logits, safe, reduction="none", label_smoothing=label_smoothing)
    teacher = F.cross_entropy(teacher_logits, safe, reduction="none", label_smoothing=label_smoothing)
    loss = torch.where(keep, student - weight * teacher, 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else mean_of_rows(loss.sum(), keep.sum())
