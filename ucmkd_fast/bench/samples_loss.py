"""`compat.geomloss.SamplesLoss` and its gradient to x, with GeomLoss's default settings, against GeomLoss itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..compat.geomloss import SamplesLoss
from . import peers
from .harness import Row, compare
from .sinkhorn import error

SIZES, WIDTHS, REACHES = (64, 256, 1024), (3, 64), (None, 0.5)
LIMIT = 1e-3  # GeomLoss in float32


def cubes(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Fresh points (n, d) in the unit cube, twice."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, d, generator=generator), torch.rand(n, d, generator=generator)


def rows(quick: bool) -> Iterator[Row]:
    """Every size and width; quick: the two smaller sizes in three dimensions."""
    for d in WIDTHS[:1] if quick else WIDTHS:
        for n in SIZES[:2] if quick else SIZES:
            for reach in REACHES[:1] if quick else REACHES:
                table: dict[str, Any] = {
                    "ucmkd_fast": peers.with_gradient(SamplesLoss("sinkhorn", reach=reach)),
                    "GeomLoss SamplesLoss": peers.with_gradient(peers.samples_loss(reach)),
                }
                limits = dict.fromkeys(table, LIMIT)
                timings = compare(table, partial(cubes, n, d), error, limits, rounds=7, seconds=30)
                yield Row({"N": n, "M": n, "D": d, "reach": reach}, timings)
