"""Knowledge distillation on logits, sample by sample (Hinton, Vinyals, Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Batch
from ..ops.checks import positive_number
from .base import LossMethod, Step, register
from .by_index import teacher_logits_like
from .checks import fraction
from .divergence import kl


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
        logits = step.student.head(step.student.encode(batch.x))
        teacher_logits = teacher_logits_like("kd", logits, step.required_teacher, batch)
        ce = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        t = self.temperature
        divergence = kl(logits / t, teacher_logits / t).mean()
        return {"loss": (1 - self.alpha) * ce + self.alpha * t * t * divergence, "ce": ce, "kl": divergence}
