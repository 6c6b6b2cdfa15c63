"""What several methods share: FA as they compute it, and how the teacher's head reads student features."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops.sinkhorn import sinkhorn_loss

if TYPE_CHECKING:
    from .methods.base import Step


class Transport(NamedTuple):
    """How FA is computed; the arguments of `sinkhorn_loss` of the same names."""

    metric: str
    reg: float
    max_iter: int


def feature_alignment(step: Step, feature: Tensor, teacher_feature: Tensor, transport: Transport) -> Tensor:
    """FA: entropic transport cost between features (n, D) and (m, D) of all processes."""
    loss = sinkhorn_loss(
        step.gather_rows(feature),
        step.gather_rows(teacher_feature),
        metric=transport.metric,
        reg=transport.reg,
        max_iter=transport.max_iter,
    )
    return cast("Tensor", loss)  # a SinkhornResult only where asked for


@torch.no_grad()
def teacher_reading(teacher_logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """How well the teacher's head reads student features: mean kappa = p_T(y | z), and accuracy.

    Near 1/K and chance level, LA carries nothing.
    """
    teacher_logits = teacher_logits.detach()
    return {
        "kappa": F.cross_entropy(teacher_logits, y, reduction="none").neg_().exp_().mean(),
        "teacher_head_accuracy": (teacher_logits.argmax(-1) == y).float().mean(),
    }
