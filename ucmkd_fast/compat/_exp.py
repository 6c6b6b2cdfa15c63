"""exp that keeps its speed: torch's is over ten times slower where the result underflows."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lowest(dtype: torch.dtype) -> float:
    """The least argument whose exp is an ordinary number of this dtype, and a little more."""
    return math.log(torch.finfo(dtype).tiny) + 1


def exp_or_zero_(z: Tensor) -> Tensor:
    """In place: exp(z), 0 where that would underflow."""
    least = lowest(z.dtype)
    return torch.threshold_(z.clamp_min_(least).exp_(), 2 * math.exp(least), 0)
