"""What methods share that compare samples by index: example sizes, maps of one size, teacher logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import Batch
from ..models.maps import encode_with_maps
from ..models.precision import inputs_for
from ..training.metrics import evaluating
from .base import FrozenTeacher


def own_adam(module: nn.Module) -> torch.optim.Adam:
    """The published code's optimiser of ReviewKD's and NORM's modules."""
    return torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=1e-4)


def example_feature(model: Any, x: Tensor) -> Tensor:
    """Features (n, D) of some samples, in eval mode and without a graph: for their width."""
    with evaluating(model):
        feature: Tensor = model.encode(inputs_for(model, x))
        return feature


def example_maps(model: Any, x: Tensor, role: str) -> list[Tensor]:
    """Feature maps (n, C, ...) of some samples, in eval mode and without a graph: for their sizes."""
    with evaluating(model):
        return encode_with_maps(model, inputs_for(model, x), role)[1]


def same_samples(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Raise ValueError unless student and teacher bring equally many samples."""
    if len(ours) != len(theirs):
        raise ValueError(
            f"{name} compares samples by index: expected {len(ours)} of the teacher's, as many as the "
            f"student's, got {len(theirs)}"
        )


def teacher_logits_like(name: str, logits: Tensor, teacher: FrozenTeacher, batch: Batch) -> Tensor:
    """The teacher's logits (n, K) on its own samples; ValueError unless of the shape of the student's."""
    with torch.no_grad():
        teacher_logits: Tensor = teacher.head(teacher.features(batch))
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"{name} compares logits by index: expected the teacher's of shape {tuple(logits.shape)} "
            f"like the student's, got {tuple(teacher_logits.shape)}"
        )
    return teacher_logits


def as_image(maps: Tensor) -> Tensor:
    """Maps (n, C, L) as (n, C, L, 1); more position axes than two are flattened."""
    return maps if maps.dim() == 4 else maps.flatten(2).unsqueeze(-1)


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (n, C, H, W) at another size, bilinearly."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
