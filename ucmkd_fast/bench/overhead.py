"""What surrounds the kernels in one small call: a problem of one pair against a function that does nothing.

``null`` is an autograd.Function that allocates the loss and the gradient and computes neither: torch's own share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..ops.sinkhorn import sinkhorn_loss
from . import peers
from .harness import Row, compare


class Null(torch.autograd.Function):
    """Saves, allocates, computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x, y)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:  # noqa: D102
        return torch.zeros_like(ctx.saved_tensors[0]), None


def rows(quick: bool) -> Iterator[Row]:
    """One row."""
    table: dict[str, Any] = {
        "null": peers.with_gradient(Null.apply),
        "ucmkd_fast": peers.with_gradient(lambda x, y: sinkhorn_loss(x, y, max_iter=1)),
    }
    timings = compare(
        table,
        lambda seed: (torch.full((1, 1), 1.0 + seed), torch.ones(1, 1)),
        lambda ours, theirs: float((ours[0] - theirs[0]).abs() + (ours[1] - theirs[1]).abs().max()),
        dict.fromkeys(table, 1e-6),
        rounds=7 if quick else 41,
    )
    beyond = (timings[1].low_ms - timings[0].low_ms) * 1e3  # the lowest: anything else is other work
    yield Row(
        {"N": 1, "M": 1, "D": 1, "max_iter": 1},
        timings,
        {"microseconds beyond torch's own": round(beyond, 1)},
    )
