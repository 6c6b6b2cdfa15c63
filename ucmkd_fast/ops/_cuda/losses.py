"""The loss between features on a GPU, value and gradient.

The cost is one matrix product and one epilogue, its gradient one pass and two products; in between it is `sinkhorn`.
What is kept for the backward is one block: the cost (N, M), the scales (N + M,), and what the solver keeps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _dual, not_converged
from .._classes import Classes, poisoned
from .._problem import Convergence, Gradients, Kept, Needs, Options, Problem
from ..cost import BY_DIFFERENCE
from . import _device as device
from . import costs
from .sinkhorn import Place, Saved, Solver

#: Elements of the cost up to which the gradient is made along with the loss: to issue the kernels takes longer than
#: they run, and twice as long in the thread that autograd has for the device.
SMALL = 1 << 18


class _Parts(NamedTuple):
    """The block that is kept, in parts."""

    matrix: Tensor  # (N, M)
    scale: Tensor  # (N + M,)
    saved: Tensor  # of the solver


def _parts(block: Tensor, n: int, m: int) -> _Parts:
    elements = n * m
    return _Parts(
        block[:elements].view(n, m), block[elements:][: n + m], block[device.even(elements + n + m) :]
    )


def _classes(p: Problem, options: Options, save: bool) -> Classes | None:
    if p.classes is None:
        return None
    class_cost, labels = p.classes
    apart = save and options.metric in BY_DIFFERENCE
    distance = device.empty(class_cost, len(class_cost), len(labels)) if apart else None
    return Classes(poisoned(class_cost, labels), labels, distance)


def loss(p: Problem, options: Options, needs: Needs, told: Convergence | None) -> tuple[Tensor, Kept]:
    """As `Door.loss`."""
    x, y = p.features
    n, m, save = len(x), len(y), any(needs)
    at_once = (needs.x or needs.y) and not (needs.a or needs.b or p.class_cost is not None) and n * m <= SMALL
    history = save and options.grad == "unrolled"
    size = device.even(n * m + n + m) + Saved((1, n, m), options, history).size
    block = device.empty(x, size, dtype=options.dtype)
    parts, classes = _parts(block, n, m), _classes(p, options, save)
    sets = costs.features(x, y, options.known_metric, options.dtype)
    call = costs.costs(sets, parts.scale, parts.matrix, classes)
    f, g = device.empty(block, n), device.empty(block, m)
    solver = Solver(p._replace(cost=parts.matrix), options, Place(parts.saved, f, g, (1, n, m), history))
    found = solver.forward()
    value = found.loss(options.regularized)
    if told is not None:
        told.take(found.marginal_error, found.n_iter)
    else:
        metric = options.metric if classes is None else None
        not_converged.look(found.marginal_error, found.value, p.a, options, metric)
    if not at_once:
        return value, Kept(block, f, g, distance=None if classes is None else classes.distance)
    up = _dual.of_loss(torch.ones_like(value), p, Kept(f=f, g=g), options, (n, m))
    weights = solver.backward(up).cost
    assert weights is not None
    dx, dy = costs.gradients(call, sets, weights, (needs.x, needs.y))
    return value, Kept(grad_x=dx, grad_y=dy)


def loss_backward(p: Problem, kept: Kept, up: Tensor, options: Options, needs: Needs) -> Gradients:
    """As `Door.loss_backward`."""
    assert kept.block is not None and kept.f is not None and kept.g is not None
    x, y = p.features
    n, m = len(x), len(y)
    parts, classes, d_classes = _parts(kept.block, n, m), None, None
    if p.classes is not None:
        classes = Classes(*p.classes, kept.distance)
    sets = costs.features(x, y, options.known_metric, options.dtype)
    call: Any = costs.call(sets, costs.scales_in(parts.scale, n), parts.matrix, classes)
    solved = p._replace(cost=parts.matrix)
    solver = Solver(
        solved, options, Place(parts.saved, kept.f, kept.g, (1, n, m), options.grad == "unrolled")
    )
    arriving = _dual.of_loss(up, p, kept, options, (n, m))
    found = solver.backward(arriving)
    assert found.cost is not None
    if classes is not None and needs.class_cost:
        d_classes = torch.empty_like(classes.cost)
        sorted_labels = costs.sorted_columns(classes)  # read by the call below
        costs.to_classes(call, sorted_labels, d_classes)
    dx, dy = costs.gradients(call, sets, found.cost, (needs.x, needs.y))
    grad_a, grad_b = _dual.mass_gradients(solved, kept, arriving, (found.a, found.b), options, False)
    return Gradients(x=dx, y=dy, a=grad_a, b=grad_b, class_cost=d_classes)
