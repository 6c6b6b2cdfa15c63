"""Self-training with balanced pseudo-labels: what unlabelled data give without any teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Batch
from ..ops.checks import count_at_least_one, number_at_least_zero, positive_number
from ..ops.sinkhorn import sinkhorn
from .base import LossMethod, Step, register
from .checks import fraction
from .unlabelled import encode_both, log_probabilities, ramped


@register
class SelfTraining(LossMethod):
    """CE(s, y) with label smoothing + weight CE(p_S, q) on unlabelled samples.

    q are the student's own predictions made as frequent for every class as for any other: the entropic
    transport plan between the batch and the classes, of cost -log p_S(k | x_i), is held constant (Caron et
    al. 2020, SwAV; Asano et al. 2020). It needs roughly balanced classes. The control for every method
    that learns from unlabelled data with a teacher: a gain over it is the teacher's.

    Args:
        unlabelled_weight: weight of the second term, >= 0.
        ramp: share of the training over which that weight rises from 0, in [0, 1].
        reg: entropic regularisation, > 0, in nats; below 1 the labels get sharper than the predictions.
        max_iter: Sinkhorn iterations, >= 1.
        label_smoothing: of the labelled cross-entropy, in [0, 1].
    """

    name = "self-training"
    uses_teacher = False
    uses_unlabelled = True

    def __init__(
        self,
        *,
        unlabelled_weight: float = 1.0,
        ramp: float = 0.4,
        reg: float = 0.3,
        max_iter: int = 10,
        label_smoothing: float = 0.3,
    ):
        super().__init__()
        self.unlabelled_weight = number_at_least_zero("unlabelled_weight", unlabelled_weight)
        self.ramp = fraction("ramp", ramp)
        self.reg = positive_number("reg", reg)
        self.max_iter = count_at_least_one("max_iter", max_iter)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce`` and ``pseudo``, the unlabelled samples' cross-entropy."""
        feature, unlabelled = encode_both(step.student, batch)
        ce = F.cross_entropy(step.student.head(feature), batch.y, label_smoothing=self.label_smoothing)
        costs = -log_probabilities(step.student.head(unlabelled))
        balanced = sinkhorn(step.gather_rows(costs), reg=self.reg, max_iter=self.max_iter, grad="envelope")
        weight = self.unlabelled_weight * ramped(step.progress, self.ramp)
        return {"loss": ce + weight * balanced.value, "ce": ce, "pseudo": balanced.value}
