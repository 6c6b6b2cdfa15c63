"""The kernel norms of `compat.geomloss`: |alpha - beta|_k^2 / 2 of sampled measures, by torch's own operations.

k(x, y) = exp(-|x - y|^2 / 2 blur^2)   gaussian
          exp(-|x - y| / blur)         laplacian
          -|x - y|                     energy
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._distances import cost_of
from ._measures import Measures

Kernel = Callable[..., Tensor]


def _gaussian(x: Tensor, y: Tensor, blur: float, **_: Any) -> Tensor:
    return (-cost_of(x / blur, y / blur, 2)).exp()


def _laplacian(x: Tensor, y: Tensor, blur: float, **_: Any) -> Tensor:
    return (-cost_of(x / blur, y / blur, 1)).exp()


def _energy(x: Tensor, y: Tensor, blur: float, **_: Any) -> Tensor:
    return -cost_of(x, y, 1)


KERNELS: dict[str, Kernel] = {"energy": _energy, "gaussian": _gaussian, "laplacian": _laplacian}


def solve(m: Measures, kernel: Kernel, blur: float, potentials: bool) -> Tensor | tuple[Tensor, Tensor]:
    """The norm (B,), or the potentials k (alpha - beta) at x (B, N) and k (beta - alpha) at y (B, M).

    ``kernel(x, y, blur=, use_keops=, ranges=)`` gives (B, N, M), and is symmetric.
    """

    def of(x: Tensor, y: Tensor) -> Tensor:
        return kernel(x, y, blur=blur, use_keops=False, ranges=None)

    a, x, b, y = m.tensors
    # A point's two places in k(x, x) give one gradient twice: GeomLoss takes one of them, doubled.
    of_a = _times(of(_twice(x), x.detach()), a.detach())
    of_b = _times(of(_twice(y), y.detach()), b.detach())
    between = of(x, y)
    at_x = _times(between, b)
    if potentials:
        return of_a - at_x, of_b - _times(between.mT, a)
    return (_twice(a) * of_a).sum(1) / 2 + (_twice(b) * of_b).sum(1) / 2 - (a * at_x).sum(1)


def _times(matrix: Tensor, weights: Tensor) -> Tensor:
    return (matrix @ weights[:, :, None])[:, :, 0]


def _twice(z: Tensor) -> Tensor:
    """z, with twice its gradient."""
    return 2 * z - z.detach()
