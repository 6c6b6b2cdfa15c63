"""The warning that an implicit gradient did not converge, on a GPU as soon as that is known without waiting."""

from __future__ import annotations

import os
import warnings
from collections import deque

import torch
from torch import Tensor

_TEXT = (
    "the implicit gradient of sinkhorn did not reach its tolerance: the iterations converge too slowly at this reg; "
    "raise reg, or use grad='unrolled', which is exact for the iterations that ran"
)
_on_their_way: deque[tuple[torch.cuda.Event, Tensor]] = deque()


def warn() -> None:
    """Warn now."""
    warnings.warn(_TEXT, stacklevel=4)


def report(flag: Tensor) -> None:
    """Warn where ``flag`` (1,) is not 0: at once on the CPU and under UCMKD_CHECK=1, else in a later call of an op."""
    if not flag.is_cuda or os.environ.get("UCMKD_CHECK") == "1":
        if bool(flag):
            warn()
        return
    if torch.cuda.is_current_stream_capturing():  # a graph has no one to tell
        return
    copy = torch.zeros(1, dtype=flag.dtype, pin_memory=True)
    copy.copy_(flag, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(flag.device))
    _on_their_way.append((event, copy))


def tell() -> None:
    """Warn of what has arrived since; called by the ops on a GPU, and costs nothing where nothing was reported."""
    while _on_their_way and not torch.cuda.is_current_stream_capturing() and _on_their_way[0][0].query():
        if bool(_on_their_way.popleft()[1]):
            warn()
