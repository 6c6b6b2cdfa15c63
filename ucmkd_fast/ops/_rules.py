"""What the registered ops do under ``vmap``, and where their gradients are differentiated again.

A rule gets the op's callable, what a Function's ``vmap`` gets, and the arguments. A gradient of a gradient arises with
a transform inside and autograd around it; transforms inside each other take `_by_torch` from the start.
"""

from __future__ import annotations

from ..reference import sinkhorn as reference
from . import _by_torch, _solve, _solve_cuda, _transforms


def forward_rule(call, info, in_dims, *args):
    """Of `_autograd.sinkhorn_forward`."""
    tensors, options = args[:5], args[5:]
    fold = _transforms.Fold(info, in_dims, tensors[0], 2)
    matrix, a, b, init_f, init_g = tensors
    folded = [fold(matrix, in_dims[0], 2)]
    for mass, d in ((a, in_dims[1]), (b, in_dims[2])):  # shared ones stay so
        folded.append(mass if mass is None or (d is None and mass.dim() == 1) else fold(mass, d, 1))
    folded += [fold(init_f, in_dims[3], 1), fold(init_g, in_dims[4], 1)]
    *outputs, saved = call(*folded, *options)
    return (*map(fold.back, outputs), fold.divide(saved)), (0,) * 7


def backward_rule(call, info, in_dims, *args):
    """Of `_autograd.sinkhorn_backward`."""
    tensors, options = args[:12], args[12:]
    if in_dims[7] is None:  # one solution, several gradients of it, as for a Jacobian
        return _transforms.one_by_one(call, info, in_dims, *args)
    matrix, a, b = tensors[:3]
    fold = _transforms.Fold(info, in_dims, matrix, 2)
    # Masses that problems share have a gradient for each.
    ranks = (2, 1, 1, 1, 1, 1, 1, None, 0, 0, 1, 1)
    folded = [fold(t, d, rank) for t, d, rank in zip(tensors, in_dims, ranks, strict=False)]
    d_cost, d_a, d_b = call(*folded, *options)
    found, dims = [fold.back(d_cost)], [0]
    for mass, d, grad in ((a, in_dims[1], d_a), (b, in_dims[2], d_b)):
        if mass is None:
            found, dims = [*found, grad], [*dims, None]
            continue
        grad, own = fold.back(grad), mass.dim() - (d is not None)
        found, dims = [*found, grad.sum(1) if own < grad.dim() - 1 else grad], [*dims, 0]
    return tuple(found), tuple(dims)


def cost_rule(call, info, in_dims, x, y, metric):
    """Of `_autograd.cost_forward`."""
    if not _solve_cuda.runs_on(x):  # of one problem at a time on the CPU
        return _transforms.one_by_one(call, info, in_dims, x, y, metric)
    fold = _transforms.Fold(info, in_dims, x, 2)
    matrix, scale = call(fold(x, in_dims[0], 2), fold(y, in_dims[1], 2), metric)
    return (fold.back(matrix), fold.divide(scale)), (0, 0)


def cost_backward_rule(call, info, in_dims, x, y, scale, matrix, grad_cost, metric):
    """Of `_autograd.cost_backward`."""
    if in_dims[2] is None or not _solve_cuda.runs_on(x):
        return _transforms.one_by_one(call, info, in_dims, x, y, scale, matrix, grad_cost, metric)
    fold = _transforms.Fold(info, in_dims, x, 2)
    tensors, ranks = (x, y, scale, matrix, grad_cost), (2, 2, None, 2, 2)
    folded = [fold(t, d, rank) for t, d, rank in zip(tensors, in_dims, ranks, strict=False)]
    return tuple(map(fold.back, call(*folded, metric))), (0, 0)


def gradient_setup(ctx, inputs, output):
    """Keeps what `gradient_backward` reads."""
    ctx.set_materialize_grads(False)
    *tensors, ctx.reg, ctx.max_iter, ctx.tol, ctx.grad, ctx.accelerate = inputs
    ctx.save_for_backward(*tensors[:4], *tensors[8:])


def gradient_backward(ctx, *upstream):
    """Of the gradients that `_autograd.sinkhorn_backward` gives, by torch's own operations."""
    options = _solve.Options(ctx.reg, ctx.max_iter, ctx.tol, ctx.grad, ctx.accelerate)
    _transforms.refuse_second_order(options.grad)
    matrix, a, b, init_f, *of_outputs = ctx.saved_tensors

    def outputs(matrix, a, b):
        return _by_torch.solve(matrix, a, b, init_f, options)[:4]

    def gradients(matrix, a, b, *of_outputs):
        return _transforms.vjp(outputs, (matrix, a, b), of_outputs)

    d = _transforms.vjp(gradients, (matrix, a, b, *of_outputs), upstream)
    return *d[:3], *[None] * 5, *d[3:], *[None] * 5


def cost_gradient_setup(ctx, inputs, output):
    """Keeps what `cost_gradient_backward` reads."""
    ctx.set_materialize_grads(False)
    x, y, _, _, grad_cost, ctx.metric = inputs
    ctx.save_for_backward(x, y, grad_cost)


def cost_gradient_backward(ctx, *upstream):
    """Of the gradients that `_autograd.cost_backward` gives."""
    x, y, grad_cost = ctx.saved_tensors

    def cost_of(x, y):
        return (reference.cost(x, y, ctx.metric),)

    def gradients(x, y, grad_cost):
        wide = x.to(grad_cost.dtype), y.to(grad_cost.dtype)
        return _transforms.vjp(cost_of, wide, (grad_cost,))

    d_x, d_y, d_grad = _transforms.vjp(gradients, (x, y, grad_cost), upstream)
    return d_x, d_y, None, None, d_grad, None
