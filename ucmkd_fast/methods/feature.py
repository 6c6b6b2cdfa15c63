"""Feature distillation: cross-entropy plus feature alignment, in one loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignment import feature_alignment, teacher_reading
from ..data.batch import Batch
from ..ops.checks import number_at_least_zero
from ..ops.sinkhorn import Unbalanced
from .base import LossMethod, Step, register
from .checks import fraction, transport


@register
class Feature(LossMethod):
    """CE(s, y) + fa_weight FA(z, z_T), FA the entropic transport cost of the two batches of features.

    Args:
        fa_weight: weight of FA, >= 0.
        metric: cost between features; as in `sinkhorn_loss`.
        reg: entropic regularisation, > 0, in units of cost.
        max_iter: Sinkhorn iterations, >= 1.
        unbalanced: None, exact marginals; or rho > 0, in units of cost: both are held by rho KL instead, as in
            `sinkhorn_loss`, so that samples far from all of the other side's are left out. A pair
            (student's, teacher's), None for a side that is exact.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "feature"
    published_name = "feadistill"
    needs_equal_widths = True

    def __init__(
        self,
        *,
        fa_weight: float = 1.0,
        metric: str = "cosine",
        reg: float = 0.1,
        max_iter: int = 100,
        unbalanced: Unbalanced = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.fa_weight = number_at_least_zero("fa_weight", fa_weight)
        self.transport = transport(metric, reg, max_iter, unbalanced)
        self.warm_transport = self.marginal_fa = self.transport
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def alignment(self, step: Step, batch: Batch, feature: Tensor, classes: int) -> Tensor:
        """FA () of the student's features (n, D)."""
        target = step.required_teacher.features(batch)
        return feature_alignment(step, batch, feature, target, self.transport)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce``, ``fa``, and how the teacher's head reads the student's features."""
        teacher = step.required_teacher
        feature = step.student.encode(batch.x)
        logits = step.student.head(feature)
        ce = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        fa = self.alignment(step, batch, feature, logits.shape[1])
        with torch.no_grad():
            reading = teacher_reading(step, teacher.head(feature), batch.y)
        return {"loss": ce + self.fa_weight * fa, "ce": ce, "fa": fa, **reading}
