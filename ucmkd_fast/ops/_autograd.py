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

from . import _pieces, _reference, transforms
from ._devices import door
from ._problem import Convergence, Gradients, Kept, Needs, Options, Problem, Solution, Upstream

_KEPT, _MADE = len(Kept._fields), -2  # of what is kept, grad_x and grad_y are last
_FEATURES = Problem._fields.index("class_cost")  # what a problem without classes has comes before


def differentiable(p: Problem) -> tuple[Tensor | None, ...]:
    """The tensors of a problem of features that can have a gradient, in the order of `Needs`."""
    x, y, a, b, _, _, class_cost, _, _, _ = p
    return x, y, a, b, class_cost


_OF_FEATURES = {(x, y): Needs(x, y) for x in (False, True) for y in (False, True)}


def needed(p: Problem) -> tuple[Needs, list[Tensor]]:
    """Which of them need one, and those tensors; none where autograd does not record."""
    if not torch.is_grad_enabled():
        return _OF_FEATURES[False, False], []
    x, y = p.features
    if p.a is p.b is p.class_cost is None:  # in few steps: a small call must not feel it
        needs = _OF_FEATURES[x.requires_grad, y.requires_grad]
        return needs, [z for z, need in ((x, needs.x), (y, needs.y)) if need]
    given = differentiable(p)
    needs = Needs(*(z is not None and z.requires_grad for z in given))
    return needs, [z for z in given if z is not None and z.requires_grad]


def given_back(found: Sequence[Tensor | None], needs: Needs) -> tuple[Tensor | None, ...]:
    """What a backward returns: None for the call, and the gradients of the tensors that are `needed`."""
    return None, *(grad for grad, need in zip(found, needs, strict=True) if need)


class _OfCost(NamedTuple):
    """A call of `Sinkhorn`."""

    p: Problem
    options: Options


class Sinkhorn(torch.autograd.Function):
    """Of a cost (B?, N, M): the `Solution`."""

    @staticmethod
    def forward(
        ctx: Any, call: _OfCost, cost: Tensor, a: Tensor | None, b: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Contiguous tensors."""
        p, options = call
        needs = any(ctx.needs_input_grad)
        found: Solution
        found, saved = door(cost).solve(p, options, needs)
        if needs:
            constants = (found.f, found.g) if options.grad == "envelope" else ()
            ctx.mark_non_differentiable(*constants, found.marginal_error, found.n_iter)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(cost, a, b, p.init_f, p.init_g, found.f, found.g, saved)
            ctx.options = options
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of the cost and of the masses."""
        cost, a, b, init_f, init_g, f, g, saved = ctx.saved_tensors
        options, up, needs = ctx.options, Upstream(*upstream[:4]), ctx.needs_input_grad
        if not up.any:
            return (None,) * 4
        p = Problem(cost=cost, a=a, b=b, init_f=init_f, init_g=init_g)
        if torch.is_grad_enabled():
            transforms.refuse_second_order(options.grad)

            def again(cost: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, ...]:
                return _reference.solve(p._replace(cost=cost, a=a, b=b), options)[:4]

            return None, *transforms.differentiate(again, (cost, a, b), up)
        found = door(cost).solve_backward(p, Kept(saved, f, g), up, options)
        return None, found.cost, found.a if needs[2] else None, found.b if needs[3] else None


_solved = transforms.applied(Sinkhorn)


def solve(p: Problem, options: Options) -> Solution:
    """By the kernels."""
    p = p.contiguous()
    return Solution(*_solved(_OfCost(p, options), p.cost, p.a, p.b))


class _OfFeatures(NamedTuple):
    """A call of `SinkhornLoss`."""

    p: Problem
    options: Options
    needs: Needs
    told: Convergence | None  # to fill in


class SinkhornLoss(torch.autograd.Function):
    """Of features x (N, D), y (M, D): the loss ()."""

    @staticmethod
    def forward(ctx: Any, call: _OfFeatures, *leaves: Tensor) -> Tensor:
        """Everything but features is contiguous."""
        p, options, needs, told = call
        value: Tensor
        value, kept = door(leaves[0]).loss(p, options, needs, told)
        made = kept.block is None
        ctx.save_for_backward(*(kept[_MADE:] + p[:_FEATURES] if made else kept + p))
        ctx.settings = options, needs, made
        return value

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor | None, ...]:
        """Of features, masses and W."""
        saved, (options, needs, made) = ctx.saved_tensors, ctx.settings
        if torch.is_grad_enabled():
            p = Problem(*saved[-_MADE if made else _KEPT :])
            return given_back(_differentiable(p, up, options), needs)
        if made:  # along with the loss
            dx, dy, x, y, *_ = saved
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
    transforms.refuse_second_order(options.grad)
    metric = options.known_metric

    def again(
        x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, class_cost: Tensor | None
    ) -> tuple[Tensor, ...]:
        cost = _reference.cost(x, y, metric, options.dtype)
        if class_cost is not None and p.labels is not None:
            cost = cost + class_cost.index_select(1, p.labels)
        solved = _reference.solve(Problem(cost=cost, a=a, b=b, init_f=p.init_f, init_g=p.init_g), options)
        return (solved.loss(options.regularized),)

    return transforms.differentiate(again, differentiable(p), (up,))


_loss = transforms.applied(SinkhornLoss)


def loss(p: Problem, options: Options, told: Convergence | None) -> Tensor:
    """The loss () of one problem between features, by the kernels; ``told`` is filled in."""
    p = p.contiguous()
    needs, wanted = needed(p)
    if wanted:
        value: Tensor = _loss(_OfFeatures(p, options, needs, told), *wanted)
        return value
    value = door(p.features[0]).loss(p, options, needs, told)[0]
    return value
