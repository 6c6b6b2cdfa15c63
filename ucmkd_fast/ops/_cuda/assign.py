"""Balanced assignments on a GPU: torch's own operations, on its current stream; nothing waits for the device.

Input that the CPU refuses gives NaN, and is refused under UCMKD_CHECK=1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._assign import Assignment, by_torch
from . import _device as device


def assignments(p: Assignment) -> Tensor:
    """Of `Assignment`, into ``p.out``."""
    by_torch(p, torch.float64)
    if device.checked() and bool(p.out.isnan().any()):
        raise ValueError(
            "scores must be finite or -inf (a forbidden pair), with a pair that is allowed in every row, and a and b "
            "finite and >= 0, not all 0: the assignments are NaN"
        )
    return p.out
