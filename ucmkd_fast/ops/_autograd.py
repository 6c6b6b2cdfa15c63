"""Autograd around `_solve`: eager Functions, and the same calls registered with torch.library.

Eager calls on plain tensors take the Functions (a registered op costs more than ten times their
overhead); under a compiler, a dispatch mode or a functorch transform the registered ops run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import sinkhorn as reference
from . import _solve, cost

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def direct(*tensors: Tensor | None) -> bool:
    """Whether the eager Functions may run on these tensors."""
    return (
        not torch.compiler.is_compiling()
        and all(t is None or type(t) in _PLAIN for t in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_function_stack() == 0
    )


def reference_outputs(cost_matrix, a, b, init_f, reg, max_iter, tol, grad):
    """(value, dual, f, g) by the reference, differentiable to any order; a leading batch is a loop."""
    init = None if init_f is None else (init_f, init_f)
    if cost_matrix.dim() == 2:
        return reference.sinkhorn(
            cost_matrix, a, b, reg=reg, max_iter=max_iter, tol=tol, grad=grad, init=init
        )[:4]  # fmt: skip

    def one(mass, k):
        return mass if mass is None or mass.dim() == 1 else mass[k]

    outputs = [
        reference_outputs(c, one(a, k), one(b, k), one(init_f, k), reg, max_iter, tol, grad)
        for k, c in enumerate(cost_matrix)
    ]
    return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))


def _refuse_second_order(grad: str) -> None:
    if grad != "unrolled":
        raise NotImplementedError(
            f"double backward needs grad='unrolled', got grad={grad!r}: "
            "its gradient is not the derivative of a function that could be differentiated again"
        )


def _differentiate(outputs, inputs, upstream):
    """Gradients of the inputs that need one, with a graph; None for the others."""
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    pairs = [(o, u) for o, u in zip(outputs, upstream, strict=True) if u is not None and o.requires_grad]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs], wanted, [u for _, u in pairs], create_graph=True, allow_unused=True
        )
        if pairs
        else [None] * len(wanted)
    )
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


class Sinkhorn(torch.autograd.Function):
    """From a cost (B?, N, M): (value, dual, f, g, marginal_error, n_iter)."""

    @staticmethod
    def forward(ctx: Any, matrix, a, b, init_f, reg, max_iter, tol, grad):  # noqa: D102
        needs = any(ctx.needs_input_grad[:3])
        history = needs and grad == "unrolled"
        s = _solve.forward(matrix, a, b, init_f, reg, max_iter, tol, history, needs)
        ctx.set_materialize_grads(False)
        n_iter = s.info[..., 0]
        ctx.mark_non_differentiable(s.marginal_error, n_iter)
        if grad == "envelope":
            ctx.mark_non_differentiable(s.f, s.g)
        if needs:
            ctx.save_for_backward(matrix, a, b, init_f, s.f, s.g, s.saved, s.info)
            ctx.options = (reg, max_iter, tol, grad)
        return s.value, s.dual, s.f, s.g, s.marginal_error, n_iter

    @staticmethod
    def backward(ctx: Any, *upstream):  # noqa: D102
        saved = ctx.saved_tensors
        reg, max_iter, tol, grad = ctx.options
        upstream = upstream[:4]
        if all(u is None for u in upstream):
            return (None,) * 8
        if torch.is_grad_enabled():
            _refuse_second_order(grad)
            with torch.enable_grad():
                outputs = reference_outputs(*saved[:4], reg, max_iter, tol, grad)
            return *_differentiate(outputs, saved[:3], upstream), *[None] * 5
        d_cost, d_a, d_b = _solve.backward(*saved, *upstream, *ctx.options)
        needs = ctx.needs_input_grad
        return d_cost, d_a if needs[1] else None, d_b if needs[2] else None, *[None] * 5


class SinkhornLoss(torch.autograd.Function):
    """From features x (N, D), y (M, D): one number, ``which`` = 0 the transport value, 1 the dual value."""

    @staticmethod
    def forward(ctx: Any, x, y, a, b, init_f, metric, dtype, which, reg, max_iter, tol, grad):  # noqa: D102
        needs = any(ctx.needs_input_grad[:4])
        history = needs and grad == "unrolled"
        matrix, prepared = cost.forward(x, y, metric, dtype)
        s = _solve.forward(matrix, a, b, init_f, reg, max_iter, tol, history, needs)
        if needs:
            ctx.save_for_backward(x, y, a, b, init_f, matrix, *prepared, s.f, s.g, s.saved, s.info)
            ctx.options = (reg, max_iter, tol, grad)
            ctx.metric, ctx.which = metric, which
        return s[which]

    @staticmethod
    def backward(ctx: Any, upstream):  # noqa: D102
        x, y, a, b, init_f, matrix, px, py, norm_x, norm_y, f, g, saved, info = ctx.saved_tensors
        if torch.is_grad_enabled():
            _refuse_second_order(ctx.options[3])
            with torch.enable_grad():
                dtype = matrix.dtype
                again = reference.cost(x.to(dtype), y.to(dtype), ctx.metric)
                outputs = reference_outputs(again, a, b, init_f, *ctx.options)
            return *_differentiate(outputs[ctx.which : ctx.which + 1], (x, y, a, b), (upstream,)), *[None] * 8
        both = [None, None, None, None]
        both[ctx.which] = upstream
        d_cost, d_a, d_b = _solve.backward(matrix, a, b, init_f, f, g, saved, info, *both, *ctx.options)
        need_x, need_y, need_a, need_b = ctx.needs_input_grad[:4]
        prepared = cost.Prepared(px, py, norm_x, norm_y)
        dx, dy = cost.backward(prepared, ctx.metric, matrix, d_cost, need_x, need_y)
        return (
            None if dx is None else dx.to(x.dtype),
            None if dy is None else dy.to(y.dtype),
            d_a if need_a else None,
            d_b if need_b else None,
            *[None] * 8,
        )


# The same calls for torch.compile, export and functorch.


def register_backward(op, setup_context, backward):
    """Give a registered op its gradient; returns the callable to use.

    functorch does not transform the autograd formula of a registered op, only Functions with a
    ``setup_context``: so under its transforms the same three pieces run as such a Function.
    """
    torch.library.register_autograd(op._opoverload, backward, setup_context=setup_context)

    def forward(*args):
        return op(*args)

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
    }
    function = type(f"Transformed_{op._name}", (torch.autograd.Function,), members)

    def call(*args):
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
            return op(*args)
        return function.apply(*args)

    return call


@torch.library.custom_op("ucmkd_fast::sinkhorn_forward", mutates_args=())
def sinkhorn_forward(
    matrix: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    init_f: Tensor | None,
    reg: float,
    max_iter: int,
    tol: float,
    grad: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The forward call with everything that the backward needs as outputs."""
    matrix = matrix.contiguous()
    a, b, init_f = (None if t is None else t.contiguous() for t in (a, b, init_f))
    return tuple(_solve.forward(matrix, a, b, init_f, reg, max_iter, tol, grad == "unrolled", True))


@sinkhorn_forward.register_fake
def _(matrix, a, b, init_f, reg, max_iter, tol, grad):
    lead, (n, m) = matrix.shape[:-2], matrix.shape[-2:]
    size = _solve.saved_size(n, m, max_iter, grad == "unrolled")
    return (
        matrix.new_empty(lead),
        matrix.new_empty(lead),
        matrix.new_empty((*lead, n)),
        matrix.new_empty((*lead, m)),
        matrix.new_empty(lead),
        torch.empty((*lead, 2), dtype=torch.int64),
        matrix.new_empty((lead[0] if lead else 1) * size),
    )


@torch.library.custom_op("ucmkd_fast::sinkhorn_backward", mutates_args=())
def sinkhorn_backward(
    matrix: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    init_f: Tensor | None,
    f: Tensor,
    g: Tensor,
    saved: Tensor,
    info: Tensor,
    up_value: Tensor | None,
    up_dual: Tensor | None,
    up_f: Tensor | None,
    up_g: Tensor | None,
    reg: float,
    max_iter: int,
    tol: float,
    grad: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the cost and of the masses."""
    matrix = matrix.contiguous()
    a, b, init_f = (None if t is None else t.contiguous() for t in (a, b, init_f))
    return _solve.backward(
        matrix, a, b, init_f, f, g, saved, info, up_value, up_dual, up_f, up_g, reg, max_iter, tol, grad
    )


@sinkhorn_backward.register_fake
def _(matrix, a, b, init_f, f, g, saved, info, up_value, up_dual, up_f, up_g, reg, max_iter, tol, grad):
    return (
        matrix.new_empty(matrix.shape),
        torch.empty_like(f if a is None else a),
        torch.empty_like(g if b is None else b),
    )


def _no_further(name: str):
    """A backward for gradients themselves: refuses."""

    def backward(ctx, *_):
        raise NotImplementedError(
            f"{name} cannot be differentiated again under torch.compile or a functorch transform: "
            "take second derivatives eagerly, with torch.autograd.grad(..., create_graph=True)"
        )

    return backward


def _setup_nothing(ctx, inputs, output):
    pass


_sinkhorn_backward = register_backward(sinkhorn_backward, _setup_nothing, _no_further("sinkhorn's gradient"))


def _setup_context(ctx, inputs, output):
    matrix, a, b, init_f, *ctx.options = inputs
    _, _, f, g, error, info, saved = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(error, info, saved)
    ctx.save_for_backward(matrix, a, b, init_f, f, g, saved, info)


def _backward(ctx, *upstream):
    tensors = ctx.saved_tensors
    upstream = upstream[:4]
    if all(u is None for u in upstream):
        return (None,) * 8
    if ctx.options[3] == "envelope":
        upstream = (*upstream[:2], None, None)
    d_cost, d_a, d_b = _sinkhorn_backward(*tensors, *upstream, *ctx.options)
    return (
        d_cost,
        d_a if tensors[1] is not None else None,
        d_b if tensors[2] is not None else None,
        *[None] * 5,
    )


sinkhorn_transformed = register_backward(sinkhorn_forward, _setup_context, _backward)


@torch.library.custom_op("ucmkd_fast::cost_forward", mutates_args=())
def cost_forward(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The cost matrix, and the prepared features as the backward wants them (never views of the inputs)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    matrix, p = cost.forward(x, y, metric, dtype)
    px, py = (
        z.clone() if z.data_ptr() == o.data_ptr() else z for z, o in zip((p.x, p.y), (x, y), strict=True)
    )
    return matrix, px, py, p.norm_x, p.norm_y


@cost_forward.register_fake
def _(x, y, metric):
    n, m = x.shape[0], y.shape[0]
    dtype = torch.promote_types(x.dtype, torch.float32)
    return tuple(x.new_empty(shape, dtype=dtype) for shape in ((n, m), x.shape, y.shape, (n,), (m,)))


@torch.library.custom_op("ucmkd_fast::cost_backward", mutates_args=())
def cost_backward(
    matrix: Tensor, px: Tensor, py: Tensor, norm_x: Tensor, norm_y: Tensor, grad_cost: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients of both feature sets."""
    # The gradient may be shared by autograd: work on a copy.
    work = grad_cost.clone(memory_format=torch.contiguous_format)
    dx, dy = cost.backward(cost.Prepared(px, py, norm_x, norm_y), metric, matrix, work, True, True)
    assert dx is not None and dy is not None
    return dx, dy


@cost_backward.register_fake
def _(matrix, px, py, norm_x, norm_y, grad_cost, metric):
    return torch.empty_like(px), torch.empty_like(py)


_cost_backward_op = register_backward(cost_backward, _setup_nothing, _no_further("the cost's gradient"))


def _cost_setup(ctx, inputs, output):
    x, y, ctx.metric = inputs
    ctx.dtypes = x.dtype, y.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output)


def _cost_backward(ctx, grad_cost, *_):
    if grad_cost is None:
        return None, None, None
    dx, dy = _cost_backward_op(*ctx.saved_tensors, grad_cost, ctx.metric)
    return dx.to(ctx.dtypes[0]), dy.to(ctx.dtypes[1]), None


cost_transformed = register_backward(cost_forward, _cost_setup, _cost_backward)
