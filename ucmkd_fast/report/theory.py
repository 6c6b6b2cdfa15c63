"""Theorem 2.6 of the paper in numbers: err_S <= err_T + FA + LA, each part measured on samples.

* err: mean cross-entropy with the labels, nats, of each model on its own modality.
* FA = tau W_1: the paper's Wasserstein-1 distance between the two models' features times the
  Lipschitz constant, in the same metric, of the teacher's cross-entropy l(z) = E_{D^T(y|z)}[-log p_T(y|z)].
* LA: mean of `label_transport_loss` on the student's samples.

With p_T in the place of the unknown D^T(y|z), l is the entropy of the teacher's head, and tau
is estimated as its largest gradient norm over the features at hand. W_1 is estimated by entropic
transport, whose <P, C> is never below the exact value for marginals that are met. The metric is l2.
So the parts are estimates, and the inequality is something to observe, not something that holds
by construction: a head's entropy may be steeper between the features than at them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.precision import head_in
from ..ops.label_transport import label_transport_loss
from ..ops.result import Convergence, SinkhornResult
from ..ops.sinkhorn import sinkhorn_loss

_RELATIVE_REG = 0.01  # of the mean distance; brings <P, C> to within a few per cent of the exact W_1
_MAX_ITER, _TOL = 5000, 1e-3


@dataclass(frozen=True)
class BoundParts:
    """The parts of Theorem 2.6, in nats unless said otherwise."""

    teacher_error: float
    tau: float  # nats per unit of feature distance
    wasserstein: float  # units of feature distance
    label_alignment: float
    student_error: float
    reg: float  # of the entropic transport, units of feature distance
    marginal_error: float  # of its plan, a mass between 0 and 2

    @property
    def feature_alignment(self) -> float:
        """FA = tau W_1."""
        return self.tau * self.wasserstein

    @property
    def bound(self) -> float:
        """The right-hand side: err_T + FA + LA."""
        return self.teacher_error + self.feature_alignment + self.label_alignment

    @property
    def slack(self) -> float:
        """Bound minus student's error; negative where the estimate of the bound fails."""
        return self.bound - self.student_error


def largest_entropy_gradient(head: nn.Module, features: Tensor) -> float:
    """The largest l2 norm, over rows of features (n, D), of the gradient of the head's entropy.

    The head must treat rows independently (eval mode).
    """
    z = features.detach().clone().requires_grad_()
    with torch.enable_grad():
        log_p = F.log_softmax(head(z), -1)
        entropy = -(log_p.exp() * log_p).sum()
    (gradient,) = torch.autograd.grad(entropy, z)
    return gradient.norm(dim=1).max().item()


def bound_parts(
    student_head: nn.Module,
    teacher_head: nn.Module,
    student_feature: Tensor,
    student_y: Tensor,
    teacher_feature: Tensor,
    teacher_y: Tensor,
) -> BoundParts:
    """The parts of Theorem 2.6 on samples of both modalities; heads in eval mode.

    All is computed in the dtype of the student's features, float32 at least, whatever the rest is kept in.

    Args:
        student_head: features to logits (n, K).
        teacher_head: likewise; it reads the student's features as well.
        student_feature: (n, D) of the student's samples.
        student_y: (n,) int64 labels.
        teacher_feature: (m, D) of the teacher's samples.
        teacher_y: (m,) int64 labels.

    Raises:
        TypeError: as `sinkhorn_loss` and `label_transport_loss`.
        ValueError: likewise: widths or class counts that differ, labels out of range.
    """
    if student_feature.shape[1:] != teacher_feature.shape[1:]:
        raise ValueError(
            "student_feature and teacher_feature must have the same width, got "
            f"{tuple(student_feature.shape)} and {tuple(teacher_feature.shape)}"
        )
    dtype = torch.promote_types(student_feature.dtype, torch.float32)
    student_feature, teacher_feature = student_feature.to(dtype), teacher_feature.to(dtype)
    student_head, teacher_head = head_in(student_head, dtype), head_in(teacher_head, dtype)
    with torch.no_grad():
        student_logits = student_head(student_feature)
        label_alignment = label_transport_loss(student_logits, teacher_head(student_feature), student_y)
        mean_distance = (
            torch.cdist(student_feature, teacher_feature, compute_mode="donot_use_mm_for_euclid_dist")
            .mean()
            .item()
        )  # by differences: far from the origin the products would lose the distance
        reg = max(_RELATIVE_REG * mean_distance, torch.finfo(torch.float32).tiny)
        transport: Any = sinkhorn_loss(
            student_feature, teacher_feature, metric="l2", reg=reg, max_iter=_MAX_ITER, tol=_TOL,
            return_result=True, convergence=Convergence(),
        )  # fmt: skip
        assert isinstance(transport, SinkhornResult)
        teacher_error = F.cross_entropy(teacher_head(teacher_feature), teacher_y)
        student_error = F.cross_entropy(student_logits, student_y)
    return BoundParts(
        teacher_error=teacher_error.item(),
        tau=largest_entropy_gradient(teacher_head, torch.cat([student_feature, teacher_feature])),
        wasserstein=transport.value.item(),
        label_alignment=label_alignment.item(),
        student_error=student_error.item(),
        reg=reg,
        marginal_error=transport.marginal_error.item(),
    )
