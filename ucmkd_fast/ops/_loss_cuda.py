"""The loss between features on a CUDA device: the twin of `_loss`.

The cost is one matrix product and one epilogue, its gradient one pass and two products; in between it is
`_solve_cuda`. What is kept for the backward is one block: the cost (N, M), the scales (N + M,), and what the solver
keeps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _cost_cuda, _not_converged, _solve_cuda
from ._solve_cuda import _even


class _Cost(NamedTuple):
    """A cost from features, on the block that is kept."""

    features: _cost_cuda.Features
    call: Any  # of its kernels
    matrix: Tensor  # (N, M)
    saved: Tensor  # of the solver, behind it


def _cost_of(x: Tensor, y: Tensor, kept: Tensor, options: Any, classes: Any) -> _Cost:
    features = _cost_cuda.features(x, y, options.metric, options.dtype)
    n, m = x.shape[0], y.shape[0]
    call = _cost_cuda.call(features, _cost_cuda.scales_in(kept, n, n * m), kept, classes)
    return _Cost(features, call, kept[: n * m].view(n, m), kept[_even(n * m + n + m) :])


def _made(x: Tensor, y: Tensor, options: Any, history: bool, classes: Any) -> tuple[Tensor, _Cost]:
    """The block that is kept, and the cost on it."""
    n, m, solver = x.shape[0], y.shape[0], options.solver
    size = _even(n * m + n + m) + _solve_cuda.saved_size(1, n, m, solver.max_iter, history)
    kept = _solve_cuda.empty(x, size, dtype=options.dtype)
    cost = _cost_of(x, y, kept, options, classes)
    if options.metric != "l1":
        _cost_cuda.product(cost.features.x, cost.features.y, cost.matrix)
    _solve_cuda.kernels.cuda_scales(cost.call)
    _solve_cuda.kernels.cuda_cost(cost.call)
    return kept, cost


def _solved(
    cost: _Cost, a, b, init_f, options: Any, history: bool, classes: Any
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """The loss (), the potentials (N,), (M,), and the solver's call with its work space."""
    n, m = cost.matrix.shape
    f, g = _solve_cuda.empty(cost.matrix, n), _solve_cuda.empty(cost.matrix, m)
    solver = _solve_cuda.call_on(cost.matrix, a, b, init_f, f, g, cost.saved, options.solver, history)
    value, dual, error, n_iter = _solve_cuda.run_forward(solver[0], cost.matrix, a, b)
    if options.convergence is not None:
        options.convergence.take(error, n_iter)
    _not_converged.look_at_loss(error, value, a, options, classes is not None)
    return (dual if options.regularized else value), f, g, solver


def _of_features(
    cost: _Cost, weights: Tensor, needs: Any, classes: Any
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and y from that of the cost."""
    if classes is not None and classes.grad is not None:
        sorted_labels = _cost_cuda.sorted_columns(classes)
        _cost_cuda.to_classes(cost.call, sorted_labels, classes.grad)
    return _cost_cuda.gradients(cost.call, cost.features, weights, needs[:2])


def forward(
    x: Tensor, y: Tensor, a, b, init_f, options: Any, save: bool, classes: Any = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss (), the potentials (N,), (M,), and what the backward needs."""
    history = save and options.solver.grad == "unrolled"
    kept, cost = _made(x, y, options, history, classes)
    loss, f, g, _ = _solved(cost, a, b, init_f, options, history, classes)
    return loss, f, g, kept


def with_gradient(
    x: Tensor, y: Tensor, a, b, init_f, options: Any, needs: Any, upstream_of: Any
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss () and its gradients of x and y; ``upstream_of(kept, f, g, one)`` gives those of value, f, g."""
    history = options.solver.grad == "unrolled"
    kept, cost = _made(x, y, options, history, None)
    loss, f, g, solver = _solved(cost, a, b, init_f, options, history, None)
    up = upstream_of(kept, f, g, torch.ones_like(loss))
    weights, *_ = _solve_cuda.run_backward(solver[0], cost.matrix, cost.saved, up, options.solver)
    return loss, *_of_features(cost, weights, needs, None)


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
    cost = _cost_of(x, y, kept, options, classes)
    weights, grad_a, grad_b = _solve_cuda.backward(
        cost.matrix, a, b, init_f, f, g, cost.saved, up, options.solver
    )
    return *_of_features(cost, weights, needs, classes), grad_a, grad_b, cost.matrix
