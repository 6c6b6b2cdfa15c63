"""float32 against float64: the loss and its gradient with respect to x, by reg, scale, metric and shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..ops.sinkhorn import sinkhorn_loss
from .harness import Row

METRICS = ("cosine", "chordal", "l2", "l1", "sqeuclidean")
SHAPES = ((64, 64), (130, 257))
REGS = (1.0, 0.1, 0.02, 0.002)  # of the mean cost
SCALES = (1e-3, 1.0, 1e3)  # of the features


def errors(metric: str, n: int, m: int, reg: float, scale: float, seed: int) -> tuple[float, float]:
    """Relative errors of the loss and of its gradient (largest entry)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 48, generator=generator, dtype=torch.float64).float() * scale
    y = (torch.randn(m, 48, generator=generator, dtype=torch.float64).float() + 0.2) * scale
    mean = torch.as_tensor(sinkhorn_loss(x.double(), y.double(), metric=metric, reg=1e9, max_iter=1)).item()
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype, copy=True).requires_grad_()
        loss: Any = sinkhorn_loss(leaf, y.to(dtype), metric=metric, reg=reg * mean, max_iter=60)
        (grad,) = torch.autograd.grad(loss, leaf)
        found.append((loss.detach().double(), grad.double()))
    (loss, grad), (loss64, grad64) = found
    return (
        ((loss - loss64).abs() / loss64).item(),
        ((grad - grad64).abs().max() / grad64.abs().max()).item(),
    )


def rows(quick: bool) -> Iterator[Row]:
    """A row a metric and reg: the worst over shapes, scales and seeds."""
    for metric in METRICS:
        for reg in REGS:
            cases = [
                errors(metric, n, m, reg, scale, seed)
                for n, m in SHAPES
                for scale in SCALES
                for seed in range(1 if quick else 3)
            ]
            loss, grad = (max(c[k] for c in cases) for k in (0, 1))
            yield Row(
                {"metric": metric, "reg / mean cost": reg},
                [],
                {"loss": float(f"{loss:.1e}"), "gradient": float(f"{grad:.1e}")},
            )
