"""Cost matrices from features, and the gradient back: torch's matrix products around native loops.

    cosine 1 - <x^, y^>    chordal |x^ - y^|    l2 |x - y|    sqeuclidean |x - y|^2    l1 sum |x - y|

x^ = x / |x|; a zero row stays zero. Gradients are 0 where a distance is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._native import _C, METRIC_CODES

METRICS = tuple(METRIC_CODES)
_NORMALISED = ("cosine", "chordal")


class Features(NamedTuple):
    """Both sets as the kernels read them (csrc/cost/features.h)."""

    x: Tensor  # (N, D) contiguous
    y: Tensor  # (M, D) contiguous
    scale: Tensor  # (N + M,) of x, then of y: 1 / |x| where the metric normalises, else |x|^2
    metric: str

    def addresses(self) -> tuple[int, int, int, int, int, int]:
        """Metric code, D, and the addresses of x, y and their scales."""
        scale = self.scale.data_ptr()
        shift = self.x.shape[0] * self.scale.element_size()
        return (
            METRIC_CODES[self.metric], self.x.shape[1], self.x.data_ptr(), self.y.data_ptr(), scale, scale + shift,
        )  # fmt: skip


def _refuse(name: str, z: Tensor) -> None:
    raise ValueError(
        f"{name} must be finite with squared norms inside {z.dtype}'s range, got "
        + ("NaN or inf" if not torch.isfinite(z).all() else "a row whose squared norm overflows")
    )


def scales(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """1 / |x| where the metric normalises, else |x|^2: of x (N, D), then of y (M, D). Refuses what is not finite."""
    (n, d), m = x.shape, y.shape[0]
    scale = x.new_empty(n + m)
    f64, inverse = x.dtype == torch.float64, metric in _NORMALISED
    if not _C.cost_scales(f64, inverse, n, d, x.data_ptr(), scale.data_ptr()):
        _refuse("x", x)
    if not _C.cost_scales(f64, inverse, m, d, y.data_ptr(), scale.data_ptr() + n * scale.element_size()):
        _refuse("y", y)
    return scale


def products(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> tuple[Tensor, Features]:
    """Inner products (N, M) of x (N, D), y (M, D), which the kernels turn into costs. No autograd here."""
    x, y = (z.detach().to(dtype).contiguous() for z in (x, y))
    features = Features(x, y, scales(x, y, metric), metric)
    # Products are written with out=: autocast leaves those alone, and the kernels read this dtype.
    cost = x.new_empty(x.shape[0], y.shape[0])
    return (cost if metric == "l1" else torch.mm(x, y.t(), out=cost)), features


def finish(features: Features, matrix: Tensor) -> None:
    """Inner products become costs, in place."""
    metric, d, *rest = features.addresses()
    n, m = matrix.shape
    _C.cost_finish(matrix.dtype == torch.float64, metric, n, m, d, *rest, matrix.data_ptr())


def weigh(features: Features, cost: Tensor, grad_cost: Tensor) -> Tensor:
    """The gradient of the cost becomes the weights of `backward`, in place; returns their sums (N + M,)."""
    metric, d, *rest = features.addresses()
    n, m = cost.shape
    sums = cost.new_empty(n + m)
    at = sums.data_ptr()
    _C.cost_weigh(
        cost.dtype == torch.float64, metric, n, m, d, *rest, cost.data_ptr(), grad_cost.data_ptr(), at,
        at + n * sums.element_size(),
    )  # fmt: skip
    return sums


def backward(
    features: Features, weights: Tensor, sums: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x (N, D) and y (M, D) from the weights (N, M) and their row and column sums (N + M,)."""
    n = features.x.shape[0]
    dx = _one_side(features, weights, sums[:n], False) if need_x else None
    dy = _one_side(features, weights, sums[n:], True) if need_y else None
    return dx, dy


def _one_side(features: Features, weights: Tensor, sums: Tensor, transposed: bool) -> Tensor:
    x, y, scale, metric = features
    if transposed:
        x, y = y, x
    n, d = x.shape
    f64 = x.dtype == torch.float64
    if metric == "l1":
        grad = torch.empty_like(x)
        _C.cost_l1_backward(
            f64, n, y.shape[0], d, x.data_ptr(), y.data_ptr(), weights.data_ptr(), transposed, grad.data_ptr()
        )
        return grad
    weights = weights.t() if transposed else weights
    if metric not in _NORMALISED:
        return torch.addmm(x * sums[:, None], weights, y, alpha=-1, out=torch.empty_like(x))
    grad = torch.mm(weights, y, out=torch.empty_like(x))
    at = scale.data_ptr() + (y.shape[0] * scale.element_size() if transposed else 0)
    _C.cost_project(f64, n, d, x.data_ptr(), at, grad.data_ptr())
    return grad
