"""What was measured to transfer: matched logits, features class by class, and transport that labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..alignment import TeacherBank, class_conditional_alignment, labelling_transport
from ..data.batch import Batch
from ..ops.checks import count_at_least_one, number_at_least_zero, positive_number
from .base import LossMethod, Step, register
from .by_index import teacher_logits_like
from .checks import fraction, transport
from .divergence import kl
from .unlabelled import encode_both, log_probabilities, ramped, scaled_gradient


@register
class UCMKDPlus(LossMethod):
    """Class-matched KD, class-conditional FA, and transport from unlabelled data to the labelled teacher bank.

        (1 - alpha) CE(s, y) + alpha T^2 KL(t / T || s / T)     logits of a teacher's sample of the same class
        + fa_weight FA(z, z_T | y)                              as `label-aware-fa`
        + unlabelled_weight r <P, C>                            r ramps up

    P moves the unlabelled batch to a bank of labelled teacher features, to each class as much as to any
    other: C_ij = d(z_i, b_j) - log p_S(k_j | x_i), entropic at ``unlabelled_reg``, and P is held constant.
    So one transport gives both soft labels (the plan summed by class: its term is their cross-entropy)
    and the features to move to. Classes should be roughly balanced.

    Each part can be switched off: ``alpha``, ``fa_weight``, ``unlabelled_weight`` at 0 (then no unlabelled
    data are needed).

    Args:
        alpha: weight of the teacher's logits, in [0, 1].
        temperature: T > 0.
        fa_weight: weight of the class-conditional FA, >= 0.
        reg: entropic regularisation of it, > 0, in units of cost.
        max_iter: Sinkhorn iterations of it, >= 1.
        metric: cost between features, of both transports; as in `sinkhorn_loss`.
        unlabelled_weight: weight of the transport of unlabelled samples, >= 0.
        move_weight: factor, >= 0, of its pull on features; at 0 they only help to choose the labels.
        ramp: share of the training over which that weight rises from 0, in [0, 1].
        unlabelled_reg: entropic regularisation of it, > 0.
        unlabelled_iter: Sinkhorn iterations of it, >= 1.
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
        metric: str = "cosine",
        unlabelled_weight: float = 1.0,
        move_weight: float = 1.0,
        ramp: float = 0.4,
        unlabelled_reg: float = 0.3,
        unlabelled_iter: int = 10,
        bank_size: int = 400,
        label_smoothing: float = 0.3,
    ):
        super().__init__()
        self.alpha = fraction("alpha", alpha)
        self.temperature = positive_number("temperature", temperature)
        self.fa_weight = number_at_least_zero("fa_weight", fa_weight)
        self.transport = transport(metric, reg, max_iter)
        self.unlabelled_weight = number_at_least_zero("unlabelled_weight", unlabelled_weight)
        self.move_weight = number_at_least_zero("move_weight", move_weight)
        self.ramp = fraction("ramp", ramp)
        self.labelling = transport(metric, unlabelled_reg, unlabelled_iter)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)
        self.uses_unlabelled = self.unlabelled_weight > 0
        self.bank_size = count_at_least_one("bank_size", bank_size) if self.uses_unlabelled else 0
        self._bank: TeacherBank | None = None

    def receive_bank(self, feature: Tensor, labels: Tensor) -> None:
        """Keep the bank; its masses make every class as heavy as any other."""
        self._bank = TeacherBank.balanced(feature, labels)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss`` and its parts: ``ce``, ``kl`` (without T^2), ``fa``, ``labelling``."""
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
            if self._bank is None:
                raise ValueError("ucmkd-plus labels by a bank of teacher features: call receive_bank first")
            log_p = log_probabilities(student.head(unlabelled))
            parts["labelling"] = labelling_transport(
                step, scaled_gradient(unlabelled, self.move_weight), log_p, self._bank, self.labelling
            )
            loss = loss + self.unlabelled_weight * ramped(step.progress, self.ramp) * parts["labelling"]
        return {"loss": loss, **parts}
