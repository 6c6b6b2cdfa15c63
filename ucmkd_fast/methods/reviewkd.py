"""ReviewKD: the student's deep layers are reviewed by its shallow ones (arXiv 2104.09044)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import Batch
from ..models.maps import encode_with_maps
from ..ops.checks import number_at_least_zero
from .base import FrozenTeacher, LossMethod, Step, TrainedTeacher, register
from .by_index import as_image, example_maps, own_adam, resized, same_samples
from .checks import fraction

_LEVELS = (4, 2, 1)  # of the pyramid below the full size


@register
class ReviewKD(LossMethod):
    """CE(s, y) + weight times the mean over layers of a context loss between fused and teacher maps.

    "Distilling Knowledge via Knowledge Review" (Chen, Liu, Zhao, Jia; CVPR 2021): attention-based
    fusion from the deepest map upwards, then a hierarchical context loss a map. Followed
    as the published code of the cross-modal paper has it: kernels of 1 x 1 in the fusion, all maps
    compared at the size of the teacher's deepest. Student and teacher give equally many maps, each
    by ``encode_with_maps``; the fusion's modules have an Adam of their own and are dropped after
    training. Sample i of the teacher must at least be of the class of sample i of the student.

    Args:
        weight: of the context loss, >= 0.
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    name = "reviewkd"
    published_name = "reviewkd"
    required_draw = ("class-matched", "paired")

    def __init__(self, *, weight: float = 1.0, label_smoothing: float = 0.0):
        super().__init__()
        self.weight = number_at_least_zero("weight", weight)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)

    def setup(
        self, student: nn.Module, teacher: FrozenTeacher | TrainedTeacher | None, example: Batch
    ) -> None:
        """Make the fusion modules, one a map."""
        assert isinstance(teacher, FrozenTeacher)
        ours, theirs = example_maps(student, example.x, "the student"), teacher.maps(example)
        if len(ours) != len(theirs):
            raise ValueError(
                f"reviewkd pairs maps by depth: expected {len(theirs)} maps of the student, as many as the "
                f"teacher's, got {len(ours)}"
            )
        channels = [(x.shape[1], t.shape[1]) for x, t in zip(ours, theirs, strict=True)]
        inner = min(256, *(c for pair in channels for c in pair))
        deepest = len(channels) - 1
        self.fusions = nn.ModuleList(
            _Fusion(c, inner, c_t, attends=i < deepest).to(ours[0]) for i, (c, c_t) in enumerate(channels)
        )
        self._optimizer = own_adam(self.fusions)

    def own_optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The fusion modules' Adam."""
        return (self._optimizer,)

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``ce`` and ``review`` (the context loss, the mean over layers)."""
        targets = [as_image(m) for m in step.required_teacher.maps(batch)]
        feature, maps = encode_with_maps(step.student, batch.x, "the student")
        same_samples("reviewkd", feature, targets[0])
        ce = F.cross_entropy(step.student.head(feature), batch.y, label_smoothing=self.label_smoothing)
        size = tuple(targets[-1].shape[2:])
        review = torch.zeros_like(ce)
        deeper: Tensor | None = None
        for i in reversed(range(len(maps))):
            fused, deeper = self.fusions[i](as_image(maps[i]), deeper)
            deeper = resized(deeper, size)
            review = review + _context_loss(resized(fused, size), resized(targets[i], size))
        review = review / len(maps)
        return {"loss": ce + self.weight * review, "ce": ce, "review": review}


class _Fusion(nn.Module):
    """A student's map (n, C, H, W) and the deeper residual (n, inner, h, w) -> a map of the teacher's channels."""

    def __init__(self, channels: int, inner: int, teacher_channels: int, *, attends: bool):
        super().__init__()
        self.reduce = _conv_norm(channels, inner)
        self.expand = _conv_norm(inner, teacher_channels)
        self.attend = nn.Conv2d(2 * inner, 2, 1) if attends else None  # the deepest has nothing below it

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The fused map (n, C_T, H, W), and the residual (n, inner, H, W) for the next shallower layer."""
        x = self.reduce(x)
        if self.attend is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            gates = self.attend(torch.cat([x, deeper], 1)).sigmoid()  # (n, 2, H, W)
            x = x * gates[:, :1] + deeper * gates[:, 1:]
        return self.expand(x), x


def _conv_norm(channels: int, out: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, 1, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))


def _context_loss(x: Tensor, target: Tensor) -> Tensor:
    """Mean squared differences at full size and pooled to each coarser level, with halving weights."""
    loss, weight, weights = F.mse_loss(x, target), 1.0, 1.0
    for level in _LEVELS:
        if level >= target.shape[2]:
            continue
        weight /= 2
        pooled = F.mse_loss(F.adaptive_avg_pool2d(x, level), F.adaptive_avg_pool2d(target, level))
        loss, weights = loss + weight * pooled, weights + weight
    return loss / weights
