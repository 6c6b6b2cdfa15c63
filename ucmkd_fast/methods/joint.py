"""Both alignments in one loss, without the bi-level loop."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..alignment import feature_alignment, teacher_reading
from ..data.batch import Batch
from ..ops.checks import number_at_least_zero
from ..ops.label_transport import label_transport_loss
from ..ops.sinkhorn import Unbalanced
from .base import LossMethod, Step, register
from .checks import fraction, kappa_mode, transport


@register
class Joint(LossMethod):
    """CE(s, y) + fa_weight FA(z, z_T) + la_weight LA, LA = CE(s, y) - kappa CE(q, y).

    q, the teacher's head on the student's feature z, is differentiable with respect to z.
    With kappa detached (as published), LA pushes the teacher's probability of the label
    on student features *down*; with kappa live, towards 1/e.

    Args:
        fa_weight: weight of FA, >= 0.
        la_weight: weight of LA, >= 0.
        kappa: "detached" or "live": whether kappa = softmax(q)[y] has a gradient.
        metric: cost between features; as in `sinkhorn_loss`.
        reg: entropic regularisation, > 0, in units of cost.
        max_iter: Sinkhorn iterations, >= 1.
        unbalanced: None, exact marginals; or rho > 0, in units of cost: both are held by rho KL instead, as in
            `sinkhorn_loss`, so that samples far from all of the other side's are left out. A pair
            (student's, teacher's), None for a side that is exact.
        label_smoothing: in CE and LA, in [0, 1].
    """

    name = "joint"
    published_name = "sumall"
    needs_equal_widths = True

    def __init__(
        self,
        *,
        fa_weight: float = 1.0,
        la_weight: float = 1.0,
        kappa: str = "detached",
        metric: str = "cosine",
        reg: float = 0.1,
        max_iter: int = 100,
        unbalanced: Unbalanced = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.fa_weight = number_at_least_zero("fa_weight", fa_weight)
        self.la_weight = number_at_least_zero("la_weight", la_weight)
        self.kappa = kappa_mode(kappa)
        self.transport = transport(metric, reg, max_iter, unbalanced)
        self.warm_transport = self.marginal_fa = self.transport
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce``, ``fa``, ``la``, and how the teacher's head reads the student's features."""
        teacher = step.required_teacher
        feature = step.student.encode(batch.x)
        logits, teacher_logits = step.student.head(feature), teacher.head(feature)
        ce = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        fa = feature_alignment(step, batch, feature, teacher.features(batch), self.transport)
        la = label_transport_loss(
            logits, teacher_logits, batch.y, kappa=self.kappa, label_smoothing=self.label_smoothing
        )
        loss = ce + self.fa_weight * fa + self.la_weight * la
        return {"loss": loss, "ce": ce, "fa": fa, "la": la, **teacher_reading(step, teacher_logits, batch.y)}
