"""Costs from features on a CPU, and the gradient back: torch's matrix products around native loops."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._native import _C
from .. import _pieces
from .._addresses import address
from .._classes import Classes
from .._problem import Pair
from .._products import add_both
from ..cost import BY_DIFFERENCE, CENTRED, SUMMED, dtype_of_cost
from ..refusals import first_bad

ALL = slice(0, None)


class Features(NamedTuple):
    """Both sets as the kernels read them (csrc/cost/features.h)."""

    x: Tensor  # (N, D) contiguous, centred where the metric is
    y: Tensor  # (M, D)
    scale: Tensor  # (N + M,) of x, then of y: 1 / |x| where the metric normalises, else |x|^2
    metric: str
    given_x: Tensor  # (N, D) contiguous, before it was centred
    given_y: Tensor  # (M, D)

    def native(self, rows: slice = ALL, classes: Classes | None = None) -> _C.Features:
        """What the native calls take, of some rows of x; ``classes`` are of those rows."""
        x, y, scale, metric, given_x, given_y = self
        (n, d), first, size = x.shape, rows.start, x.element_size()
        by_class = {}
        if classes is not None:
            by_class = {
                "classes": classes.cost.shape[1], "class_cost": classes.cost.data_ptr(),
                "labels": classes.labels.data_ptr(), "distance": address(classes.distance),
                "grad_class": address(classes.grad),
            }  # fmt: skip
        return _C.Features(
            f64=x.dtype == torch.float64, metric=_C.METRICS[metric], n=(rows.stop or n) - first, m=y.shape[0], d=d,
            x=x.data_ptr() + first * d * size, y=y.data_ptr(), scale_x=scale.data_ptr() + first * size,
            scale_y=scale.data_ptr() + n * size,
            given_x=given_x.data_ptr() + first * d * size, given_y=given_y.data_ptr(), **by_class,
        )  # fmt: skip


def centred(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The features that the products take: less the mean of y where the metric is centred, else as they are."""
    if metric not in CENTRED:
        return x, y
    out_x, out_y = torch.empty_like(x), torch.empty_like(y)
    (n, d), m = x.shape, len(y)
    _C.cost_centre(
        f64=x.dtype == torch.float64, n=n, m=m, d=d, x=x.data_ptr(), y=y.data_ptr(), out_x=out_x.data_ptr(),
        out_y=out_y.data_ptr(),
    )  # fmt: skip
    return out_x, out_y


def with_known_scales(x: Tensor, y: Tensor, scale: Tensor, metric: str, dtype: torch.dtype) -> Features:
    """The features of a call whose scales (N + M,) are made already, or will be by the kernel."""
    given_x, given_y = _pieces.converted(x, dtype), _pieces.converted(y, dtype)
    return Features(*centred(given_x, given_y, metric), scale, metric, given_x, given_y)


def with_scales(x: Tensor, y: Tensor, metric: str, given_x: Tensor, given_y: Tensor) -> Features:
    """Of features that are centred already. Refuses what is not finite."""
    features = Features(x, y, x.new_empty(len(x) + len(y)), metric, given_x, given_y)
    at = features.scale.data_ptr()
    refused = _C.cost_scales(
        features.native(), scale_x=at, scale_y=at + len(x) * features.scale.element_size()
    )
    check_scales(refused, given_x, given_y)
    return features


def scaled(x: Tensor, y: Tensor, metric: str) -> Features:
    """The same of features as they were given, contiguous and of the cost's dtype."""
    return with_scales(*centred(x, y, metric), metric, x, y)


def check_scales(refused: str | None, x: Tensor, y: Tensor) -> None:
    """Raise for the set that the kernel named, if any: "x" or "y"; of features as they were given.

    Centred, x is not finite where y is not, and a norm that overflows is a distance.
    """
    if refused not in ("x", "y"):
        return
    for name, z in (("x", x), ("y", y)):
        if not torch.isfinite((z * z).sum(-1)).all():
            found = first_bad(name, z, ~torch.isfinite(z)) or (
                f"a squared norm that overflows in row {int(z.abs().flatten(0, -2).amax(-1).argmax())}"
            )
            raise ValueError(
                f"{name} must be finite with squared norms inside {z.dtype}'s range, got {found}"
            )
    raise ValueError(_C.REFUSALS["overflow"])


def cost_and_features(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> tuple[Tensor, Features]:
    """The costs (N, M) and what they were made from. No autograd here."""
    features = scaled(_pieces.converted(x, dtype), _pieces.converted(y, dtype), metric)
    costs = features.x.new_empty(len(x), len(y))
    if metric not in SUMMED:  # out=: autocast leaves it alone, and the kernels read this dtype
        torch.mm(features.x, features.y.t(), out=costs)
    _C.cost_finish(features.native(), cost=costs.data_ptr())
    return costs, features


def matrix(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """The costs (N, M), without a gradient."""
    return cost_and_features(x, y, metric, dtype)[0]


def cost(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """As `Door.cost`."""
    costs, features = cost_and_features(x, y, metric, dtype_of_cost(x.dtype))
    return costs, features.scale


def cost_backward(
    x: Tensor, y: Tensor, scale: Tensor, matrix: Tensor, grad_cost: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """As `Door.cost_backward`."""
    features = with_known_scales(x, y, scale, metric, matrix.dtype)
    # The gradient may be shared by autograd: work on a copy.
    weights = grad_cost.clone(memory_format=torch.contiguous_format)
    n, m = matrix.shape
    sums = matrix.new_empty(n + m)
    rows, columns = two(sums, n)
    _C.cost_weigh(
        features.native(), cost=matrix.data_ptr(), grad_cost=weights.data_ptr(), row_sums=rows, column_sums=columns
    )  # fmt: skip
    dx, dy = backward(features, matrix, weights, sums, (True, True))
    assert dx is not None and dy is not None
    return dx, dy


def two(sums: Tensor, n: int) -> tuple[int, int]:
    """Addresses of the first n numbers and of the rest."""
    return sums.data_ptr(), sums.data_ptr() + n * sums.element_size()


def backward(
    features: Features, distance: Tensor | None, weights: Tensor, sums: Tensor, need: tuple[bool, bool]
) -> Pair:
    """Gradients of x (N, D) and y (M, D) from the weights (N, M) and their row and column sums (N + M,).

    ``distance`` (N, M) is the cost without a term by class. The weights are not kept.
    """
    n = len(features.x)
    grads = begin_gradients(features, need)
    add_products(features, slice(0, n), distance, weights, grads)
    finish_gradients(features, sums[:n], sums[n:], grads)
    return grads


def begin_gradients(features: Features, need: tuple[bool, bool]) -> Pair:
    """Memory for the gradients of x and y, where needed, that `add_products` adds to."""
    # Of dx every row is written once.
    new = torch.zeros_like if features.metric in BY_DIFFERENCE else torch.empty_like
    return new(features.x) if need[0] else None, torch.zeros_like(features.y) if need[1] else None


def add_products(
    features: Features, rows: slice, distance: Tensor | None, weights: Tensor, grads: Pair
) -> None:
    """From the weights (R, M) of some rows: W y to these rows of dx (N, D), W' x to dy (M, D).

    ``distance`` (R, M) as in `backward`, for metrics `BY_DIFFERENCE`. The weights are not kept.
    """
    x, y, metric = features.x[rows], features.y, features.metric
    dx, dy = grads[0] if grads[0] is None else grads[0][rows], grads[1]
    if metric in SUMMED:
        return _add_sums(features.native(rows), weights, dx, dy)
    if metric in BY_DIFFERENCE:
        assert distance is not None
        _C.cost_set_apart(
            features.native(rows), distance=distance.data_ptr(), weights=weights.data_ptr(), grad_x=address(dx),
            grad_y=address(dy),
        )  # fmt: skip
    add_both(weights, x, y, dx, dy, metric)


def _add_sums(features: _C.Features, weights: Tensor, dx: Tensor | None, dy: Tensor | None) -> None:
    w = weights.data_ptr()
    if dx is not None:
        _C.cost_sum_gradient(features, grad_cost=w, of_y=False, grad=dx.data_ptr())
    if dy is not None:
        part = torch.empty_like(dy)
        _C.cost_sum_gradient(features, grad_cost=w, of_y=True, grad=part.data_ptr())
        dy += part


def finish_gradients(features: Features, row_sums: Tensor, col_sums: Tensor, grads: Pair) -> None:
    """The products of all rows become the gradients, in place."""
    if features.metric in SUMMED:
        return
    for grad, sums, of_y in zip(grads, (row_sums, col_sums), (False, True), strict=True):
        if grad is not None:
            _C.cost_finish_gradient(features.native(), sums=sums.data_ptr(), of_y=of_y, grad=grad.data_ptr())
