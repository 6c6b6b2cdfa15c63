"""Calls of the cost kernels for CUDA tensors: costs from features, and gradients back; the twin of `cost`.

Half-precision features are read as they are where both sets have the same: by torch's matrix product with float32
output, and by the kernels, which widen each element. Beside other types they are converted first. The products of
the backward pass, of float32 weights with features, take a float32 copy of the features (N + M, D) while they run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._native import METRIC_CODES
from . import _solve_cuda
from ._solve_cuda import _address, _stream
from .checks import HALVES
from .cost import plain

_FEATURE_TYPES = {torch.float16: 1, torch.bfloat16: 2}  # FeatureType of csrc/cost/cuda_call.h


def features(x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both sets as the kernels read them: contiguous, of the cost's dtype or both of one half precision."""
    if x.dtype == y.dtype and x.dtype in HALVES:
        dtype = x.dtype
    return plain(x, dtype), plain(y, dtype)


def product(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """X y' (B?, N, M) into ``out``, summed in its dtype. Autocast leaves products with out= alone."""
    mm = torch.mm if x.dim() == 2 else torch.bmm
    if x.dtype == out.dtype:
        return mm(x, y.mT, out=out)
    if x.is_cuda:
        return mm(x, y.mT, out_dtype=out.dtype, out=out)
    return mm(x.to(out.dtype), y.to(out.dtype).mT, out=out)  # torch's CPU products have one dtype


def call(
    x: Tensor, y: Tensor, metric: str, scales: tuple[Tensor, Tensor], matrix: Tensor, classes: Any = None
) -> Any:
    """The native call on x (B?, N, D), y (B?, M, D), their scales (B?, N), (B?, M) and the cost (B?, N, M)."""
    (n, d), m = x.shape[-2:], y.shape[-2]
    c = _solve_cuda.kernels.CudaCost()
    c.batch = x.shape[0] if x.dim() == 3 else 1
    c.f64, c.feature_type = matrix.dtype == torch.float64, _FEATURE_TYPES.get(x.dtype, 0)
    c.device, c.stream, c.metric = x.device.index or 0, _stream(x), METRIC_CODES[metric]
    c.n, c.m, c.d, c.x, c.y, c.cost = n, m, d, x.data_ptr(), y.data_ptr(), matrix.data_ptr()
    c.scale_x, c.scale_y = (scale.data_ptr() for scale in scales)
    if classes is not None:
        c.classes, c.class_cost = classes.cost.shape[1], classes.cost.data_ptr()
        c.labels, c.distance = classes.labels.data_ptr(), _address(classes.distance)
    return c


def gradient(c: Any, weights: Tensor, z: Tensor, other: Tensor, metric: str, of_y: bool) -> Tensor:
    """Gradient of z (x, or y where ``of_y``) from the weights (B?, N, M) of the call ``c``, in the weights' dtype."""
    grad = _solve_cuda.empty(weights, *z.shape)
    sums = None
    if metric != "l1":
        mm = torch.mm if z.dim() == 2 else torch.bmm
        mm(weights.mT if of_y else weights, other.to(weights.dtype), out=grad)
        if metric in ("l2", "sqeuclidean"):
            sums = weights.sum(-2 if of_y else -1)
    finish(c, sums, grad, of_y)
    return grad


def sorted_columns(classes: Any) -> tuple[Tensor, Tensor]:
    """Columns (M,) sorted by their labels, and where each label begins among them (K + 1,)."""
    labels, order = torch.sort(classes.labels, stable=True)
    every = torch.arange(classes.cost.shape[1] + 1, device=labels.device)
    return order, torch.searchsorted(labels, every)


def to_classes(c: Any, sorted_labels: tuple[Tensor, Tensor], grad: Tensor) -> None:
    """Let `cuda_weigh` of the call ``c`` write the gradient of W (N, K) too."""
    c.order, c.starts = (t.data_ptr() for t in sorted_labels)
    c.grad_class = grad.data_ptr()


def finish(c: Any, sums: Tensor | None, grad: Tensor, of_y: bool) -> None:
    """The products of the weights with the features become the gradient, in place; l1 writes it."""
    c.sums, c.grad, c.of_y = _address(sums), grad.data_ptr(), of_y
    _solve_cuda.kernels.cuda_finish_gradient(c)


def forward(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cost (B?, N, M) alone, and the scales (B?, N + M) for `backward`."""
    x, y = features(x, y, dtype)
    lead, n, m = x.shape[:-2], x.shape[-2], y.shape[-2]
    matrix = _solve_cuda.empty(x, *lead, n, m, dtype=dtype)
    scale = _solve_cuda.empty(x, lead.numel() * (n + m), dtype=dtype)
    if metric != "l1":
        product(x, y, matrix)
    c = call(x, y, metric, (scale, scale[lead.numel() * n :]), matrix)
    _solve_cuda.kernels.cuda_scales(c)
    _solve_cuda.kernels.cuda_cost(c)
    return matrix, scale


def backward(
    x: Tensor, y: Tensor, scale: Tensor, matrix: Tensor, grad_cost: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients of both feature sets, in the cost's dtype; ``grad_cost`` is left as it is."""
    x, y = features(x, y, matrix.dtype)
    weights = grad_cost.clone(memory_format=torch.contiguous_format)
    c = call(x, y, metric, (scale, scale[x.shape[:-1].numel() :]), matrix)
    c.grad_cost = weights.data_ptr()
    _solve_cuda.kernels.cuda_weigh(c)
    return gradient(c, weights, x, y, metric, False), gradient(c, weights, y, x, metric, True)
