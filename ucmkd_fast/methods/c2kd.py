"""C2KD: teacher and student learn together, through proxies, where they rank the classes alike (CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import Batch
from ..models.maps import encode_with_maps
from ..models.precision import inputs_for
from ..ops.checks import count_at_least_one, positive_number
from ..training.metrics import evaluating
from .base import FrozenTeacher, LossMethod, Step, TrainedTeacher, register
from .by_index import example_maps, same_samples
from .checks import fraction, rank_correlation
from .divergence import class_mask, kl

_LOWEST_LR, _POWER = 1e-4, 0.9


@register
class C2KD(LossMethod):
    """CE of both models + four KL between each model and its proxy + two between the proxies.

    "C2KD: Bridging the Modality Gap for Cross-Modal Knowledge Distillation" (Huo, Xu, Guo, Wang,
    Guo; CVPR 2024): a proxy head on each model's last map talks to its own model in both directions
    (bidirectional distillation) and to the other proxy on the non-target classes, only for samples
    where Kendall's tau of the proxies' logits exceeds ``threshold`` (on-the-fly selection). Followed
    as the published code of the cross-modal paper has it: "non-target" sets the label's logit to 0
    in the softmax, the mean is over all samples, and after every step the learning rate becomes
    1e-4 + (poly_lr - 1e-4) (1 - epoch / poly_epochs)^0.9, so that only the run's first step has the
    configured one. The teacher learns as well: it must be trainable, in train mode, and give its
    samples, not cached features; teacher and proxies are stepped by SGD with momentum 0.9 at the
    student's learning rate. Sample i of the teacher must at least be of the class of sample i of
    the student.

    Args:
        threshold: least Kendall tau of a sample that is used, in [-1, 1], exclusive.
        poly_lr: learning rate at which the decay starts, > 0.
        poly_epochs: epochs after which it has reached 1e-4, >= 1.
        label_smoothing: of both cross-entropies, in [0, 1].
    """

    name = "c2kd"
    published_name = "c2kd"
    trains_teacher = True
    required_draw = ("class-matched", "paired")

    def __init__(
        self,
        *,
        threshold: float = 0.0,
        poly_lr: float = 1e-2,
        poly_epochs: int = 100,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.threshold = rank_correlation("threshold", threshold)
        self.poly_lr = positive_number("poly_lr", poly_lr)
        self.poly_epochs = count_at_least_one("poly_epochs", poly_epochs)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def setup(
        self, student: nn.Module, teacher: FrozenTeacher | TrainedTeacher | None, example: Batch
    ) -> None:
        """Make the proxies, and the optimiser that steps them and the teacher."""
        if not isinstance(teacher, TrainedTeacher):
            raise ValueError(
                f"c2kd trains the teacher: expected a TrainedTeacher, got {type(teacher).__name__}"
            )
        if example.teacher_x is None:
            raise ValueError("c2kd trains the teacher: expected its samples, got cached features")
        ours = example_maps(student, example.x, "the student")[-1]
        theirs = example_maps(teacher.model, example.teacher_x, "the teacher")[-1].to(teacher.dtype)
        classes = _classes(student, example.x)
        self.student_proxy = _proxy(ours.shape[1], classes).to(ours)
        self.teacher_proxy = _proxy(theirs.shape[1], classes).to(theirs)
        trained = [p for p in teacher.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD([*trained, *self.parameters()], lr=self.poly_lr, momentum=0.9)

    def own_optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimiser of the teacher and both proxies."""
        return (self._optimizer,)

    def learning_rate(self, scheduled: float, epoch: int, step: int) -> float:
        """The polynomial decay; what was set after the step before."""
        if epoch == step == 0:
            return scheduled
        done = epoch if step else epoch - 1
        left: float = max(0.0, 1 - done / self.poly_epochs) ** _POWER
        return _LOWEST_LR + (self.poly_lr - _LOWEST_LR) * left

    def backward(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """As `LossMethod.backward`, with the teacher's and the proxies' learning rate set."""
        if step.learning_rate is None:
            raise ValueError(
                "c2kd steps the teacher at the student's learning rate: Step.learning_rate is None"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = step.learning_rate
        return super().backward(step, batch)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce`` and ``ce_teacher``, each model's share, mean ``kendall_tau`` and ``selected`` share."""
        teacher = step.trained_teacher
        feature, maps = encode_with_maps(step.student, batch.x, "the student")
        teacher_feature, teacher_maps = teacher.features_and_maps(batch)
        same_samples("c2kd", feature, teacher_feature)
        s, t = step.student.head(feature), teacher.head(teacher_feature)
        proxy_s = self.student_proxy(maps[-1].flatten(2).mean(2))
        proxy_t = self.teacher_proxy(teacher_maps[-1].flatten(2).mean(2))

        tau = kendall_tau(proxy_s.detach(), proxy_t.detach())
        chosen = (tau > self.threshold).to(s.dtype)
        ce = F.cross_entropy(s, batch.y, label_smoothing=self.label_smoothing)
        ce_teacher = F.cross_entropy(t, batch.y, label_smoothing=self.label_smoothing)
        label = class_mask(batch.y, s.shape[1])
        student = (
            ce + (kl(s, proxy_s) + kl(proxy_s, s)).mean() + _non_target_kl(proxy_s, proxy_t, label, chosen)
        )
        other = ce_teacher + (kl(t, proxy_t) + kl(proxy_t, t)).mean()
        other = other + _non_target_kl(proxy_t, proxy_s, label, chosen)
        return {
            "loss": student + other,
            "ce": ce,
            "ce_teacher": ce_teacher,
            "loss_student": student,
            "loss_teacher": other,
            "kendall_tau": tau.mean(),
            "selected": chosen.mean(),
        }


def kendall_tau(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's rank correlation (tau-a) of the rows of a and b (n, K): (n,), in [-1, 1].

    The mean over all pairs of columns i < j of sign(a_i - a_j) sign(b_i - b_j); a tie counts 0.
    """
    i, j = torch.triu_indices(a.shape[1], a.shape[1], 1, device=a.device)
    return ((a[:, i] - a[:, j]).sign() * (b[:, i] - b[:, j]).sign()).mean(1)


def _non_target_kl(logits: Tensor, target: Tensor, label: Tensor, chosen: Tensor) -> Tensor:
    """KL with the label's logit at 0 on both sides, for the chosen samples; the mean over all."""
    return (kl(logits.masked_fill(label, 0.0), target.masked_fill(label, 0.0)) * chosen).mean()


def _proxy(channels: int, classes: int) -> nn.Sequential:
    """Pooled maps (n, C) -> logits (n, K)."""
    return nn.Sequential(
        nn.Linear(channels, channels, bias=False),
        nn.BatchNorm1d(channels),
        nn.LeakyReLU(0.1),
        nn.Linear(channels, classes),
    )


def _classes(student: Any, x: Tensor) -> int:
    with evaluating(student):
        logits: Tensor = student.head(student.encode(inputs_for(student, x)))
        return logits.shape[1]
