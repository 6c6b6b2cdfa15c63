"""Where a second thread pays: the same iterations on one thread and on two.

`kElementsPerTask` in csrc/sinkhorn/tasks.h is half of the smallest kept plan whose ratio passes 1: two multiply-adds
an element, the cheapest sweep. A sweep that makes its cost (panels, D = 64) has more to do for each: it pays there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops.sinkhorn import sinkhorn_loss
from .bandwidth import MANY, cost, iterations
from .harness import Row, compare

_PANEL_ITERATIONS = 10


def on_threads(count: int, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The call with that many threads of torch's."""

    def run(*inputs: Tensor) -> Tensor:
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


def panels(x: Tensor, y: Tensor) -> Tensor:
    """A loss whose cost is made in every sweep."""
    loss: Any = sinkhorn_loss(x, y, max_iter=_PANEL_ITERATIONS, memory_budget=4 * len(x) * len(y))
    return loss


def rows(quick: bool) -> Iterator[Row]:
    """A row a size, of sweeps over a kept plan, then of sweeps that make the cost."""
    kinds: list[tuple[str, Any, Any]] = [
        ("kept plan", cost, iterations(MANY)),
        ("panels", features, panels),
    ]
    for name, inputs, call in kinds:
        for n in (64, 96, 128, 160, 192, 256, 512)[:: 3 if quick else 1]:
            table = {f"{k} threads": on_threads(k, call) for k in (2, 1)}
            timings = compare(
                table,
                partial(inputs, n),
                lambda ours, theirs: float((ours - theirs).abs() / theirs),
                dict.fromkeys(table, 1e-5),
                rounds=9,
            )
            yield Row({"sweep": name, "N": n, "M": n, "elements": n * n}, timings)
