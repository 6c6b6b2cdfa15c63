"""The matrix products of small problems (csrc/core/product.cpp): every edge of their blocks, against the reference."""

from __future__ import annotations

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.ops._cpu import losses
from ucmkd_fast.ops.cost import METRICS
from ucmkd_fast.reference import sinkhorn as reference

#: (N, M, D): one element; less than a block; whole blocks; one more and one less; more columns than stay in the first
#: cache; deeper than a tile that is copied (256 rows of y, or of x for the gradient of y); few rows of great width.
SIZES = [
    (1, 1, 1), (3, 5, 2), (7, 66, 19), (48, 64, 128), (49, 63, 129), (21, 130, 65), (300, 20, 33), (20, 600, 130),
    (513, 19, 7), (5, 4, 1300),
]  # fmt: skip


def between_lines(z: torch.Tensor) -> torch.Tensor:
    """A copy that begins one element behind a cache line, so that all vectors lie across lines."""
    return torch.empty(z.numel() + 1, dtype=z.dtype)[1:].copy_(z.flatten()).view(z.shape)


@pytest.mark.parametrize("place", [torch.clone, between_lines])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_loss_and_gradient(size, metric, place):
    n, m, d = size
    assert n * m * d <= losses.OWN_PRODUCTS
    generator = torch.Generator().manual_seed(n + m + d)
    x, y = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    y[: m // 3] = x[torch.arange(m // 3) % n] + 1e-4  # near pairs have a share beside the products
    reg = 0.1 if metric in ("cosine", "chordal") else 2 * d**0.5
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        low = [z.to(dtype) for z in (x, y)]
        leaves, truths = [place(z).requires_grad_() for z in low], [z.double().requires_grad_() for z in low]
        got = uk.sinkhorn_loss(*leaves, metric=metric, reg=reg, max_iter=5)
        want = reference.sinkhorn_loss(*truths, metric=metric, reg=reg, max_iter=5)
        found, true = torch.autograd.grad(got, leaves), torch.autograd.grad(want, truths)
        for g, w in zip((got, *found), (want, *true), strict=True):
            assert (g.double() - w).abs().max() <= bound * max(w.abs().max(), 1e-3)
