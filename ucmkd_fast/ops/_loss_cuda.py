"""The loss between features on a CUDA device: the twin of `_loss`.

The cost is one matrix product and one epilogue, its gradient one pass and two products; in between it is
`_solve_cuda`. What is kept for the backward is one block: the cost (N, M), the scales (N + M,), and what the solver
keeps.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _cost_cuda, _not_converged, _solve_cuda
from ._solve_cuda import _even


def _cost_call(features: _cost_cuda.Features, kept: Tensor, classes: Any) -> Any:
    n, m = features.x.shape[0], features.y.shape[0]
    scales = kept[n * m : n * m + n], kept[n * m + n : n * m + n + m]
    return _cost_cuda.call(features, scales, kept, classes)


def forward(
    x: Tensor, y: Tensor, a, b, init_f, options: Any, save: bool, classes: Any = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss (), the potentials (N,), (M,), and what the backward needs."""
    features = _cost_cuda.features(x, y, options.metric, options.dtype)
    n, m = x.shape[0], y.shape[0]
    solver = options.solver
    history = save and solver.grad == "unrolled"
    head = _even(n * m + n + m)
    size = head + _solve_cuda.saved_size(1, n, m, solver.max_iter, history)
    kept = _solve_cuda.empty(x, size, dtype=options.dtype)
    matrix = kept[: n * m].view(n, m)
    if options.metric != "l1":
        _cost_cuda.product(features.x, features.y, matrix)
    call = _cost_call(features, kept, classes)
    _solve_cuda.kernels.cuda_scales(call)
    _solve_cuda.kernels.cuda_cost(call)
    value, dual, f, g, error, n_iter, _ = _solve_cuda.forward(matrix, a, b, init_f, solver, save, kept[head:])
    if options.convergence is not None:
        options.convergence.take(error, n_iter)
    _not_converged.look_at_loss(error, value, a, options, classes is not None)
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
    features = _cost_cuda.features(x, y, options.metric, options.dtype)
    n, m = x.shape[0], y.shape[0]
    matrix, saved = kept[: n * m].view(n, m), kept[_even(n * m + n + m) :]
    weights, grad_a, grad_b = _solve_cuda.backward(matrix, a, b, init_f, f, g, saved, up, options.solver)
    call = _cost_call(features, kept, classes)
    call.grad_cost = weights.data_ptr()
    if classes is not None and classes.grad is not None:
        sorted_labels = _cost_cuda.sorted_columns(classes)
        _cost_cuda.to_classes(call, sorted_labels, classes.grad)
    _solve_cuda.kernels.cuda_weigh(call)
    dx, dy = _cost_cuda.gradients(call, features, weights, needs[:2])
    return dx, dy, grad_a, grad_b, matrix
