"""Where a second thread pays: the same iterations on one thread and on two.

`kElementsPerTask` in csrc/sinkhorn/entry.cpp is half of the smallest size whose ratio passes 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .bandwidth import MANY, cost, iterations
from .harness import Row, compare


def on_threads(count: int, call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The call with that many threads of torch's."""

    def run(c: Tensor) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return call(c)
        finally:
            torch.set_num_threads(before)

    return run


def rows(quick: bool) -> Iterator[Row]:
    """A row a size."""
    for n in (64, 96, 128, 160, 192, 256, 512)[:: 3 if quick else 1]:
        table = {f"{k} threads": on_threads(k, iterations(MANY)) for k in (2, 1)}
        timings = compare(
            table,
            partial(cost, n),
            lambda ours, theirs: float((ours - theirs).abs() / theirs),
            dict.fromkeys(table, 1e-5),
            rounds=9,
        )
        yield Row({"N": n, "M": n, "elements": n * n}, timings)
