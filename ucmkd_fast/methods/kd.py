"""Knowledge distillation on logits, sample by sample (Hinton, Vinyals, Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Batch
from ..ops.checks import positive_number
from .base import LossMethod, Step, register
from .checks import fraction


@register
class KD(LossMethod):
    """(1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t / T) || softmax(s / T)), the mean over samples.

    s are the student's logits and t the teacher's on *its own* sample of the same
    index: so sample i of the teacher must at least be of the class of sample i of
    the student, which `required_draw` demands.

    Args:
        alpha: weight of the teacher's term, in [0, 1].
        temperature: T > 0.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "kd"
    published_name = "vanillaKD"
    required_draw = ("class-matched", "paired")

    def __init__(self, *, alpha: float = 0.9, temperature: float = 4.0, label_smoothing: float = 0.0):
        super().__init__()
        self.alpha = fraction("alpha", alpha)
        self.temperature = positive_number("temperature", temperature)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce`` and ``kl`` (without T^2)."""
        teacher = step.required_teacher
        with torch.no_grad():
            teacher_logits = teacher.head(teacher.features(batch))
        logits = step.student.head(step.student.encode(batch.x))
        if logits.shape != teacher_logits.shape:
            raise ValueError(
                f"kd compares logits by index: expected the teacher's of shape {tuple(logits.shape)} "
                f"like the student's, got {tuple(teacher_logits.shape)}"
            )
        ce = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        t = self.temperature
        log_s, log_t = F.log_softmax(logits / t, -1), F.log_softmax(teacher_logits / t, -1)
        kl = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
        return {"loss": (1 - self.alpha) * ce + self.alpha * t * t * kl, "ce": ce, "kl": kl}
