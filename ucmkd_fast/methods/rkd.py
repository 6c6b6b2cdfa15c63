"""Relational knowledge distillation: distances and angles among samples (arXiv 1904.05068)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Batch
from ..ops.checks import number_at_least_zero
from .base import LossMethod, Step, register
from .by_index import same_samples
from .checks import fraction


@register
class RKD(LossMethod):
    """CE(s, y) + distance_weight RKD-D + angle_weight RKD-A.

    "Relational Knowledge Distillation" (Park, Kim, Lu, Cho; CVPR 2019), Sections 3.2.1 and 3.2.2: the
    Huber loss, the mean over pairs, between |z_i - z_j| divided by its mean over pairs, of student and
    teacher; and, the mean over triplets, between the cosines of the angles at z_j. Widths of the
    features may differ. Relations are compared by index, so sample i of the teacher must at least be of
    the class of sample i of the student. Several processes relate all their rows. Triplets take n^3
    numbers of memory.

    Args:
        distance_weight: of RKD-D, >= 0.
        angle_weight: of RKD-A, >= 0.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "rkd"
    required_draw = ("class-matched", "paired")

    def __init__(
        self, *, distance_weight: float = 25.0, angle_weight: float = 50.0, label_smoothing: float = 0.0
    ):
        super().__init__()
        self.distance_weight = number_at_least_zero("distance_weight", distance_weight)
        self.angle_weight = number_at_least_zero("angle_weight", angle_weight)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce``, ``distance`` (RKD-D) and ``angle`` (RKD-A)."""
        target = step.required_teacher.features(batch)
        feature = step.student.encode(batch.x)
        same_samples("rkd", feature, target)
        ce = F.cross_entropy(step.student.head(feature), batch.y, label_smoothing=self.label_smoothing)
        with torch.autocast(feature.device.type, enabled=False):  # products would lose digits of the angles
            distances, angles = _relations(step.gather_rows(feature.to(ce.dtype)))
            target_distances, target_angles = _relations(step.gather_rows(target.to(ce.dtype)))
        distance = F.huber_loss(distances, target_distances)
        angle = F.huber_loss(angles, target_angles)
        loss = ce + self.distance_weight * distance + self.angle_weight * angle
        return {"loss": loss, "ce": ce, "distance": distance, "angle": angle}


def _relations(z: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, D) -> distances over their mean (n, n), and cosines (n, n, n), [j, i, k] the angle at j.

    Both come from the products of the features alone, |z_i - z_j|^2 = G_ii + G_jj - 2 G_ij and
    <z_i - z_j, z_k - z_j> = G_ik - G_ij - G_jk + G_jj, which cancel: so these are in float64. Samples
    that coincide have distance 0, directions 0, and no gradient there.
    """
    centred = (z - z.mean(0)).double()
    gram = centred @ centred.T
    own = gram.diagonal()
    both = own[:, None] + own
    squares = both - 2 * gram
    apart = squares > 1e-13 * both
    lengths = torch.where(apart, squares, 1.0).sqrt()
    distances = lengths * apart
    mean = distances.sum() / apart.sum().clamp_min(1)
    to_other = gram - own[:, None]  # [j, i]: <z_i - z_j, z_j>
    products = gram[None] - to_other[:, :, None] - to_other[:, None, :] - own[:, None, None]
    weight = apart / lengths
    angles = products.to(z.dtype) * (weight[:, :, None] * weight[:, None, :]).to(z.dtype)
    return (distances / torch.where(mean > 0, mean, 1.0)).to(z.dtype), angles
