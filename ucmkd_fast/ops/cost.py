"""Cost matrices from features, and the gradient back: torch's matrix products around native loops.

    cosine 1 - <x^, y^>    chordal |x^ - y^|    l2 |x - y|    sqeuclidean |x - y|^2    l1 sum |x - y|

x^ = x / |x|; a zero row stays zero, and one with |x|^2 below the dtype's normal numbers counts as zero. Gradients are
0 where a distance is 0.

``l2`` and ``sqeuclidean`` centre both sets by the mean of y before the products: far from the origin |x|^2 + |y|^2 -
2 <x, y> would lose the distance. Pairs that are still near are measured, and differentiated, by their differences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import _C, METRIC_CODES
from . import _pieces
from .refusals import first_bad

METRICS = tuple(METRIC_CODES)
CENTRED = ("l2", "sqeuclidean")  # centred of csrc/cost/features.h
#: Metrics by |x|^2 + |y|^2 - 2 <x, y>; by_difference of csrc/cost/features.h.
BY_DIFFERENCE = (*CENTRED, "chordal")


#: Metrics of normalised features: costs from 0 to 2, made from products of about 1.
NORMALISED = ("cosine", "chordal")


class Features(NamedTuple):
    """Both sets as the kernels read them (csrc/cost/features.h)."""

    x: Tensor  # (N, D) contiguous, centred where the metric is
    y: Tensor  # (M, D)
    scale: Tensor  # (N + M,) of x, then of y: 1 / |x| where the metric normalises, else |x|^2
    metric: str
    given_x: Tensor  # (N, D) contiguous, before it was centred
    given_y: Tensor  # (M, D)

    def native(self, rows: slice = slice(None)) -> Any:
        """What the native calls take, of some rows of x."""
        x, size = self.x[rows], self.scale.element_size()
        scale_y = self.scale.data_ptr() + len(self.x) * size
        return _C.CostFeatures(
            x.dtype == torch.float64, METRIC_CODES[self.metric], len(x), *self.y.shape, x.data_ptr(),
            self.y.data_ptr(), self.scale[rows].data_ptr(), scale_y, self.given_x[rows].data_ptr(),
            self.given_y.data_ptr(),
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
    """Raise for the set that the kernel named, if any: "x" or "y"; of features as they were given.

    Centred, x is not finite where y is not, and a norm that overflows is a distance.
    """
    if refused not in ("x", "y"):
        return
    for name, z in (("x", x), ("y", y)):
        if not torch.isfinite((z * z).sum(-1)).all():
            _refuse(name, z)
    raise ValueError("the distances between x and y must stay in range, got one that overflows")


def products(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> tuple[Tensor, Features]:
    """Inner products (N, M) of x (N, D), y (M, D), which the kernels turn into costs. No autograd here."""
    features = scaled(plain(x, dtype), plain(y, dtype), metric)
    n, m = x.shape[0], y.shape[0]
    # Products are written with out=: autocast leaves those alone, and the kernels read this dtype.
    cost = features.x.new_empty(n, m)
    return (cost if metric == "l1" else torch.mm(features.x, features.y.t(), out=cost)), features


def centred(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The features that the products take: less the mean of y where the metric is centred, else as they are."""
    if metric not in CENTRED:
        return x, y
    out = torch.empty_like(x), torch.empty_like(y)
    addresses = (z.data_ptr() for z in (x, y, *out))
    _C.cost_centre(x.dtype == torch.float64, len(x), *y.shape, *addresses)
    return out


def with_known_scales(x: Tensor, y: Tensor, scale: Tensor, metric: str, dtype: torch.dtype) -> Features:
    """The features of a call whose scales (N + M,) are made already, or will be by the kernel."""
    given = plain(x, dtype), plain(y, dtype)
    return Features(*centred(given[0], given[1], metric), scale, metric, *given)


def scaled(x: Tensor, y: Tensor, metric: str) -> Features:
    """The features with their scales. Refuses what is not finite."""
    return with_scales(*centred(x, y, metric), metric, x, y)


def with_scales(x: Tensor, y: Tensor, metric: str, given_x: Tensor, given_y: Tensor) -> Features:
    """The same of features that are centred already."""
    features = Features(x, y, x.new_empty(len(x) + len(y)), metric, given_x, given_y)
    at = features.scale.data_ptr()
    refused = _C.cost_scales(features.native(), at, at + len(x) * features.scale.element_size())
    check_scales(refused, given_x, given_y)
    return features


def matrix(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """The costs (N, M), without a gradient."""
    found, features = products(x, y, metric, dtype)
    finish(features, found)
    return found


def plain(z: Tensor, dtype: torch.dtype) -> Tensor:
    """As the kernels read it: contiguous, of this dtype. Inside an autograd Function, where nothing is recorded."""
    return _pieces.converted(z, dtype)


def finish(features: Features, matrix: Tensor) -> None:
    """Inner products become costs, in place."""
    _C.cost_finish(features.native(), matrix.data_ptr())


def weigh(features: Features, cost: Tensor, grad_cost: Tensor) -> Tensor:
    """The gradient of the cost becomes the weights of `backward`, in place; returns their sums (N + M,)."""
    n, m = cost.shape
    sums = cost.new_empty(n + m)
    at = sums.data_ptr()
    below = at + n * sums.element_size()
    _C.cost_weigh(features.native(), cost.data_ptr(), grad_cost.data_ptr(), at, below)
    return sums


def backward(
    features: Features, distance: Tensor, weights: Tensor, sums: Tensor, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x (N, D) and y (M, D) from the weights (N, M) and their row and column sums (N + M,).

    ``distance`` (N, M) is the cost without a term by class. The weights are not kept.
    """
    n = features.x.shape[0]
    grads = begin_gradients(features, need)
    add_products(features, slice(0, n), distance, weights, grads)
    finish_gradients(features, sums[:n], sums[n:], grads)
    return grads


def begin_gradients(features: Features, need: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Memory for the gradients of x and y, where needed, that `add_products` adds to."""
    x, y, _, metric, *_ = features
    new = torch.zeros_like if metric in BY_DIFFERENCE else torch.empty_like  # of dx every row is written once
    return new(x) if need[0] else None, torch.zeros_like(y) if need[1] else None


def add_products(
    features: Features,
    rows: slice,
    distance: Tensor | None,
    weights: Tensor,
    grads: tuple[Tensor | None, ...],
) -> None:
    """From the weights (R, M) of some rows: W y to these rows of dx (N, D), W' x to dy (M, D); l1 takes signs.

    ``distance`` (R, M) as in `backward`, for metrics `BY_DIFFERENCE`. The weights are not kept.
    """
    x, y, _, metric, *_ = features
    dx, dy = grads
    if metric == "l1":
        return _add_signs(x[rows], y, weights, None if dx is None else dx[rows], dy)
    if metric in BY_DIFFERENCE:
        assert distance is not None
        near = (0 if z is None else z.data_ptr() for z in (None if dx is None else dx[rows], dy))
        _C.cost_set_apart(features.native(rows), distance.data_ptr(), weights.data_ptr(), *near)
    add_both(weights, x[rows], y, None if dx is None else dx[rows], dy, metric)


def add_both(
    weights: Tensor, x: Tensor, y: Tensor, dx: Tensor | None, dy: Tensor | None, metric: str
) -> None:
    """As `add_weighted`, W y for dx (R, D); W' x is added to dy (M, D), which other rows add to as well."""
    if dx is not None:
        add_weighted(weights, y, dx, metric)
    if dy is not None:  # out=: autocast leaves it alone
        torch.addmm(dy, weights.t(), x, out=dy)


def add_weighted(weights: Tensor, z: Tensor, grad: Tensor, metric: str) -> None:
    """W z (B?, N, D) into ``grad``, or added to it where near pairs are there already."""
    batched = grad.dim() == 3
    if metric in BY_DIFFERENCE:
        (torch.baddbmm if batched else torch.addmm)(grad, weights, z, out=grad)
    else:
        (torch.bmm if batched else torch.mm)(weights, z, out=grad)


def _add_signs(x: Tensor, y: Tensor, weights: Tensor, dx: Tensor | None, dy: Tensor | None) -> None:
    (n, d), m = x.shape, len(y)
    f64, w = x.dtype == torch.float64, weights.data_ptr()
    if dx is not None:
        _C.cost_l1_backward(f64, n, m, d, x.data_ptr(), y.data_ptr(), w, False, dx.data_ptr())
    if dy is not None:
        part = torch.empty_like(dy)
        _C.cost_l1_backward(f64, m, n, d, y.data_ptr(), x.data_ptr(), w, True, part.data_ptr())
        dy += part


def finish_gradients(
    features: Features, row_sums: Tensor, col_sums: Tensor, grads: tuple[Tensor | None, ...]
) -> None:
    """The products of all rows become the gradients, in place."""
    if features.metric == "l1":
        return
    for grad, sums, of_y in zip(grads, (row_sums, col_sums), (False, True), strict=True):
        if grad is not None:
            _C.cost_finish_gradient(features.native(), sums.data_ptr(), of_y, grad.data_ptr())
