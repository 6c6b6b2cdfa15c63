"""Decoupled knowledge distillation: the label's class and the others apart (arXiv 2203.08679)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Batch
from ..ops.checks import number_at_least_zero, positive_number
from .base import LossMethod, Step, register
from .by_index import teacher_logits_like
from .checks import fraction
from .divergence import class_mask, kl_of_logs, kl_without, one_against_rest


@register
class DKD(LossMethod):
    """CE(s, y) + T^2 (alpha TCKD + beta NCKD), the mean over samples.

    "Decoupled Knowledge Distillation" (Zhao, Cui, Song, Qiu, Liang; CVPR 2022). KD's divergence is
    TCKD + (1 - p_T(y)) NCKD, where TCKD is that of the label against all other classes together and
    NCKD that among the other classes alone; here each has a weight of its own. Both are of logits
    divided by T, of the teacher's on *its own* sample of the same index: so it must at least be of
    the class of the student's.

    Args:
        alpha: weight of TCKD, >= 0.
        beta: weight of NCKD, >= 0.
        temperature: T > 0.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "dkd"
    required_draw = ("class-matched", "paired")

    def __init__(
        self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, label_smoothing: float = 0.0
    ):
        super().__init__()
        self.alpha = number_at_least_zero("alpha", alpha)
        self.beta = number_at_least_zero("beta", beta)
        self.temperature = positive_number("temperature", temperature)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce``, ``target`` (TCKD) and ``non_target`` (NCKD), both without T^2."""
        logits = step.student.head(step.student.encode(batch.x))
        teacher_logits = teacher_logits_like("dkd", logits, step.required_teacher, batch)
        ce = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        t = self.temperature
        s, q = logits / t, teacher_logits / t
        target = kl_of_logs(one_against_rest(s, batch.y), one_against_rest(q, batch.y)).mean()
        non_target = kl_without(s, q, class_mask(batch.y, s.shape[1])).mean()
        loss = ce + t * t * (self.alpha * target + self.beta * non_target)
        return {"loss": loss, "ce": ce, "target": target, "non_target": non_target}
