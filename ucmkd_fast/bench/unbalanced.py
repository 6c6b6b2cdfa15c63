"""The unbalanced loss and its exact gradient, against POT and the balanced call.

float32, D = 512, cosine cost, reg 0.1, rho 0.5, 100 plain iterations, masses of sums 1 and 1.7, gradient of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..ops.sinkhorn import sinkhorn_loss
from . import peers
from .harness import Row, compare
from .sinkhorn import LIMIT, error, gaussian

REG, RHO, MAX_ITER = 0.1, 0.5, 100
SIZES = {64: 15, 256: 11, 1024: 5, 2048: 3}  # N: rounds
BALANCED = "ucmkd_fast, balanced (another value)"


def masses(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of sums 1 and 1.7."""
    return peers.uniform(len(x), x), 1.7 * peers.uniform(len(y), y)


def ours(x: Tensor, y: Tensor) -> Tensor:
    """The op under test."""
    return sinkhorn_loss(x, y, *masses(x, y), reg=REG, max_iter=MAX_ITER, unbalanced=RHO)  # type: ignore[return-value]


def balanced(x: Tensor, y: Tensor) -> Tensor:
    """What the same call takes where marginals are exact."""
    a, b = masses(x, y)
    return sinkhorn_loss(x, y, a, b / 1.7, reg=REG, max_iter=MAX_ITER)  # type: ignore[return-value]


def pot(x: Tensor, y: Tensor) -> Tensor:
    """POT's ``sinkhorn_unbalanced`` under autograd."""
    import ot

    cost = peers.cosine(x, y)
    a, b = masses(x, y)
    plan = ot.unbalanced.sinkhorn_unbalanced(a, b, cost, REG, RHO, numItermax=MAX_ITER, stopThr=0, warn=False)
    return (plan * cost).sum()


def plain(x: Tensor, y: Tensor) -> Tensor:
    """The log-domain iterations in a few lines of torch."""
    cost, damping = peers.cosine(x, y), RHO / (RHO + REG)
    log_a, log_b = (mass.log() for mass in masses(x, y))
    f = cost.new_full((len(x),), -REG * math.log(len(x)))
    for _ in range(MAX_ITER):
        g = REG * (log_b - damping * torch.logsumexp((f[:, None] - cost) / REG, 0))
        f = REG * (log_a - damping * torch.logsumexp((g[None, :] - cost) / REG, 1))
    return (((f[:, None] + g - cost) / REG).exp() * cost).sum()


def rows(quick: bool) -> Iterator[Row]:
    """Every size."""
    for n in list(SIZES)[:2] if quick else SIZES:
        table: dict[str, Callable] = {
            "ucmkd_fast": peers.with_gradient(ours),
            BALANCED: peers.with_gradient(balanced),
        }
        if peers.available("ot"):
            table["POT sinkhorn_unbalanced"] = peers.with_gradient(pot)
        if n <= 1024:
            table["plain torch, log domain"] = peers.with_gradient(plain)
        limits = {**dict.fromkeys(table, LIMIT), BALANCED: math.inf}
        timings = compare(
            table, partial(gaussian, n), error, limits, rounds=5 if quick else SIZES[n], seconds=25
        )
        yield Row({"N": n, "M": n, "reg": REG, "rho": RHO, "max_iter": MAX_ITER}, timings, {})
