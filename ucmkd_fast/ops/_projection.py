"""What `doubly_stochastic` hands to the doors of devices, and what is told of bad logits."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from .refusals import first_bad


class ProjectionOptions(NamedTuple):
    """What a call runs with, once checked; named as the public function names it."""

    n_iter: int
    eps: float
    start: str
    order: str


def refuse(logits: Tensor) -> NoReturn:
    """Raise ValueError for logits (..., n, m) that hold NaN or +inf, or a row or column of -inf: what, and where."""
    logits = logits.detach()
    if here := first_bad("logits", logits, logits.isnan() | (logits == torch.inf)):
        raise ValueError(f"logits must be numbers, or -inf for a forbidden entry, got {here}")
    for what, axis in (("row", -1), ("column", -2)):
        places = (logits == -torch.inf).all(axis).nonzero()
        if len(places):
            *problem, place = places[0].tolist()
            where = f" of logits{problem}" if problem else " of logits"
            raise ValueError(
                f"logits must have an entry above -inf in every row and column, {what} {place}{where} has none"
            )
    raise ValueError("logits must stay in range, got a result that is NaN")
