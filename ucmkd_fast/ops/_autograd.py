"""Autograd around the doors for eager calls on plain tensors; `_registered` has the same for compilers and transforms.

A Function takes the record of its call, and behind it the tensors that need a gradient one by one: autograd does not
see into a record, and each further argument costs a small call time. Second derivatives go through the reference,
which is differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _pieces, _reference, _transforms
from ._devices import door
from ._problem import Convergence, Gradients, Kept, Needs, Options, Problem, Solution, Upstream

_KEPT = len(Kept._fields)
_MADE = slice(_KEPT - 2, _KEPT + 2)  # of what is saved: grad_x, grad_y; x, y


def differentiable(p: Problem) -> tuple[Tensor | None, ...]:
    """The tensors of a problem of features that can have a gradient, in the order of `Needs`."""
    x, y, a, b, _, _, class_cost, _, _, _ = p
    return x, y, a, b, class_cost


def needs_of(p: Problem) -> Needs:
    """Which of them need one."""
    x, y, a, b, _, _, class_cost, _, _, _ = p
    return Needs(
        x is not None and x.requires_grad,
        y is not None and y.requires_grad,
        a is not None and a.requires_grad,
        b is not None and b.requires_grad,
        class_cost is not None and class_cost.requires_grad,
    )


def leaves(p: Problem) -> list[Tensor]:
    """Those that need one, where autograd records."""
    if not torch.is_grad_enabled():
        return []
    x, y, a, b, _, _, class_cost, _, _, _ = p
    given = (x, y) if a is b is class_cost is None else (x, y, a, b, class_cost)
    return [z for z in given if z is not None and z.requires_grad]


def given_back(found: Sequence[Tensor | None], needs: Needs) -> tuple[Tensor | None, ...]:
    """What a backward returns: None for the call, and the gradients of the `leaves`."""
    return None, *(grad for grad, need in zip(found, needs, strict=True) if need)


class _OfCost(NamedTuple):
    """A call of `Sinkhorn`."""

    p: Problem
    options: Options


class Sinkhorn(torch.autograd.Function):
    """Of a cost (B?, N, M): the `Solution`."""

    @staticmethod
    def forward(ctx: Any, call: _OfCost, cost: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, ...]:
        """Contiguous tensors."""
        p, options = call
        needs = any(ctx.needs_input_grad)
        found, saved = door(cost).solve(p, options, needs)
        if needs:
            constants = (found.f, found.g) if options.grad == "envelope" else ()
            ctx.mark_non_differentiable(*constants, found.marginal_error, found.n_iter)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(cost, a, b, p.init_f, p.init_g, found.f, found.g, saved)
            ctx.options = options
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of the cost and of the masses."""
        cost, a, b, init_f, init_g, f, g, saved = ctx.saved_tensors
        options, up, needs = ctx.options, Upstream(*upstream[:4]), ctx.needs_input_grad
        if not up.any:
            return (None,) * 4
        p = Problem(cost=cost, a=a, b=b, init_f=init_f, init_g=init_g)
        if torch.is_grad_enabled():
            _transforms.refuse_second_order(options.grad)

            def again(cost: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, ...]:
                return _reference.solve(p._replace(cost=cost, a=a, b=b), options)[:4]

            return None, *_transforms.differentiate(again, (cost, a, b), up)
        found = door(cost).solve_backward(p, Kept(saved, f, g), up, options)
        return None, found.cost, found.a if needs[2] else None, found.b if needs[3] else None


def solve(p: Problem, options: Options) -> Solution:
    """By the kernels."""
    p = p.contiguous()
    return Solution(*_transforms.applied(Sinkhorn, _OfCost(p, options), p.cost, p.a, p.b))


class _OfFeatures(NamedTuple):
    """A call of `SinkhornLoss`."""

    p: Problem
    options: Options
    told: Convergence | None  # to fill in


class SinkhornLoss(torch.autograd.Function):
    """Of features x (N, D), y (M, D): the loss ()."""

    @staticmethod
    def forward(ctx: Any, call: _OfFeatures, *leaves: Tensor) -> Tensor:
        """Everything but features is contiguous."""
        p, options, told = call
        needs = needs_of(p)
        value, kept = door(leaves[0]).loss(p, options, needs, told)
        ctx.save_for_backward(*kept, *p)
        ctx.options, ctx.needs, ctx.made = options, needs, kept.block is None
        return value

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor | None, ...]:
        """Of features, masses and W."""
        saved, options, needs = ctx.saved_tensors, ctx.options, ctx.needs
        if torch.is_grad_enabled():
            return given_back(_differentiable(Problem(*saved[_KEPT:]), up, options), needs)
        if ctx.made:  # along with the loss
            dx, dy, x, y = saved[_MADE]
            if dy is None:
                return None, _pieces.times(dx, up, x.dtype)
            dy = _pieces.times(dy, up, y.dtype)
            return (None, dy) if dx is None else (None, _pieces.times(dx, up, x.dtype), dy)
        kept, p = Kept(*saved[:_KEPT]), Problem(*saved[_KEPT:])
        found = door(p.features[0]).loss_backward(p, kept, up, options, needs)
        return given_back(of_all(found, p), needs)


def of_all(found: Gradients, p: Problem) -> tuple[Tensor | None, ...]:
    """In the order of `Needs`; those of x and y in their own types."""
    (x, y), dx, dy = p.features, found.x, found.y
    dx, dy = None if dx is None else dx.to(x.dtype), None if dy is None else dy.to(y.dtype)
    return dx, dy, found.a, found.b, found.class_cost


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
        solved = _reference.solve(Problem(cost=cost, a=a, b=b, init_f=p.init_f, init_g=p.init_g), options)
        return (solved.loss(options.regularized),)

    return _transforms.differentiate(again, differentiable(p), (up,))


def loss(p: Problem, options: Options, told: Convergence | None) -> Tensor:
    """The loss () of one problem between features, by the kernels; ``told`` is filled in."""
    p = p.contiguous()
    if wanted := leaves(p):
        value: Tensor = _transforms.applied(SinkhornLoss, _OfFeatures(p, options, told), *wanted)
        return value
    value = door(p.features[0]).loss(p, options, Needs(), told)[0]
    return value
