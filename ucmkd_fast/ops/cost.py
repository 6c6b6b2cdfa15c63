"""Cost matrices from features, and the gradient back: torch's matrix products around native epilogues.

    cosine 1 - <x^, y^>    chordal |x^ - y^|    l2 |x - y|    sqeuclidean |x - y|^2    l1 sum |x - y|

x^ = x / |x|; a zero row stays zero. Gradients are 0 where a distance is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._native import _C, METRIC_CODES

METRICS = tuple(METRIC_CODES)


class Prepared(NamedTuple):
    """Features as the backward wants them."""

    x: Tensor  # (N, D) contiguous, at unit norm for cosine and chordal
    y: Tensor  # (M, D)
    norm_x: Tensor  # (N,) norms before normalisation
    norm_y: Tensor  # (M,)


def _prepare(name: str, z: Tensor, dtype: torch.dtype, normalise: bool) -> tuple[Tensor, Tensor]:
    z = z.detach().to(dtype).contiguous()
    n, d = z.shape
    norm = z.new_empty(n)
    unit = torch.empty_like(z) if normalise else None
    out = unit.data_ptr() if unit is not None else 0
    if not _C.cost_norms(dtype == torch.float64, n, d, z.data_ptr(), out, norm.data_ptr()):
        raise ValueError(
            f"{name} must be finite with squared norms inside {dtype}'s range, got "
            + ("NaN or inf" if not torch.isfinite(z).all() else "a row whose squared norm overflows")
        )
    return (unit if unit is not None else z), norm


def forward(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> tuple[Tensor, Prepared]:
    """C (N, M) of x (N, D), y (M, D), and what `backward` needs. No autograd here."""
    normalise = metric in ("cosine", "chordal")
    f64 = dtype == torch.float64
    px, norm_x = _prepare("x", x, dtype, normalise)
    py, norm_y = _prepare("y", y, dtype, normalise)
    n, d = px.shape
    m = py.shape[0]
    if metric == "l1":
        cost = px.new_empty(n, m)
        _C.cost_l1(f64, n, m, d, px.data_ptr(), py.data_ptr(), cost.data_ptr())
    else:
        cost = torch.mm(px, py.t())
        _C.cost_epilogue(
            f64, METRIC_CODES[metric], n, m, d, px.data_ptr(), py.data_ptr(), norm_x.data_ptr(), norm_y.data_ptr(),
            cost.data_ptr(),
        )  # fmt: skip
    return cost, Prepared(px, py, norm_x, norm_y)


def backward(
    prepared: Prepared, metric: str, cost: Tensor, grad_cost: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x (N, D) and y (M, D). ``grad_cost`` (N, M), contiguous, is used up as work space."""
    x, y, norm_x, norm_y = prepared
    n, d = x.shape
    m = y.shape[0]
    f64 = x.dtype == torch.float64
    dx: Tensor | None = None
    dy: Tensor | None = None
    if metric == "l1":
        if need_x:
            dx = torch.empty_like(x)
            _C.cost_l1_backward(
                f64, n, m, d, x.data_ptr(), y.data_ptr(), grad_cost.data_ptr(), False, dx.data_ptr()
            )
        if need_y:
            dy = torch.empty_like(y)
            _C.cost_l1_backward(
                f64, m, n, d, y.data_ptr(), x.data_ptr(), grad_cost.data_ptr(), True, dy.data_ptr()
            )
        return dx, dy
    if metric == "cosine":
        dx = torch.mm(grad_cost, y).neg_() if need_x else None
        dy = torch.mm(grad_cost.t(), x).neg_() if need_y else None
    else:
        row_sum, col_sum = x.new_empty(n, 1), x.new_empty(m, 1)
        _C.cost_weights(
            f64, METRIC_CODES[metric], n, m, cost.data_ptr(), grad_cost.data_ptr(), row_sum.data_ptr(),
            col_sum.data_ptr(),
        )  # fmt: skip
        dx = torch.addmm(x * row_sum, grad_cost, y, alpha=-1) if need_x else None
        dy = torch.addmm(y * col_sum, grad_cost.t(), x, alpha=-1) if need_y else None
    if metric in ("cosine", "chordal"):
        for grad, unit, norm in ((dx, x, norm_x), (dy, y, norm_y)):
            if grad is not None:
                _C.cost_normalise_backward(
                    f64, len(unit), d, unit.data_ptr(), norm.data_ptr(), grad.data_ptr()
                )
    return dx, dy
