"""Feature alignment that keeps classes apart: cross-entropy plus class-conditional transport, in one loss."""

from __future__ import annotations

from torch import Tensor

from ..alignment import class_conditional_alignment
from ..data.batch import Batch
from ..ops.sinkhorn import Unbalanced
from .base import Step, register
from .feature import Feature


@register
class LabelAwareFA(Feature):
    """CE(s, y) + fa_weight FA(z, z_T | y): as `feature`, but no mass moves between classes.

    Marginal transport matches clusters of features to whatever class is near; where that is the wrong
    one, FA falls while the teacher's head reads nothing from the student's features. Here each class is a
    transport problem of its own, with the mass that it has in the student's batch.

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

    name, published_name = "label-aware-fa", ""
    required_draw = ("class-matched", "paired")  # every class of the batch then has a teacher's sample

    def __init__(
        self,
        *,
        fa_weight: float = 1.0,
        metric: str = "cosine",
        reg: float = 0.1,
        max_iter: int = 20,
        unbalanced: Unbalanced = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__(
            fa_weight=fa_weight, metric=metric, reg=reg, max_iter=max_iter, unbalanced=unbalanced,
            label_smoothing=label_smoothing,
        )  # fmt: skip
        self.warm_transport = self.marginal_fa = None  # there is no marginal problem

    def alignment(self, step: Step, batch: Batch, feature: Tensor, classes: int) -> Tensor:
        """FA () of the student's features (n, D), class by class."""
        return class_conditional_alignment(step, feature, batch, classes, self.transport)
