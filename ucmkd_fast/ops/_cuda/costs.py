"""Costs from features on a GPU, and the gradient back: torch's matrix products around the kernels.

Half-precision features are read as they are where both sets have the same: by torch's matrix product with float32
output, and by the kernels, which widen each element. Beside other types they are converted first. The products of
the backward pass, of float32 weights with features, take a float32 copy of the features (N + M, D) while they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._native import _C
from .. import _pieces
from .._addresses import address
from .._classes import Classes
from .._products import add_weighted, product
from ..checks import HALVES
from ..cost import BY_DIFFERENCE, CENTRED, SUMMED, dtype_of_cost
from . import _device as device

_FEATURE_TYPES = {torch.float16: 1, torch.bfloat16: 2}  # FeatureType of csrc/cost/cuda_call.h


class Features(NamedTuple):
    """Both sets as the kernels read them: contiguous, of the cost's dtype or both of one half precision."""

    x: Tensor  # (B?, N, D), centred where the metric is
    y: Tensor  # (B?, M, D)
    metric: str
    given_x: Tensor  # before they were centred
    given_y: Tensor

    def rows(self, rows: slice) -> Features:
        """Some rows of x against all of y."""
        return self._replace(x=self.x[rows], given_x=self.given_x[rows])


def features(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> Features:
    """Both sets for a metric; those of half precision are read as they are, and not centred."""
    half = x.dtype == y.dtype and x.dtype in HALVES
    given = [_pieces.converted(z, x.dtype if half else dtype) for z in (x, y)]
    x, y = given
    if metric in CENTRED and not half:
        centre = y.mean(-2, keepdim=True)
        x, y = x - centre, y - centre
    return Features(x, y, metric, *given)


def call(features: Features, scales: tuple[int, int], matrix: Tensor, classes: Classes | None = None) -> Any:
    """The native call on the features, the addresses of their scales (B?, N), (B?, M), and the cost (B?, N, M)."""
    x, y, metric, given_x, given_y = features
    (n, d), m = x.shape[-2:], y.shape[-2]
    c = device.kernels.CudaCost()
    c.batch = x.shape[0] if x.dim() == 3 else 1
    c.f64, c.feature_type = matrix.dtype == torch.float64, _FEATURE_TYPES.get(x.dtype, 0)
    c.device, c.stream, c.metric = x.device.index or 0, device.stream(x), _C.METRICS[metric]
    c.n, c.m, c.d, c.x, c.y, c.cost = n, m, d, x.data_ptr(), y.data_ptr(), matrix.data_ptr()
    c.scale_x, c.scale_y = scales
    c.given_x, c.given_y = given_x.data_ptr(), given_y.data_ptr()
    if classes is not None:
        c.classes, c.class_cost = classes.cost.shape[1], classes.cost.data_ptr()
        c.labels, c.distance = classes.labels.data_ptr(), address(classes.distance)
    return c


def scales_in(block: Tensor, rows: int) -> tuple[int, int]:
    """Addresses of the scales of x, the first ``rows`` numbers of ``block``, and of those of y behind them."""
    return block.data_ptr(), block.data_ptr() + block.element_size() * rows


def gradients(
    c: Any, features: Features, weights: Tensor, need: tuple[bool, bool] = (True, True)
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and y, where needed, from that of the cost (B?, N, M) of the call ``c``, in its dtype.

    It is not kept: it becomes the weights of the products.
    """
    x, y, metric, *_ = features
    dx, dy = (
        device.empty(z, *z.shape, dtype=weights.dtype) if wanted else None
        for z, wanted in zip((x, y), need, strict=True)
    )
    weigh(c, metric, weights, dx, dy)
    sides = ((dx, weights, y), (dy, weights.mT, x))
    for grad, w, other in sides:
        if grad is not None and metric not in SUMMED:
            add_weighted(w, other.to(w.dtype), grad, metric)
    sums = [w.sum(-1) if grad is not None and metric in CENTRED else None for grad, w, _ in sides]
    finish(c, sums, dx, dy)
    return dx, dy


def weigh(
    c: Any, metric: str, weights: Tensor, dx: Tensor | None, dy: Tensor | None, adds_to_y: bool = False
) -> None:
    """The gradient of the cost becomes the weights of the products with the features, in place.

    Near pairs are set apart: their share is written to the gradients, or added to that of y.
    """
    c.grad_cost, c.grad_x, c.grad_y, c.adds_to_y = weights.data_ptr(), address(dx), address(dy), adds_to_y
    marks = None
    if metric in BY_DIFFERENCE:
        marks = device.empty(weights, device.kernels.cuda_cost_marks(c), dtype=torch.int32)
    c.marks = address(marks)
    device.kernels.cuda_weigh(c)


def sorted_columns(classes: Classes) -> tuple[Tensor, Tensor]:
    """Columns (M,) sorted by their labels, and where each label begins among them (K + 1,)."""
    labels, order = torch.sort(classes.labels, stable=True)
    every = torch.arange(classes.cost.shape[1] + 1, device=labels.device)
    return order, torch.searchsorted(labels, every)


def to_classes(c: Any, sorted_labels: tuple[Tensor, Tensor], grad: Tensor) -> None:
    """Let `cuda_weigh` of the call ``c`` write the gradient of W (N, K) too."""
    c.order, c.starts = (t.data_ptr() for t in sorted_labels)
    c.grad_class = grad.data_ptr()


def finish(c: Any, sums: Sequence[Tensor | None], dx: Tensor | None, dy: Tensor | None) -> None:
    """The products of the weights with the features become the gradients, in place; sums write them."""
    c.sums_x, c.sums_y = map(address, sums)
    c.grad_x, c.grad_y = address(dx), address(dy)
    device.kernels.cuda_finish_gradient(c)


def costs(sets: Features, scale: Tensor, matrix: Tensor, classes: Classes | None = None) -> Any:
    """Fills the costs (B?, N, M) and the scales (B?, N + M) of x and y; returns their call."""
    if sets.metric not in SUMMED:
        product(sets.x, sets.y, matrix)
    c = call(sets, scales_in(scale, sets.x.shape[:-1].numel()), matrix, classes)
    device.kernels.cuda_scales(c)
    device.kernels.cuda_cost(c)
    return c


def cost(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """As `Door.cost`."""
    dtype = dtype_of_cost(x.dtype)
    sets = features(x, y, metric, dtype)
    lead, n, m = x.shape[:-2], x.shape[-2], y.shape[-2]
    matrix = device.empty(x, *lead, n, m, dtype=dtype)
    scale = device.empty(x, lead.numel() * (n + m), dtype=dtype)
    costs(sets, scale, matrix)
    return matrix, scale


def cost_backward(
    x: Tensor, y: Tensor, scale: Tensor, matrix: Tensor, grad_cost: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """As `Door.cost_backward`."""
    sets = features(x, y, metric, matrix.dtype)
    weights = grad_cost.clone(memory_format=torch.contiguous_format)
    c = call(sets, scales_in(scale, x.shape[:-1].numel()), matrix)
    dx, dy = gradients(c, sets, weights)
    assert dx is not None and dy is not None
    return dx, dy
