"""Autograd around the doors for eager calls on plain tensors; `_registered` has the same for compilers and transforms.

Second derivatives go through the reference, which is differentiable to any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _pieces, _reference, _transforms
from ._devices import door
from ._problem import Convergence, Gradients, Kept, Needs, Options, Problem, Solution, Upstream


class Sinkhorn(torch.autograd.Function):
    """From a cost (B?, N, M): the `Solution`."""

    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, a: Tensor | None, b: Tensor | None, init_f: Tensor | None, init_g: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Contiguous tensors."""
        needs = any(ctx.needs_input_grad)
        p = Problem(cost, a=a, b=b, init_f=init_f, init_g=init_g)
        found, saved = door(cost).solve(p, options, needs)
        if needs:
            constants = (found.f, found.g) if options.grad == "envelope" else ()
            ctx.mark_non_differentiable(*constants, found.marginal_error, found.n_iter)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(cost, a, b, init_f, init_g, found.f, found.g, saved)
            ctx.options = options
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of the cost and of the masses."""
        cost, a, b, init_f, init_g, f, g, saved = ctx.saved_tensors
        options, up, needs = ctx.options, Upstream(*upstream[:4]), ctx.needs_input_grad
        if not up.any:
            return (None,) * 6
        if torch.is_grad_enabled():
            _transforms.refuse_second_order(options.grad)

            def again(cost: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, ...]:
                return _reference.solve(Problem(cost, a=a, b=b, init_f=init_f, init_g=init_g), options)[:4]

            return *_transforms.differentiate(again, (cost, a, b), up), None, None, None
        p = Problem(cost, a=a, b=b, init_f=init_f, init_g=init_g)
        found = door(cost).solve_backward(p, Kept(saved, f, g), up, options)
        return found.cost, found.a if needs[1] else None, found.b if needs[2] else None, None, None, None


def solve(p: Problem, options: Options) -> Solution:
    """By the kernels."""
    p = p.contiguous()
    return Solution(*Sinkhorn.apply(p.cost, p.a, p.b, p.init_f, p.init_g, options))


class SinkhornLoss(torch.autograd.Function):
    """From features x (N, D), y (M, D): the loss ()."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, class_cost: Tensor | None,
        labels: Tensor | None, init_f: Tensor | None, init_g: Tensor | None, options: Options,
        told: Convergence | None,
    ) -> Tensor:  # fmt: skip
        """Everything but features is contiguous."""
        p = Problem(None, x, y, a, b, init_f, init_g, class_cost, labels)
        value, kept = door(x).loss(p, options, Needs(*ctx.needs_input_grad[:5]), told)
        ctx.save_for_backward(x, y, a, b, init_f, init_g, class_cost, labels, *kept)
        ctx.options = options
        return value

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor | None, ...]:
        """Of features, masses and W."""
        x, y, a, b, init_f, init_g, class_cost, labels, *saved = ctx.saved_tensors
        kept, options, none = Kept(*saved), ctx.options, (None,) * 5
        p = Problem(None, x, y, a, b, init_f, init_g, class_cost, labels)
        if torch.is_grad_enabled():
            return *_differentiable(p, up, options), *none
        if kept.block is None:  # they were made along with the loss
            dx = None if kept.grad_x is None else _pieces.times(kept.grad_x, up, x.dtype)
            dy = None if kept.grad_y is None else _pieces.times(kept.grad_y, up, y.dtype)
            return dx, dy, None, None, None, *none
        needs = Needs(*ctx.needs_input_grad[:5])
        found = door(x).loss_backward(p, kept, up, options, needs)
        dx, dy = of_features(found, p)
        return dx, dy, found.a if needs.a else None, found.b if needs.b else None, found.class_cost, *none


def of_features(found: Gradients, p: Problem) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and y in their own types."""
    (x, y), dx, dy = p.features, found.x, found.y
    return None if dx is None else dx.to(x.dtype), None if dy is None else dy.to(y.dtype)


def _differentiable(p: Problem, up: Tensor, options: Options) -> list[Tensor | None]:
    """Gradients of a loss of features through the reference, with a graph."""
    _transforms.refuse_second_order(options.grad)
    metric = options.metric
    assert metric is not None

    def again(
        x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, class_cost: Tensor | None
    ) -> tuple[Tensor, ...]:
        cost = _reference.cost(x, y, metric, options.dtype)
        if class_cost is not None and p.labels is not None:
            cost = cost + class_cost.index_select(1, p.labels)
        solved = _reference.solve(Problem(cost, a=a, b=b, init_f=p.init_f, init_g=p.init_g), options)
        return (solved.loss(options.regularized),)

    return _transforms.differentiate(again, (*p.features, p.a, p.b, p.class_cost), (up,))


def loss(p: Problem, options: Options, told: Convergence | None) -> Tensor:
    """The loss () of one problem between features, by the kernels; ``told`` is filled in."""
    x, y = p.features
    p = p.contiguous()
    _, _, _, a, b, init_f, init_g, class_cost, labels, _ = p
    if _transforms.recorded(x, y, a, b, class_cost):
        return SinkhornLoss.apply(x, y, a, b, class_cost, labels, init_f, init_g, options, told)
    value: Tensor = door(x).loss(p, options, Needs(), told)[0]
    return value
