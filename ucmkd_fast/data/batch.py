"""One training batch: a student's samples and a teacher's, drawn apart."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Batch:
    """What a step gets. n student samples, m teacher samples; no pairing is implied."""

    x: Tensor  # (n, ...) student inputs
    y: Tensor  # (n,) their labels
    teacher_x: Tensor | None = None  # (m, ...) teacher inputs; None when features are cached
    teacher_feature: Tensor | None = None  # (m, D) cached teacher features
    teacher_y: Tensor | None = None  # (m,) labels of the teacher's samples
    unlabelled_x: Tensor | None = None  # (u, ...) student inputs without labels
    rows: Tensor | None = None  # (n,) int64, which samples of the student's data these are
    teacher_rows: Tensor | None = None  # (m,) of the teacher's

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device, as constants: a graph that samples still carry is left behind."""

        def moved(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.detach().to(device, non_blocking=True)

        return Batch(**{f.name: moved(getattr(self, f.name)) for f in fields(self)})


def row_batches(samples: int, size: int) -> list[Tensor]:
    """Indices 0 to ``samples`` - 1 in order, ``size`` at a time.

    A single sample that would be left over goes with the batch before it: layers that normalise by the batch's own
    statistics refuse a batch of one.
    """
    parts = list(torch.arange(samples).split(size))
    if len(parts) > 1 and len(parts[-1]) == 1 < size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
