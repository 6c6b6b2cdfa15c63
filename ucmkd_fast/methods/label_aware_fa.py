"""Feature alignment that keeps classes apart: cross-entropy plus class-conditional transport, in one loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignment import class_conditional_alignment, teacher_reading
from ..data.batch import Batch
from ..ops.checks import number_at_least_zero
from .base import LossMethod, Step, register
from .checks import fraction, transport


@register
class LabelAwareFA(LossMethod):
    """CE(s, y) + fa_weight FA(z, z_T | y): as `feature`, but no mass moves between classes.

    Marginal transport matches clusters of features to whatever class is near; where that is the wrong
    one, FA falls while the teacher's head reads nothing from the student's features. Here each class is a
    transport problem of its own, with the mass that it has in the student's batch.

    Args:
        fa_weight: weight of FA, >= 0.
        metric: cost between features; as in `sinkhorn_loss`.
        reg: entropic regularisation, > 0, in units of cost.
        max_iter: Sinkhorn iterations, >= 1.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "label-aware-fa"
    required_draw = ("class-matched", "paired")  # every class of the batch then has a teacher's sample
    needs_equal_widths = True

    def __init__(
        self,
        *,
        fa_weight: float = 1.0,
        metric: str = "cosine",
        reg: float = 0.1,
        max_iter: int = 20,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.fa_weight = number_at_least_zero("fa_weight", fa_weight)
        self.transport = transport(metric, reg, max_iter)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce``, ``fa``, and how the teacher's head reads the student's features."""
        teacher = step.required_teacher
        feature = step.student.encode(batch.x)
        logits = step.student.head(feature)
        ce = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        fa = class_conditional_alignment(step, feature, batch, logits.shape[1], self.transport)
        with torch.no_grad():
            reading = teacher_reading(step, teacher.head(feature), batch.y)
        return {"loss": ce + self.fa_weight * fa, "ce": ce, "fa": fa, **reading}
