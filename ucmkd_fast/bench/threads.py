"""Where a second thread pays: the same loss on one thread and on two.

`kElementsPerTask` in csrc/sinkhorn/tasks.h is half of the smallest size from which a loss with its gradient passes 1
(100 iterations over a kept plan, the cheapest sweep there is). A sweep that makes its cost (panels) has more to do for
an element: it pays there too. A short call stays in one thread anyway (`kLeastWork` in csrc/core/parallel.h): both
columns are the same there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops.sinkhorn import sinkhorn_loss
from . import peers
from .harness import Row, compare

_PANEL_ITERATIONS = 10


def on_threads(count: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call with that many threads of torch's."""

    def run(*inputs: Tensor) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return call(*inputs)
        finally:
            torch.set_num_threads(before)

    return run


def features(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Both sets, (n, 64)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 64, generator=generator), torch.randn(n, 64, generator=generator)


def kept_plan(x: Tensor, y: Tensor) -> Tensor:
    """A loss and its gradient; returns the loss."""
    return peers.with_gradient(lambda x, y: sinkhorn_loss(x, y, max_iter=100))(x, y)[0]


def panels(x: Tensor, y: Tensor) -> Tensor:
    """A loss whose cost is made in every sweep."""
    loss: Any = sinkhorn_loss(x, y, max_iter=_PANEL_ITERATIONS, memory_budget=4 * len(x) * len(y))
    return loss


def rows(quick: bool) -> Iterator[Row]:
    """A row a size, of sweeps over a kept plan, then of sweeps that make the cost."""
    kinds: list[tuple[str, Any]] = [
        ("kept plan, with gradient", kept_plan),
        ("panels", panels),
    ]
    for name, call in kinds:
        for n in (64, 96, 128, 160, 192, 256, 512)[:: 3 if quick else 1]:
            table = {f"{k} threads": on_threads(k, call) for k in (2, 1)}
            timings = compare(
                table,
                partial(features, n),
                lambda ours, theirs: float((ours - theirs).abs() / theirs),
                dict.fromkeys(table, 1e-5),
                rounds=9,
            )
            yield Row({"sweep": name, "N": n, "M": n, "elements": n * n}, timings)
