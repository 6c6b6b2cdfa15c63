"""Self-training with balanced pseudo-labels: what unlabelled data give without any teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Batch
from ..ops.checks import count_at_least_one, number_at_least_zero, positive_number
from ..ops.sinkhorn import sinkhorn
from .base import LossMethod, Step, register
from .checks import fraction, held_by
from .unlabelled import encode_both, log_probabilities, ramped


@register
class SelfTraining(LossMethod):
    """Labelled and balanced pseudo-labelled samples, both with targets that are softened evenly.

        (1 - alpha) CE(s, y) + alpha T^2 KL(O_y || s / T)
        + unlabelled_weight r ((1 - alpha) CE(s, q) + alpha T^2 KL(q O || s / T))     r ramps up

    q are the student's own predictions made as frequent for every class as for any other: the entropic
    transport plan between the batch and the classes, of cost -log p_S(k | x_i), is held constant (Caron et
    al. 2020, SwAV; Asano et al. 2020). O (K, K) has 1 - ``softness`` on its diagonal and the rest shared out
    evenly: what a teacher's softened outputs are without what it knows. It needs roughly balanced classes.
    The control for every method that learns from unlabelled data with a teacher: a gain over it is the teacher's.

    Args:
        alpha: weight of the softened targets, in [0, 1].
        temperature: T > 0.
        softness: of O, in [0, 1].
        unlabelled_weight: weight of the second line, >= 0.
        ramp: share of the training over which that weight rises from 0, in [0, 1].
        reg: entropic regularisation, > 0, in nats; below 1 the labels get sharper than the predictions.
        max_iter: Sinkhorn iterations, >= 1.
        unbalanced: None, every class as frequent as any other; or rho > 0, in nats: that is held by rho KL instead, so
            that classes may be rarer or more frequent. Every sample keeps its mass.
        label_smoothing: of the labelled cross-entropy, in [0, 1].
    """

    name = "self-training"
    uses_teacher = False
    uses_unlabelled = True

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        temperature: float = 4.0,
        softness: float = 0.3,
        unlabelled_weight: float = 1.0,
        ramp: float = 0.4,
        reg: float = 0.3,
        max_iter: int = 10,
        unbalanced: float | None = None,
        label_smoothing: float = 0.3,
    ):
        super().__init__()
        self.alpha = fraction("alpha", alpha)
        self.temperature = positive_number("temperature", temperature)
        self.softness = fraction("softness", softness)
        self.unlabelled_weight = number_at_least_zero("unlabelled_weight", unlabelled_weight)
        self.ramp = fraction("ramp", ramp)
        self.reg = positive_number("reg", reg)
        self.max_iter = count_at_least_one("max_iter", max_iter)
        self.unbalanced = held_by("unbalanced", unbalanced)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce`` and ``pseudo``, the unlabelled samples' term; with ``alpha`` also ``kl`` (without T^2)."""
        feature, unlabelled = encode_both(step.student, batch)
        log_s = log_probabilities(step.student.head(feature))
        log_p = step.gather_rows(log_probabilities(step.student.head(unlabelled)))
        ce = F.cross_entropy(log_s, batch.y, label_smoothing=self.label_smoothing)
        balanced = sinkhorn(
            -log_p, reg=self.reg, max_iter=self.max_iter, grad="envelope", unbalanced=self.unbalanced
        )
        parts = {"ce": ce, "pseudo": balanced.value}
        labelled = ce
        if self.alpha > 0:
            q = len(log_p) * balanced.plan().detach()
            weight = self.alpha * self.temperature**2
            labels = torch.zeros_like(log_s).scatter_(1, batch.y[:, None], 1)
            parts["kl"] = self._softened(log_s, labels)
            labelled = (1 - self.alpha) * ce + weight * parts["kl"]
            parts["pseudo"] = (1 - self.alpha) * balanced.value + weight * self._softened(log_p, q)
        weight = self.unlabelled_weight * ramped(step.progress, self.ramp)
        return {"loss": labelled + weight * parts["pseudo"], **parts}

    def _softened(self, log_p: Tensor, q: Tensor) -> Tensor:
        """KL(q O || softmax(log_p / T)) for labels q (n, K), the mean over samples."""
        rest = self.softness / (q.shape[1] - 1)
        targets = (1 - self.softness - rest) * q + rest
        return F.kl_div(F.log_softmax(log_p / self.temperature, -1), targets, reduction="batchmean")
