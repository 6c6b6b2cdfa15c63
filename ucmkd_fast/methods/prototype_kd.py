"""Knowledge distillation from class prototypes: the teacher's mean output and feature of each class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignment import class_means
from ..data.batch import Batch
from ..ops.checks import count_at_least_one, number_at_least_zero, positive_number
from .base import FrozenTeacher, LossMethod, Step, TrainedTeacher, register
from .checks import fraction
from .unlabelled import log_probabilities


@register
class PrototypeKD(LossMethod):
    """(1 - alpha) CE(s, y) + alpha T^2 KL(q_y || s / T) + feature_weight (1 - cos(z, c_y)).

    q_k is the mean of the teacher's softened outputs softmax(t / T) over its samples of class k, and c_k
    the mean of their features at unit length: what is left of the teacher when single samples are averaged out.
    Nothing is matched or drawn in a step.

    Args:
        alpha: weight of the teacher's outputs, in [0, 1].
        temperature: T > 0.
        feature_weight: weight of the features' term, >= 0.
        bank_size: teacher's samples that the means are taken over, of all classes together.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "prototype-kd"
    needs_equal_widths = True

    def __init__(
        self,
        *,
        alpha: float = 0.9,
        temperature: float = 4.0,
        feature_weight: float = 0.0,
        bank_size: int = 400,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.alpha = fraction("alpha", alpha)
        self.temperature = positive_number("temperature", temperature)
        self.feature_weight = number_at_least_zero("feature_weight", feature_weight)
        self.needs_equal_widths = self.feature_weight > 0
        self.bank_size = count_at_least_one("bank_size", bank_size)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)
        self._teacher: FrozenTeacher | None = None
        self._prototypes: tuple[Tensor, Tensor] | None = None

    def setup(
        self, student: torch.nn.Module, teacher: FrozenTeacher | TrainedTeacher | None, example: Batch
    ) -> None:
        """Remember whose head reads the bank."""
        assert isinstance(teacher, FrozenTeacher)
        self._teacher = teacher

    @torch.no_grad()
    def receive_bank(self, feature: Tensor, labels: Tensor) -> None:
        """The means over each class (K, K) and (K, D); a class without samples has zeros."""
        assert self._teacher is not None
        outputs = log_probabilities(self._teacher.head(feature) / self.temperature).exp()
        classes = outputs.shape[1]
        unit = F.normalize(feature.to(outputs.dtype))
        self._prototypes = class_means(outputs, labels, classes), class_means(unit, labels, classes)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce``, ``kl`` (without T^2) and, where it has a weight, ``distance``."""
        if self._prototypes is None:
            raise ValueError("prototype-kd averages a bank of teacher features: call receive_bank first")
        outputs, features = self._prototypes
        feature = step.student.encode(batch.x)
        logits = step.student.head(feature)
        ce = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        t = self.temperature
        kl = F.kl_div(log_probabilities(logits / t), outputs[batch.y], reduction="batchmean")
        loss = (1 - self.alpha) * ce + self.alpha * t * t * kl
        parts = {"ce": ce, "kl": kl}
        if self.feature_weight > 0:
            parts["distance"] = (
                1 - F.cosine_similarity(feature.to(features.dtype), features[batch.y])
            ).mean()
            loss = loss + self.feature_weight * parts["distance"]
        return {"loss": loss, **parts}
