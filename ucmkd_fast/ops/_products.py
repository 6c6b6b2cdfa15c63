"""Matrix products around the kernels, on any device. ``out=``: autocast leaves them alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .cost import BY_DIFFERENCE


def product(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """X y' (B?, N, M) into ``out``, summed in its dtype."""
    mm = torch.mm if x.dim() == 2 else torch.bmm
    if x.dtype == out.dtype:
        return mm(x, y.mT, out=out)
    if x.is_cuda:
        return mm(x, y.mT, out_dtype=out.dtype, out=out)
    return mm(x.to(out.dtype), y.to(out.dtype).mT, out=out)  # torch's CPU products have one dtype


def add_both(
    weights: Tensor, x: Tensor, y: Tensor, dx: Tensor | None, dy: Tensor | None, metric: str
) -> None:
    """As `add_weighted`, W y for dx (R, D); W' x is added to dy (M, D), which other rows add to as well."""
    if dx is not None:
        add_weighted(weights, y, dx, metric)
    if dy is not None:
        torch.addmm(dy, weights.t(), x, out=dy)


def add_weighted(weights: Tensor, z: Tensor, grad: Tensor, metric: str) -> None:
    """W z (B?, N, D) into ``grad``, or added to it where near pairs are there already."""
    batched = grad.dim() == 3
    if metric in BY_DIFFERENCE:
        (torch.baddbmm if batched else torch.addmm)(grad, weights, z, out=grad)
    else:
        (torch.bmm if batched else torch.mm)(weights, z, out=grad)
