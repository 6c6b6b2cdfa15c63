"""Variants of ucmkd-plus that were tried and did not become options: registered for does_it_help.py alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ucmkd_fast.alignment import TeacherBank, class_means, labelling_plan
from ucmkd_fast.methods import Step
from ucmkd_fast.methods.base import register
from ucmkd_fast.methods.ucmkd_plus import UCMKDPlus
from ucmkd_fast.methods.unlabelled import scaled_gradient


@register
class AdaptiveMarginals(UCMKDPlus):
    """Classes as heavy as the student finds them: a running mean of its predictions, half and half with uniform."""

    name = "adaptive-marginals"
    _prior: Tensor | None = None

    def labelling_loss(self, step: Step, unlabelled: Tensor, log_p: Tensor) -> Tensor:
        """With the bank's masses by the running mean."""
        assert self._bank is not None
        found = log_p.detach().exp().mean(0)
        self._prior = found if self._prior is None else 0.9 * self._prior + 0.1 * found
        uniform = torch.full_like(found, 1 / len(found))
        labels, balanced = self._bank.labels, self._bank
        mass = balanced.mass * (0.5 * self._prior + 0.5 * uniform)[labels]
        self._bank = TeacherBank(balanced.feature, labels, mass / mass.sum())
        loss = super().labelling_loss(step, unlabelled, log_p)
        self._bank = balanced
        return loss


@register
class Translated(UCMKDPlus):
    """The student's predictions on unlabelled samples read through the teacher's similarity of classes.

    p S in the place of p in the cost, S (K, K) the mean softened output of the teacher's head by class.
    """

    name = "translated"

    @torch.no_grad()
    def receive_bank(self, feature: Tensor, labels: Tensor) -> None:
        """And the similarity of classes."""
        super().receive_bank(feature, labels)
        assert self._teacher is not None
        outputs = (self._teacher.head(feature) / self.temperature).softmax(-1)
        self._similarity = class_means(outputs, labels, outputs.shape[1])

    def labelling_loss(self, step: Step, unlabelled: Tensor, log_p: Tensor) -> Tensor:
        """With translated predictions."""
        return super().labelling_loss(step, unlabelled, (log_p.exp() @ self._similarity).log())


@register
class LighterFeatures(UCMKDPlus):
    """C_ij = w d(z_i, b_j) - log p_S(k_j | x_i) with w = 0.3: features weigh less in choosing the labels."""

    name = "lighter-features"

    def labelling_loss(self, step: Step, unlabelled: Tensor, log_p: Tensor) -> Tensor:
        """The same problem in units of w."""
        assert self._bank is not None
        w, t = 0.3, self.temperature
        transport = self.labelling._replace(reg=self.labelling.reg / w)
        moved = scaled_gradient(unlabelled, self.move_weight)
        loss, soft = labelling_plan(step, moved, log_p / w, self._bank, transport)
        if self.unlabelled_alpha == 0:
            return w * loss
        ce = -(soft * log_p).sum(1).mean()
        kl = F.kl_div(F.log_softmax(log_p / t, -1), soft @ self._outputs, reduction="batchmean")
        return w * loss + self.unlabelled_alpha * (t * t * kl - ce)


@register
class WithoutSimilarity(UCMKDPlus):
    """The teacher's outputs by class with what lies off the diagonal shared out evenly: as sure, and no semantics."""

    name = "without-similarity"

    @torch.no_grad()
    def receive_bank(self, feature: Tensor, labels: Tensor) -> None:
        """Level the outputs."""
        super().receive_bank(feature, labels)
        assert self._outputs is not None
        own = self._outputs.diagonal()
        others = ((1 - own) / (len(own) - 1))[:, None].expand(-1, len(own)).clone()
        self._outputs = others.diagonal_scatter(own)
