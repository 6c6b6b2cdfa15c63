"""The loss between features on a CUDA device: the twin of `_loss`.

The cost is one matrix product and one epilogue, its gradient one pass and two products; in between it is
`_solve_cuda`. What is kept for the backward is one block: the cost (N, M), the scales (N + M,), and what the solver
keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._native import METRIC_CODES
from . import _solve_cuda
from ._solve_cuda import _address, _even, _stream, empty
from .cost import plain


def _cost_call(x: Tensor, y: Tensor, kept: Tensor, metric: str, classes: Any) -> Any:
    (n, d), m = x.shape, y.shape[0]
    call = _solve_cuda.kernels.CudaCost()
    call.f64, call.device, call.stream = x.dtype == torch.float64, x.device.index or 0, _stream(x)
    call.metric, call.n, call.m, call.d = METRIC_CODES[metric], n, m, d
    call.x, call.y, call.cost = x.data_ptr(), y.data_ptr(), kept.data_ptr()
    call.scale = kept.data_ptr() + kept.element_size() * n * m
    if classes is not None:
        call.classes, call.class_cost = classes.cost.shape[1], classes.cost.data_ptr()
        call.labels, call.distance = classes.labels.data_ptr(), _address(classes.distance)
    return call


def forward(
    x: Tensor, y: Tensor, a, b, init_f, options: Any, save: bool, classes: Any = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss (), the potentials (N,), (M,), and what the backward needs."""
    x, y = plain(x, options.dtype), plain(y, options.dtype)
    n, m = x.shape[0], y.shape[0]
    solver = options.solver
    history = save and solver.grad == "unrolled"
    head = _even(n * m + n + m)
    kept = empty(x, head + _solve_cuda.saved_size(1, n, m, solver.max_iter, history))
    matrix = kept[: n * m].view(n, m)
    if options.metric != "l1":
        torch.mm(x, y.t(), out=matrix)  # out=: autocast leaves it alone
    _solve_cuda.kernels.cuda_cost(_cost_call(x, y, kept, options.metric, classes))
    value, dual, f, g, error, n_iter, _ = _solve_cuda.forward(matrix, a, b, init_f, solver, save, kept[head:])
    if options.convergence is not None:
        options.convergence.take(error, n_iter)
    return (dual if options.regularized else value), f, g, kept


def backward(
    x: Tensor,
    y: Tensor,
    a,
    b,
    init_f,
    f,
    g,
    kept: Tensor,
    up: Any,
    options: Any,
    needs: Any,
    classes: Any = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """Gradients of x, y, a, b from those of value, f, g (``up``); and the cost (N, M)."""
    x, y = plain(x, options.dtype), plain(y, options.dtype)
    n, m = x.shape[0], y.shape[0]
    matrix, saved = kept[: n * m].view(n, m), kept[_even(n * m + n + m) :]
    weights, grad_a, grad_b = _solve_cuda.backward(matrix, a, b, init_f, f, g, saved, up, options.solver)
    call = _cost_call(x, y, kept, options.metric, classes)
    call.grad_cost = weights.data_ptr()
    if classes is not None and classes.grad is not None:
        labels, order = torch.sort(classes.labels, stable=True)
        every = torch.arange(classes.cost.shape[1] + 1, device=x.device)
        starts = torch.searchsorted(labels, every)
        call.order, call.starts, call.grad_class = (
            order.data_ptr(),
            starts.data_ptr(),
            classes.grad.data_ptr(),
        )
    _solve_cuda.kernels.cuda_weigh(call)
    dx = _one_side(call, weights, x, y, options.metric, False) if needs[0] else None
    dy = _one_side(call, weights, y, x, options.metric, True) if needs[1] else None
    return dx, dy, grad_a, grad_b, matrix


def _one_side(call: Any, weights: Tensor, z: Tensor, other: Tensor, metric: str, of_y: bool) -> Tensor:
    grad = empty(z, *z.shape)
    sums = None
    if metric != "l1":
        torch.mm(weights.t() if of_y else weights, other, out=grad)
        if metric in ("l2", "sqeuclidean"):
            sums = weights.sum(0 if of_y else 1)
    call.sums, call.grad, call.of_y = _address(sums), grad.data_ptr(), of_y
    _solve_cuda.kernels.cuda_finish_gradient(call)
    return grad
