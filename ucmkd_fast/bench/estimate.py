"""What `cost_model` expects against what a loss and its gradient of x take, on ceilings measured in the same run.

Clustered features and a small reg: every iteration runs. More than twice off, either way, is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops.sinkhorn import sinkhorn_loss
from . import cost_model, peers
from .ceilings import ceilings
from .harness import Disagreement, Row, compare
from .sinkhorn import clustered

LIMIT, REG = 2.0, 0.02
# (N, D, iterations, whether the cost may be kept).
CASES = [(64, 512, 100, True), (256, 512, 100, True), (1024, 512, 100, True), (1024, 64, 100, True),
         (2048, 512, 50, True), (4000, 64, 20, True), (4000, 512, 20, True), (1024, 64, 20, False),
         (2048, 512, 10, False), (4000, 64, 10, False)]  # fmt: skip


def features(n: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clusters, (n, width) twice."""
    x, y = clustered(n, seed)
    return x[:, :width].contiguous(), y[:, :width].contiguous()


def rows(quick: bool) -> Iterator[Row]:
    """A row a case."""
    measured_now = ceilings(torch.float32, recalibrate=True)
    if not measured_now.alone:
        raise ValueError(
            f"estimate is measured on an idle machine: other work left {measured_now.share:.0%} of the processors"
        )
    for n, width, iterations, kept in CASES[:2] if quick else CASES:
        budget = (12 if kept else 4) * n * n
        size = cost_model.Size(n, n, width, iterations, memory_budget=budget)
        expected = cost_model.estimate(size, measured_now)

        def loss(x, y, iterations=iterations, budget=budget):
            return sinkhorn_loss(x, y, reg=REG, max_iter=iterations, memory_budget=budget)

        result: Any = sinkhorn_loss(*features(n, width, 0), reg=REG, max_iter=iterations, return_result=True)
        if (ran := int(result.n_iter)) != iterations:
            raise Disagreement(f"{ran} of {iterations} iterations change anything at N = {n}")
        timings = compare(
            {"ucmkd_fast": peers.with_gradient(loss)}, partial(features, n, width), lambda *_: 0.0, {}, 5, 3
        )
        ratio = expected.seconds * 1e3 / timings[0].median_ms
        if not 1 / LIMIT <= ratio <= LIMIT:
            raise Disagreement(
                f"{expected.seconds * 1e3:.3g} ms expected of N = {n}, {expected.regime}, "
                f"{timings[0].median_ms:.3g} ms measured"
            )
        yield Row(
            {"N": n, "M": n, "D": width, "max_iter": iterations, "regime": expected.regime},
            timings,
            {
                "expected, ms": round(expected.seconds * 1e3, 3),
                "expected / measured": round(ratio, 2),
                **{f"of which {k}, ms": round(v * 1e3, 3) for k, v in expected.parts.items()},
            },
        )
