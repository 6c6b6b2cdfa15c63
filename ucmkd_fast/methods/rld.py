"""Refined logit distillation: what the teacher gets wrong is left out (arXiv 2408.07703)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Batch
from ..ops.checks import number_at_least_zero, positive_number
from .base import LossMethod, Step, register
from .by_index import teacher_logits_like
from .checks import fraction
from .divergence import kl_of_logs, kl_without, one_against_rest


@register
class RLD(LossMethod):
    """CE(s, y) + alpha T_c^2 SC + beta T^2 MC, the mean over samples.

    "Knowledge Distillation with Refined Logits" (Sun, Chen, Lyu, Chen, Chen, Wang; ICCV 2025).
    SC, sample confidence: KL of the student's (p(y), 1 - p(y)) to the teacher's (p(k), 1 - p(k)), k the
    class that the *teacher* holds most likely, right or wrong, so that it teaches how sure to be and not
    of what. MC, masked correlation: KL among the classes that the teacher ranks below the label; the
    label, and all that the teacher puts above it by mistake, are left out. Logits are divided by T_c and
    T. They are the teacher's on *its own* sample of the same index, which must at least be of the class
    of the student's.

    Args:
        alpha: weight of SC, >= 0.
        beta: weight of MC, >= 0.
        temperature: T > 0, of MC.
        confidence_temperature: T_c > 0, of SC.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "rld"
    required_draw = ("class-matched", "paired")

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        confidence_temperature: float = 1.0,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.alpha = number_at_least_zero("alpha", alpha)
        self.beta = number_at_least_zero("beta", beta)
        self.temperature = positive_number("temperature", temperature)
        self.confidence_temperature = positive_number("confidence_temperature", confidence_temperature)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce``, ``confidence`` (SC) and ``correlation`` (MC), both without temperatures."""
        logits = step.student.head(step.student.encode(batch.x))
        q = teacher_logits_like("rld", logits, step.required_teacher, batch)
        ce = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        t_c, t = self.confidence_temperature, self.temperature
        ours = one_against_rest(logits / t_c, batch.y)
        confidence = kl_of_logs(ours, one_against_rest(q / t_c, q.argmax(1))).mean()
        not_below = q >= q.gather(1, batch.y[:, None])
        correlation = kl_without(logits / t, q / t, not_below).mean()
        loss = ce + self.alpha * t_c**2 * confidence + self.beta * t**2 * correlation
        return {"loss": loss, "ce": ce, "confidence": confidence, "correlation": correlation}
