"""float32 against float64 on the same float32 inputs, where |x|^2 + |y|^2 - 2 <x, y> would lose the distance."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..ops.sinkhorn import sinkhorn_loss
from ..reference import sinkhorn as reference
from .harness import Row

METRICS = ("l2", "chordal", "sqeuclidean")
OFFSETS = (0.0, 3.0, 100.0, 1000.0)  # of every feature, in standard deviations of y
APART = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of each x from its y


def errors(metric: str, offset: float, apart: float, seed: int) -> tuple[float, float]:
    """Relative errors of the loss and of its gradients of x and y (largest entry)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(50, 64, generator=generator) + offset
    x = y + apart * torch.randn(50, 64, generator=generator)
    reg = reference.cost(x.double(), y.double(), metric).mean().item()
    found = []
    for loss_of, dtype in ((sinkhorn_loss, torch.float32), (reference.sinkhorn_loss, torch.float64)):
        inputs = [z.to(dtype, copy=True).requires_grad_() for z in (x, y)]
        loss = torch.as_tensor(loss_of(*inputs, metric=metric, reg=reg, max_iter=20))
        found.append((loss.detach().double(), *(g.double() for g in torch.autograd.grad(loss, inputs))))
    (loss, *grads), (truth, *true_grads) = found
    wrong = [((g - t).abs().max() / t.abs().max()).item() for g, t in zip(grads, true_grads, strict=True)]
    return ((loss - truth).abs() / truth).item(), max(wrong)


def rows(quick: bool) -> Iterator[Row]:
    """One row per metric and offset: the worst over distances and seeds."""
    for metric in METRICS:
        for offset in OFFSETS:
            cases = [
                errors(metric, offset, apart, seed) for apart in APART for seed in range(1 if quick else 5)
            ]
            loss, gradient = (max(case[k] for case in cases) for k in (0, 1))
            yield Row(
                {"metric": metric, "offset": offset},
                [],
                {"loss": float(f"{loss:.1e}"), "gradient": float(f"{gradient:.1e}")},
            )
