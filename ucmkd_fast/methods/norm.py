"""NORM: several views of the student's feature, each near the teacher's (arXiv 2305.13803)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import Batch
from ..ops.checks import count_at_least_one, number_at_least_zero
from .base import FrozenTeacher, LossMethod, Step, TrainedTeacher, register
from .by_index import example_feature, own_adam, same_samples
from .checks import fraction


@register
class NORM(LossMethod):
    """CE(s, y) + weight N MSE(E z, [z_T ... z_T]), E a linear layer from D to N D_T.

    "NORM: Knowledge Distillation via N-to-One Representation Matching" (Liu, Li, Yao;
    ICLR 2023): the student's representation is expanded and each of its N parts is matched
    to the teacher's. Followed as the published code of the cross-modal paper has
    it: on pooled features, E trained by an Adam of its own, and dropped after training; the
    layer that contracts the expanded feature again is not used. Sample i of the teacher must
    at least be of the class of sample i of the student.

    Args:
        copies: N >= 1.
        weight: of the distance, >= 0.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "norm"
    published_name = "norm"
    required_draw = ("class-matched", "paired")

    def __init__(self, *, copies: int = 4, weight: float = 1.0, label_smoothing: float = 0.0):
        super().__init__()
        self.copies = count_at_least_one("copies", copies)
        self.weight = number_at_least_zero("weight", weight)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def setup(
        self, student: nn.Module, teacher: FrozenTeacher | TrainedTeacher | None, example: Batch
    ) -> None:
        """Make the expanding layer."""
        assert isinstance(teacher, FrozenTeacher)
        z, target = example_feature(student, example.x), teacher.features(example)
        self.expand = nn.Linear(z.shape[1], self.copies * target.shape[1], bias=False).to(z)
        nn.init.kaiming_normal_(self.expand.weight)
        self._optimizer = own_adam(self.expand)

    def own_optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The expanding layer's Adam."""
        return (self._optimizer,)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce`` and ``norm`` (N times the mean squared difference)."""
        target = step.required_teacher.features(batch)
        feature = step.student.encode(batch.x)
        same_samples("norm", feature, target)
        ce = F.cross_entropy(step.student.head(feature), batch.y, label_smoothing=self.label_smoothing)
        expanded = self.expand(feature)
        distance = self.copies * F.mse_loss(expanded, target.to(expanded.dtype).repeat(1, self.copies))
        return {"loss": ce + self.weight * distance, "ce": ce, "norm": distance}
