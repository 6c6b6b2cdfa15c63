"""The calls of Sinkhorn and of costs for torch.compile, export and torch.func: registered with torch.library.

A registered op costs more than ten times the overhead of an eager Function (`_autograd`). What each does under ``vmap``
stands beside it: a rule gets the op's callable, what a Function's ``vmap`` gets, and the arguments. Where gradients are
differentiated again, with a transform inside and autograd around it, torch's own operations run; transforms inside each
other take `_by_torch` from the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import sinkhorn as reference
from . import _by_torch, not_converged, transforms
from ._devices import door
from ._problem import Kept, Options, Problem, Solution, Upstream
from .cost import dtype_of_cost

Rule = tuple[
    tuple[Tensor, ...], Any
]  # what a vmap rule returns: outputs, and where their mapped dimension is


def _options(cost: Tensor, *values: Any) -> Options:
    """From what the ops take one by one."""
    reg, max_iter, tol, grad, accelerate, *rho = values
    unbalanced = None if min(rho) == math.inf else (rho[0], rho[1])
    return Options(reg, max_iter, tol, grad, accelerate, cost.dtype, unbalanced=unbalanced)


# Sinkhorn on a cost


@torch.library.custom_op("ucmkd_fast::sinkhorn_forward", mutates_args=())
def sinkhorn_forward(
    matrix: Tensor, a: Tensor | None, b: Tensor | None, init_f: Tensor | None, init_g: Tensor | None, reg: float,
    max_iter: int, tol: float, grad: str, accelerate: str | None, rho_a: float, rho_b: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The forward call with everything that the backward needs as outputs."""
    options = _options(matrix, reg, max_iter, tol, grad, accelerate, rho_a, rho_b)
    p = _contiguous(Problem(cost=matrix, a=a, b=b, init_f=init_f, init_g=init_g))
    found, saved = door(matrix).solve(p, options, True)
    not_converged.look(found.marginal_error, found.value, a, options)
    return *found, saved


@sinkhorn_forward.register_fake
def _(
    matrix: Tensor, a: Tensor | None, b: Tensor | None, init_f: Tensor | None, init_g: Tensor | None, reg: float,
    max_iter: int, tol: float, grad: str, accelerate: str | None, rho_a: float, rho_b: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    lead, (n, m) = matrix.shape[:-2], matrix.shape[-2:]
    value, dual, error = matrix.new_empty(lead), matrix.new_empty(lead), matrix.new_empty(lead)
    f, g = matrix.new_empty((*lead, n)), matrix.new_empty((*lead, m))
    options = _options(matrix, reg, max_iter, tol, grad, accelerate, rho_a, rho_b)
    saved = matrix.new_empty(door(matrix).saved_size(matrix.shape, options, grad == "unrolled"))
    return value, dual, f, g, error, matrix.new_empty(lead, dtype=torch.int64), saved


def _contiguous(p: Problem) -> Problem:
    p = p.contiguous()
    init_f, init_g = (None if z is None else z.contiguous() for z in (p.init_f, p.init_g))
    return p._replace(init_f=init_f, init_g=init_g)


@torch.library.custom_op("ucmkd_fast::sinkhorn_backward", mutates_args=())
def sinkhorn_backward(
    matrix: Tensor, a: Tensor | None, b: Tensor | None, init_f: Tensor | None, init_g: Tensor | None, f: Tensor,
    g: Tensor, saved: Tensor, up_value: Tensor | None, up_dual: Tensor | None, up_f: Tensor | None,
    up_g: Tensor | None, reg: float, max_iter: int, tol: float, grad: str, accelerate: str | None, rho_a: float,
    rho_b: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the cost and of the masses (empty where they are not given)."""
    options = _options(matrix, reg, max_iter, tol, grad, accelerate, rho_a, rho_b)
    p = _contiguous(Problem(cost=matrix, a=a, b=b, init_f=init_f, init_g=init_g))
    up = Upstream(up_value, up_dual, up_f, up_g)
    found = door(matrix).solve_backward(p, Kept(saved, f, g), up, options)
    none = matrix.new_empty(0)
    return found.cost, none if found.a is None else found.a, none.clone() if found.b is None else found.b


@sinkhorn_backward.register_fake
def _(
    matrix: Tensor, a: Tensor | None, b: Tensor | None, init_f: Tensor | None, init_g: Tensor | None, f: Tensor,
    g: Tensor, saved: Tensor, up_value: Tensor | None, up_dual: Tensor | None, up_f: Tensor | None,
    up_g: Tensor | None, reg: float, max_iter: int, tol: float, grad: str, accelerate: str | None, rho_a: float,
    rho_b: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    none = matrix.new_empty(0)
    return (
        matrix.new_empty(matrix.shape),
        none if a is None else a.new_empty(a.shape),
        none.clone() if b is None else b.new_empty(b.shape),
    )


def _forward_rule(call: Any, info: Any, in_dims: Sequence[int | None], *args: Any) -> Rule:
    tensors, options = args[:5], args[5:]
    matrix, a, b, init_f, init_g = tensors
    fold = transforms.Fold(info, in_dims, matrix, 2)
    folded = [fold(matrix, in_dims[0], 2)]
    for mass, d in ((a, in_dims[1]), (b, in_dims[2])):  # shared ones stay so
        folded.append(mass if mass is None or (d is None and mass.dim() == 1) else fold(mass, d, 1))
    folded += [fold(init_f, in_dims[3], 1), fold(init_g, in_dims[4], 1)]
    *outputs, saved = call(*folded, *options)
    return (*map(fold.back, outputs), fold.divide(saved)), (0,) * 7


def _backward_rule(call: Any, info: Any, in_dims: Sequence[int | None], *args: Any) -> Rule:
    tensors, options = args[:12], args[12:]
    if in_dims[7] is None:  # one solution, several gradients of it, as for a Jacobian
        return transforms.one_by_one(call, info, in_dims, *args)
    matrix, a, b = tensors[:3]
    fold = transforms.Fold(info, in_dims, matrix, 2)
    # Masses that problems share have a gradient for each.
    ranks = (2, 1, 1, 1, 1, 1, 1, None, 0, 0, 1, 1)
    folded = [fold(t, d, rank) for t, d, rank in zip(tensors, in_dims, ranks, strict=False)]
    d_cost, d_a, d_b = call(*folded, *options)
    found: list[Tensor] = [fold.back(d_cost)]
    dims: list[int | None] = [0]
    for mass, d, grad in ((a, in_dims[1], d_a), (b, in_dims[2], d_b)):
        if mass is None:
            found, dims = [*found, grad], [*dims, None]
            continue
        grad, own = fold.back(grad), mass.dim() - (d is not None)
        found, dims = [*found, grad.sum(1) if own < grad.dim() - 1 else grad], [*dims, 0]
    return tuple(found), tuple(dims)


def _gradient_setup(ctx: Any, inputs: Any, output: Any) -> None:
    """Keeps what `_gradient_backward` reads."""
    ctx.set_materialize_grads(False)
    tensors, ctx.options = inputs[:12], inputs[12:]
    ctx.save_for_backward(*tensors[:4], *tensors[8:])


def _gradient_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of the gradients that `sinkhorn_backward` gives, by torch's own operations."""
    matrix, a, b, init_f, *of_outputs = ctx.saved_tensors
    options = _options(matrix, *ctx.options)
    transforms.refuse_second_order(options.grad)

    def outputs(matrix: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, ...]:
        return _by_torch.solve(Problem(cost=matrix, a=a, b=b, init_f=init_f), options)[:4]

    def gradients(
        matrix: Tensor, a: Tensor | None, b: Tensor | None, *of_outputs: Tensor | None
    ) -> list[Tensor | None]:
        return transforms.vjp(outputs, (matrix, a, b), of_outputs)

    d = transforms.vjp(gradients, (matrix, a, b, *of_outputs), upstream)
    return *d[:3], *[None] * 5, *d[3:], *[None] * len(ctx.options)


_backward_call = transforms.register_backward(
    sinkhorn_backward, _gradient_setup, _gradient_backward, _backward_rule
)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    matrix, a, b, init_f, init_g, *ctx.options = inputs
    _, _, f, g, error, n_iter, saved = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(error, n_iter, saved)
    ctx.save_for_backward(matrix, a, b, init_f, init_g, f, g, saved)


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    upstream = upstream[:4]
    if all(u is None for u in upstream):
        return (None,) * (5 + len(ctx.options))
    if ctx.options[3] == "envelope":
        upstream = (*upstream[:2], None, None)
    d_cost, d_a, d_b = _backward_call(*tensors, *upstream, *ctx.options)
    return (
        d_cost,
        None if tensors[1] is None else d_a,
        None if tensors[2] is None else d_b,
        *[None] * (2 + len(ctx.options)),
    )


_forward_call = transforms.register_backward(sinkhorn_forward, _setup, _backward, _forward_rule)


def solve(p: Problem, options: Options) -> Solution:
    """Of a given cost; differentiable once more by a transform around it."""
    reg, max_iter, tol, grad, accelerate, *_ = options
    found = _forward_call(
        p.cost, p.a, p.b, p.init_f, p.init_g, reg, max_iter, tol, grad, accelerate, *options.rho
    )
    return Solution(*found[:6])


# Costs from features


@torch.library.custom_op("ucmkd_fast::cost_forward", mutates_args=())
def cost_forward(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The cost matrix (N, M), and the scales of the features (N + M,) for the backward; on a GPU of batches too."""
    found: tuple[Tensor, Tensor] = door(x).cost(x, y, metric)
    return found


@cost_forward.register_fake
def _(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    lead, n, m = x.shape[:-2], x.shape[-2], y.shape[-2]
    dtype = dtype_of_cost(x.dtype)
    return x.new_empty((*lead, n, m), dtype=dtype), x.new_empty((lead.numel() * (n + m),), dtype=dtype)


@torch.library.custom_op("ucmkd_fast::cost_backward", mutates_args=())
def cost_backward(
    x: Tensor, y: Tensor, scale: Tensor, matrix: Tensor, grad_cost: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients of both feature sets, in the cost's dtype."""
    found: tuple[Tensor, Tensor] = door(x).cost_backward(x, y, scale, matrix, grad_cost, metric)
    return found


@cost_backward.register_fake
def _(
    x: Tensor, y: Tensor, scale: Tensor, matrix: Tensor, grad_cost: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    return matrix.new_empty(x.shape), matrix.new_empty(y.shape)


def _cost_rule(call: Any, info: Any, in_dims: Sequence[int | None], *args: Any) -> Rule:
    x, y, metric = args
    if not door(x).BATCHED:
        return transforms.one_by_one(call, info, in_dims, *args)
    fold = transforms.Fold(info, in_dims, x, 2)
    matrix, scale = call(fold(x, in_dims[0], 2), fold(y, in_dims[1], 2), metric)
    return (fold.back(matrix), fold.divide(scale)), (0, 0)


def _cost_backward_rule(call: Any, info: Any, in_dims: Sequence[int | None], *args: Any) -> Rule:
    *tensors, metric = args
    if in_dims[2] is None or not door(tensors[0]).BATCHED:
        return transforms.one_by_one(call, info, in_dims, *args)
    fold = transforms.Fold(info, in_dims, tensors[0], 2)
    folded = [fold(t, d, rank) for t, d, rank in zip(tensors, in_dims, (2, 2, None, 2, 2), strict=False)]
    return tuple(map(fold.back, call(*folded, metric))), (0, 0)


def _cost_gradient_setup(ctx: Any, inputs: Any, output: Any) -> None:
    """Keeps what `_cost_gradient_backward` reads."""
    ctx.set_materialize_grads(False)
    x, y, _, _, grad_cost, ctx.metric = inputs
    ctx.save_for_backward(x, y, grad_cost)


def _cost_gradient_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of the gradients that `cost_backward` gives."""
    x, y, grad_cost = ctx.saved_tensors

    def cost_of(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (reference.cost(x, y, ctx.metric),)

    def gradients(x: Tensor, y: Tensor, grad_cost: Tensor) -> list[Tensor | None]:
        wide = x.to(grad_cost.dtype), y.to(grad_cost.dtype)
        return transforms.vjp(cost_of, wide, (grad_cost,))

    d_x, d_y, d_grad = transforms.vjp(gradients, (x, y, grad_cost), upstream)
    return d_x, d_y, None, None, d_grad, None


_cost_backward_call = transforms.register_backward(
    cost_backward, _cost_gradient_setup, _cost_gradient_backward, _cost_backward_rule
)


def _cost_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, y, ctx.metric = inputs
    matrix, scale = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(scale)
    ctx.save_for_backward(x, y, scale, matrix)


def _cost_backward(ctx: Any, grad_cost: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_cost is None:
        return None, None, None
    x, y, scale, matrix = ctx.saved_tensors
    dx, dy = _cost_backward_call(x, y, scale, matrix, grad_cost, ctx.metric)
    return dx.to(x.dtype), dy.to(y.dtype), None


_cost_call = transforms.register_backward(cost_forward, _cost_setup, _cost_backward, _cost_rule)


def cost(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """The cost (B?, N, M), a batch where the door has costs of batches; in all derivatives."""
    matrix: Tensor = _cost_call(x, y, metric)[0]
    return matrix
