"""FitNets: the student's layer predicts the teacher's (arXiv 1412.6550)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import Batch
from ..models.maps import encode_with_maps
from ..ops.checks import number_at_least_zero
from .base import FrozenTeacher, LossMethod, Step, TrainedTeacher, register
from .by_index import as_image, example_feature, example_maps, own_adam, resized, same_samples
from .checks import count_at_least_zero, fraction


@register
class FitNet(LossMethod):
    """CE(s, y) + weight MSE(r(student's layer), teacher's layer), r a linear regressor.

    "FitNets: Hints for Thin Deep Nets" (Romero et al.; ICLR 2015), Eq. 3, with the mean in place of half
    the sum, and in one stage together with cross-entropy, as it is compared today; the paper trains up
    to the guided layer on the hint first. ``layer=None`` matches the features, of any two widths, and
    cached features serve. The paper's hint is a map in the middle: ``layer`` is its index in what
    ``encode_with_maps`` gives; the student's map goes through a 1 x 1 convolution and is resized to the
    teacher's. The regressor has an Adam of its own and is dropped after training. Sample i of the
    teacher must at least be of the class of sample i of the student.

    Args:
        weight: of the hint, >= 0.
        layer: index of a feature map, >= 0; None: the features.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "fitnet"
    required_draw = ("class-matched", "paired")

    def __init__(self, *, weight: float = 1.0, layer: int | None = None, label_smoothing: float = 0.0):
        super().__init__()
        self.weight = number_at_least_zero("weight", weight)
        self.layer = None if layer is None else count_at_least_zero("layer", layer)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def setup(
        self, student: nn.Module, teacher: FrozenTeacher | TrainedTeacher | None, example: Batch
    ) -> None:
        """Make the regressor."""
        assert isinstance(teacher, FrozenTeacher)
        if self.layer is None:
            ours, theirs = example_feature(student, example.x), teacher.features(example)
            regressor: nn.Module = nn.Linear(ours.shape[1], theirs.shape[1])
        else:
            ours = self._pick(example_maps(student, example.x, "the student"), "the student")
            theirs = self._pick(teacher.maps(example), "the teacher")
            regressor = nn.Conv2d(ours.shape[1], theirs.shape[1], 1)
        self.regressor = regressor.to(ours)
        self._optimizer = own_adam(self.regressor)

    def own_optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The regressor's Adam."""
        return (self._optimizer,)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce`` and ``hint``."""
        teacher = step.required_teacher
        if self.layer is None:
            target = teacher.features(batch)
            feature = step.student.encode(batch.x)
            same_samples("fitnet", feature, target)
            guided = self.regressor(feature)
        else:
            target = self._pick(teacher.maps(batch), "the teacher")
            feature, maps = encode_with_maps(step.student, batch.x, "the student")
            same_samples("fitnet", feature, target)
            guided = resized(self.regressor(self._pick(maps, "the student")), tuple(target.shape[2:]))
        ce = F.cross_entropy(step.student.head(feature), batch.y, label_smoothing=self.label_smoothing)
        hint = F.mse_loss(guided, target.to(guided.dtype))
        return {"loss": ce + self.weight * hint, "ce": ce, "hint": hint}

    def _pick(self, maps: list[Tensor], role: str) -> Tensor:
        assert self.layer is not None
        if self.layer >= len(maps):
            raise ValueError(
                f"layer must be below {len(maps)}, the number of {role}'s maps, got {self.layer}"
            )
        return as_image(maps[self.layer])
