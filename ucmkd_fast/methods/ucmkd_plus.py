"""What was measured to transfer: matched logits, features class by class, and transport that labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..alignment import (
    TeacherBank,
    class_conditional_alignment,
    class_means,
    labelling_plan,
    labelling_transport,
)
from ..data.batch import Batch
from ..ops.checks import count_at_least_one, number_at_least_zero, positive_number
from ..ops.sinkhorn import Unbalanced
from .base import FrozenTeacher, LossMethod, Step, TrainedTeacher, register
from .by_index import teacher_logits_like
from .checks import fraction, held_by, transport
from .divergence import kl
from .unlabelled import encode_both, log_probabilities, ramped, scaled_gradient


@register
class UCMKDPlus(LossMethod):
    """Class-matched KD, class-conditional FA, and transport from unlabelled data to the labelled teacher bank.

        (1 - alpha) CE(s, y) + alpha T^2 KL(t / T || s / T)     logits of a teacher's sample of the same class
        + fa_weight FA(z, z_T | y)                              as `label-aware-fa`
        + unlabelled_weight r (<P, d> + (1 - u) CE(s, q) + u T^2 KL(q O || s / T))         r ramps up

    P moves the unlabelled batch to a bank of labelled teacher features, to each class as much as to any
    other: C_ij = d(z_i, b_j) - log p_S(k_j | x_i), entropic at ``unlabelled_reg``, and P is held constant.
    So one transport gives both soft labels q (the plan summed by class) and the features to move to.
    O (K, K) is the mean of the teacher's softened outputs over each class of the bank: through u, samples
    without labels learn from them too, which classes the teacher finds alike. Classes should be roughly
    balanced.

    Each part can be switched off: ``alpha``, ``fa_weight``, ``unlabelled_weight`` at 0 (then no unlabelled
    data are needed).

    Args:
        alpha: weight of the teacher's logits, in [0, 1].
        temperature: T > 0.
        fa_weight: weight of the class-conditional FA, >= 0.
        reg: entropic regularisation of it, > 0, in units of cost.
        max_iter: Sinkhorn iterations of it, >= 1.
        unbalanced: of it. None, exact marginals; or rho > 0, in units of cost: both are held by rho KL instead, as in
            `sinkhorn_loss`, so that samples far from all of the other side's are left out. A pair
            (student's, teacher's), None for a side that is exact.
        metric: cost between features, of both transports; as in `sinkhorn_loss`.
        unlabelled_weight: weight of the transport of unlabelled samples, >= 0.
        unlabelled_alpha: u, the share in [0, 1] of the teacher's outputs in what unlabelled samples learn.
        move_weight: factor, >= 0, of its pull on features; at 0 they only help to choose the labels.
        ramp: share of the training over which that weight rises from 0, in [0, 1].
        unlabelled_reg: entropic regularisation of it, > 0.
        unlabelled_iter: Sinkhorn iterations of it, >= 1.
        unlabelled_unbalanced: None, every class gets as much of P as any other; or rho > 0, in units of cost: the
            bank's marginal is held by rho KL instead, so that a class may get less or more. Every unlabelled
            sample keeps its mass: it gets a label.
        bank_size: teacher's samples in the bank, of all classes together.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "ucmkd-plus"
    required_draw = ("class-matched", "paired")
    needs_equal_widths = True

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        temperature: float = 4.0,
        fa_weight: float = 1.0,
        reg: float = 0.1,
        max_iter: int = 20,
        unbalanced: Unbalanced = None,
        metric: str = "cosine",
        unlabelled_weight: float = 1.0,
        unlabelled_alpha: float = 0.5,
        move_weight: float = 1.0,
        ramp: float = 0.4,
        unlabelled_reg: float = 0.3,
        unlabelled_iter: int = 10,
        unlabelled_unbalanced: float | None = None,
        bank_size: int = 400,
        label_smoothing: float = 0.3,
    ):
        super().__init__()
        self.alpha = fraction("alpha", alpha)
        self.temperature = positive_number("temperature", temperature)
        self.fa_weight = number_at_least_zero("fa_weight", fa_weight)
        self.transport = transport(metric, reg, max_iter, unbalanced)
        self.unlabelled_weight = number_at_least_zero("unlabelled_weight", unlabelled_weight)
        self.unlabelled_alpha = fraction("unlabelled_alpha", unlabelled_alpha)
        self.move_weight = number_at_least_zero("move_weight", move_weight)
        self.ramp = fraction("ramp", ramp)
        by_class = held_by("unlabelled_unbalanced", unlabelled_unbalanced)
        self.labelling = transport(metric, unlabelled_reg, unlabelled_iter, by_class)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)
        self.uses_unlabelled = self.unlabelled_weight > 0
        self.bank_size = count_at_least_one("bank_size", bank_size) if self.uses_unlabelled else 0
        self._teacher: FrozenTeacher | None = None
        self._bank: TeacherBank | None = None
        self._outputs: Tensor | None = None

    def setup(
        self, student: nn.Module, teacher: FrozenTeacher | TrainedTeacher | None, example: Batch
    ) -> None:
        """Remember whose head reads the bank."""
        assert isinstance(teacher, FrozenTeacher)
        self._teacher = teacher

    @torch.no_grad()
    def receive_bank(self, feature: Tensor, labels: Tensor) -> None:
        """Keep the bank, whose masses make every class as heavy as any other, and the teacher's outputs by class."""
        self._bank = TeacherBank.balanced(feature, labels)
        if self.unlabelled_alpha > 0:
            assert self._teacher is not None
            outputs = log_probabilities(self._teacher.head(feature) / self.temperature).exp()
            self._outputs = class_means(outputs, labels, outputs.shape[1])

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss`` and its parts: ``ce``, ``kl`` (without T^2), ``fa``, and ``labelling``, of unlabelled samples."""
        student = step.student
        if self.uses_unlabelled:
            feature, unlabelled = encode_both(student, batch)
        else:
            feature = student.encode(batch.x)
        logits = student.head(feature)
        ce = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        parts = {"ce": ce}
        loss = (1 - self.alpha) * ce
        if self.alpha > 0:
            t = self.temperature
            teacher_logits = teacher_logits_like(self.name, logits, step.required_teacher, batch)
            parts["kl"] = kl(logits / t, teacher_logits / t).mean()
            loss = loss + self.alpha * t * t * parts["kl"]
        if self.fa_weight > 0:
            parts["fa"] = class_conditional_alignment(step, feature, batch, logits.shape[1], self.transport)
            loss = loss + self.fa_weight * parts["fa"]
        if self.uses_unlabelled:
            log_p = log_probabilities(student.head(unlabelled))
            parts["labelling"] = self.labelling_loss(step, unlabelled, log_p)
            loss = loss + self.unlabelled_weight * ramped(step.progress, self.ramp) * parts["labelling"]
        return {"loss": loss, **parts}

    def labelling_loss(self, step: Step, unlabelled: Tensor, log_p: Tensor) -> Tensor:
        """The term of unlabelled features (u, D) with log-probabilities (u, K), without its weight."""
        if self._bank is None:
            raise ValueError("ucmkd-plus labels by a bank of teacher features: call receive_bank first")
        problem = step, scaled_gradient(unlabelled, self.move_weight), log_p, self._bank, self.labelling
        if self._outputs is None:
            return labelling_transport(*problem)
        loss, soft = labelling_plan(*problem)  # loss = <P, d> + CE(s, q)
        log_p, t = step.gather_rows(log_p), self.temperature
        ce = -(soft * log_p).sum(1).mean()
        divergence = F.kl_div(F.log_softmax(log_p / t, -1), soft @ self._outputs, reduction="batchmean")
        return loss + self.unlabelled_alpha * (t * t * divergence - ce)
