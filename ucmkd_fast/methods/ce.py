"""Cross-entropy alone: the student without a teacher, and the baseline of every comparison."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Batch
from .base import LossMethod, Step, register
from .checks import fraction


@register
class CE(LossMethod):
    """CE(s, y).

    Args:
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
    """

    name = "ce"
    published_name = "ce"
    uses_teacher = False

    def __init__(self, *, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss`` and the same as ``ce``."""
        logits = step.student.head(step.student.encode(batch.x))
        ce = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        return {"loss": ce, "ce": ce}
