"""One iteration, which reads the matrix once, against torch.sum over the same matrix on the same threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops.sinkhorn import sinkhorn
from .harness import Row, compare

SIZES = (256, 512, 1024, 2048, 4096)
FEW, MANY = 5, 25


def cost(n: int, seed: int) -> tuple[Tensor]:
    """(n, n), spread so that every iteration still moves."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(n, 1, generator=generator), torch.rand(n, 1, generator=generator) ** 2
    return ((x - y.T).abs(),)


def iterations(count: int) -> Callable[[Tensor], Tensor]:
    """That many iterations, without a gradient."""
    return lambda c: sinkhorn(c, reg=0.1, max_iter=count).value


def rows(quick: bool) -> Iterator[Row]:
    """Every size; the time of a sweep is a difference, so that building the matrix is not in it."""
    for n in SIZES[:3] if quick else SIZES:
        table: dict[str, Any] = {
            "plain sum": torch.sum,
            f"{FEW} iterations": iterations(FEW),
            f"{MANY} iterations": iterations(MANY),
        }
        timings = compare(
            table,
            partial(cost, n),
            lambda *_: 0.0,
            dict.fromkeys(table, 0.0),
            rounds=9,
            seconds=30,
        )
        plain = timings[0].median_ms
        sweep = (timings[2].median_ms - timings[1].median_ms) / (MANY - FEW)
        gigabytes = n * n * 4 / 1e6
        yield Row(
            {"N": n, "M": n},
            timings,
            {
                "sweep, microseconds": round(sweep * 1e3, 1),
                "sweep, GB/s": round(gigabytes / sweep, 1),
                "plain sum, GB/s": round(gigabytes / plain, 1),
                "share of the plain sum's bandwidth": round(plain / sweep, 2),
            },
        )
