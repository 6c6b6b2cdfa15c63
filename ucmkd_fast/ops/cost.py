"""Cost matrices from features, and the gradient back: torch's matrix products around native loops.

    cosine 1 - <x^, y^>    chordal |x^ - y^|    l2 |x - y|    sqeuclidean |x - y|^2    l1 sum |x - y|

x^ = x / |x|; a zero row stays zero. Gradients are 0 where a distance is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._native import _C, METRIC_CODES
from .refusals import first_bad

METRICS = tuple(METRIC_CODES)


class Features(NamedTuple):
    """Both sets as the kernels read them (csrc/cost/features.h)."""

    x: Tensor  # (N, D) contiguous
    y: Tensor  # (M, D) contiguous
    scale: Tensor  # (N + M,) of x, then of y: 1 / |x| where the metric normalises, else |x|^2
    metric: str

    def sizes(self) -> tuple[int, ...]:
        """As the native calls take them: metric code, N, M, D, and the addresses of x, y and their scales."""
        scale, n = self.scale.data_ptr(), self.x.shape[0]
        return (
            METRIC_CODES[self.metric], n, self.y.shape[0], self.x.shape[1], self.x.data_ptr(), self.y.data_ptr(), scale,
            scale + n * self.scale.element_size(),
        )  # fmt: skip


def _refuse(name: str, z: Tensor) -> None:
    raise ValueError(
        f"{name} must be finite with squared norms inside {z.dtype}'s range, got "
        + (
            first_bad(name, z, ~torch.isfinite(z))
            or f"a squared norm that overflows in row {_longest_row(z)}"
        )
    )


def _longest_row(z: Tensor) -> int:
    return int(z.abs().flatten(0, -2).amax(-1).argmax())


def check_scales(refused: str | None, x: Tensor, y: Tensor) -> None:
    """Raise for the set that the kernel named, if any: "x" or "y"."""
    if refused in ("x", "y"):
        _refuse(refused, x if refused == "x" else y)


def products(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> tuple[Tensor, Features]:
    """Inner products (N, M) of x (N, D), y (M, D), which the kernels turn into costs. No autograd here."""
    features = scaled(plain(x, dtype), plain(y, dtype), metric)
    n, m = x.shape[0], y.shape[0]
    # Products are written with out=: autocast leaves those alone, and the kernels read this dtype.
    cost = features.x.new_empty(n, m)
    return (cost if metric == "l1" else torch.mm(features.x, features.y.t(), out=cost)), features


def scaled(x: Tensor, y: Tensor, metric: str) -> Features:
    """The features with their scales. Refuses what is not finite."""
    features = Features(x, y, x.new_empty(x.shape[0] + y.shape[0]), metric)
    check_scales(_C.cost_scales(x.dtype == torch.float64, *features.sizes()), x, y)
    return features


def plain(z: Tensor, dtype: torch.dtype) -> Tensor:
    """As the kernels read it: contiguous, of this dtype. Inside an autograd Function, where nothing is recorded."""
    if z.dtype == dtype and z.is_contiguous():
        return z
    return z.to(dtype).contiguous()


def finish(features: Features, matrix: Tensor) -> None:
    """Inner products become costs, in place."""
    _C.cost_finish(matrix.dtype == torch.float64, *features.sizes(), matrix.data_ptr())


def weigh(features: Features, cost: Tensor, grad_cost: Tensor) -> Tensor:
    """The gradient of the cost becomes the weights of `backward`, in place; returns their sums (N + M,)."""
    n, m = cost.shape
    sums = cost.new_empty(n + m)
    at = sums.data_ptr()
    below = at + n * sums.element_size()
    _C.cost_weigh(
        cost.dtype == torch.float64, *features.sizes(), cost.data_ptr(), grad_cost.data_ptr(), at, below
    )
    return sums


def backward(
    features: Features, weights: Tensor, sums: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x (N, D) and y (M, D) from the weights (N, M) and their row and column sums (N + M,)."""
    n = features.x.shape[0]
    dx = _one_side(features, weights, sums[:n], False) if need_x else None
    dy = _one_side(features, weights, sums[n:], True) if need_y else None
    return dx, dy


def add_products(
    weights: Tensor, rows: slice, x: Tensor, y: Tensor, dx: Tensor | None, dy: Tensor | None
) -> None:
    """From the weights (R, M) of some rows: W y into these rows of dx (N, D), W' x added to dy (M, D)."""
    if dx is not None:  # out=: autocast leaves it alone
        torch.mm(weights, y, out=dx[rows])
    if dy is not None:
        torch.addmm(dy, weights.t(), x[rows], out=dy)


def finish_gradients(
    features: Features, row_sums: Tensor, col_sums: Tensor, dx: Tensor | None, dy: Tensor | None
) -> None:
    """The products of all rows become the gradients, in place."""
    f64, sizes = features.x.dtype == torch.float64, features.sizes()
    for grad, sums, of_y in ((dx, row_sums, False), (dy, col_sums, True)):
        if grad is not None:
            _C.cost_finish_gradient(f64, *sizes, sums.data_ptr(), of_y, grad.data_ptr())


def _one_side(features: Features, weights: Tensor, sums: Tensor, of_y: bool) -> Tensor:
    x, y = (features.y, features.x) if of_y else (features.x, features.y)
    f64 = x.dtype == torch.float64
    grad = torch.empty_like(x)
    if features.metric == "l1":
        (n, d), m = x.shape, y.shape[0]
        _C.cost_l1_backward(
            f64, n, m, d, x.data_ptr(), y.data_ptr(), weights.data_ptr(), of_y, grad.data_ptr()
        )
        return grad
    torch.mm(weights.t() if of_y else weights, y, out=grad)
    _C.cost_finish_gradient(f64, *features.sizes(), sums.data_ptr(), of_y, grad.data_ptr())
    return grad
