"""The regularised loss, its plan held constant in the gradient, run to a tolerance: against GeomLoss.

On normalised features GeomLoss's p = 2 cost |x - y|^2 / 2 is the cosine cost; its blur is sqrt(reg).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from ..ops.sinkhorn import sinkhorn_loss
from . import peers
from .harness import Row, compare
from .sinkhorn import error, gaussian

REG, TOL = 0.1, 1e-4
SIZES = (64, 256, 1024, 2048)


def ours(x: Tensor, y: Tensor) -> Any:
    """The op under test."""
    return sinkhorn_loss(x, y, reg=REG, tol=TOL, max_iter=1000, objective="regularized", grad="envelope")


def marginal_errors(n: int) -> dict[str, float]:
    """Sum of both marginals' errors, ours and theirs, in float64 from the potentials."""
    x, y = gaussian(n, 0)
    result: Any = sinkhorn_loss(
        x, y, reg=REG, tol=TOL, max_iter=1000, objective="regularized", grad="envelope", return_result=True
    )
    cost = peers.cosine(x.double(), y.double())
    f, g = result.potentials
    plans = {"ours": ((f.double()[:, None] + g.double() - cost) / REG).exp()}
    f, g = (z.flatten().double() for z in peers.geomloss(REG, potentials=True)(x, y))
    plans["GeomLoss"] = ((f[:, None] + g - cost) / REG).exp() / n**2
    return {
        f"marginal error, {name}": float((p.sum(0) - 1 / n).abs().sum() + (p.sum(1) - 1 / n).abs().sum())
        for name, p in plans.items()
    }


def rows(quick: bool) -> Iterator[Row]:
    """Every size."""
    for n in SIZES[:2] if quick else SIZES:
        table: dict[str, Any] = {
            "ucmkd_fast": peers.with_gradient(ours),
            "GeomLoss SamplesLoss": peers.with_gradient(peers.geomloss(REG)),
        }
        timings = compare(
            table,
            partial(gaussian, n),
            error,
            dict.fromkeys(table, 2e-2),
            rounds=7,
            seconds=30,
        )
        yield Row({"N": n, "M": n, "reg": REG, "tol": TOL}, timings, marginal_errors(n))
