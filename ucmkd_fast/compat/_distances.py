"""Distances of `compat.geomloss` and the sums of differences in their gradients, without (N, M, D).

|x - y|^2 = |x|^2 + |y|^2 - 2 <x, y> loses what lies below the rounding of its terms: the distance of points that
are close to each other, or far from the origin. Both sets are moved to a centre of all points and the products are
made in float64, which keeps a difference down to 1e-8 of the norms; float32 alone keeps 3e-4 of them. The centre is a
median: a mean would follow a single point far out, and the distances of all others would be lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE = 64  # points that the centre is made from, at most twice as many
SMALLEST_SQUARE = 1e-8  # GeomLoss's floor under the squared distance where p = 1


def cost_of(x: Tensor, y: Tensor, p: int) -> Tensor:
    """C (B, N, M) = |x - y|^p / p of x (B, N, D) and y (B, M, D); differentiable to any order."""
    u, v = _centred(x, y)
    square = (u @ v.mT).mul_(-2).add_((u * u).sum(-1)[:, :, None]).add_((v * v).sum(-1)[:, None, :])
    cost = square.clamp_min(SMALLEST_SQUARE).sqrt() if p == 1 else square / 2
    return cost.to(x.dtype)


def weighted_differences(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """sum_j W_ij (x_i - y_j), (B, N, D), of W (B, N, M), x (B, N, D) and y (B, M, D)."""
    u, v = _centred(x, y)
    wide = weights.to(u.dtype)
    return (wide.sum(2, keepdim=True) * u - wide @ v).to(x.dtype)


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both less one centre for each problem, in float64 where the device has it."""
    if x.device.type != "mps":
        x, y = x.double(), y.double()
    points = torch.cat([x.detach(), y.detach()], 1)
    centre = points[:, :: max(1, points.shape[1] // SAMPLE)].median(1, keepdim=True).values
    return x - centre, y - centre
