"""What methods share that learn from unlabelled samples of the student's modality."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.batch import Batch


def encode_both(student: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Features of the labelled samples (n, D) and of the unlabelled ones (u, D), in one pass.

    Raises:
        ValueError: the batch has no unlabelled samples.
    """
    if batch.unlabelled_x is None:
        raise ValueError("this method learns from unlabelled samples: the batch must have unlabelled_x")
    both = student.encode(torch.cat([batch.x, batch.unlabelled_x]))
    labelled, unlabelled = both.split([len(batch.x), len(batch.unlabelled_x)])
    return labelled, unlabelled


def log_probabilities(logits: Tensor) -> Tensor:
    """Log softmax (u, K) in float32 at least: what transport computes in."""
    return F.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def ramped(progress: float, ramp: float) -> float:
    """Rises from 0 to 1 over the first ``ramp`` of the training."""
    return 1.0 if progress >= ramp else progress / ramp


def scaled_gradient(z: Tensor, scale: float) -> Tensor:
    """The same values; backwards, the gradient times ``scale``."""
    if scale == 1:
        return z
    return z.detach() if scale == 0 else scale * z + (1 - scale) * z.detach()
