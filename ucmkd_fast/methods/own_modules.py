"""What methods with modules of their own share: sizes seen on an example, and how they are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..metrics import evaluating
from ..models.maps import encode_with_maps


def own_adam(module: nn.Module) -> torch.optim.Adam:
    """The published code's optimiser of ReviewKD's and NORM's modules."""
    return torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=1e-4)


def example_feature(model: Any, x: Tensor) -> Tensor:
    """Features (n, D) of some samples, in eval mode and without a graph: for their width."""
    with evaluating(model):
        return model.encode(x)


def example_maps(model: Any, x: Tensor, role: str) -> list[Tensor]:
    """Feature maps (n, C, ...) of some samples, in eval mode and without a graph: for their sizes."""
    with evaluating(model):
        return encode_with_maps(model, x, role)[1]


def same_samples(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Raise ValueError unless student and teacher bring equally many samples."""
    if len(ours) != len(theirs):
        raise ValueError(
            f"{name} compares samples by index: expected {len(ours)} of the teacher's, as many as the "
            f"student's, got {len(theirs)}"
        )
