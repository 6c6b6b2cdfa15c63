"""Autograd around `_solve`: eager Functions, and the same calls registered with torch.library.

Eager calls on plain tensors take the Functions (a registered op costs more than ten times their
overhead); under a compiler, a dispatch mode or a functorch transform the registered ops run, and in forward mode
torch's own operations (`_by_torch`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..reference import sinkhorn as reference
from . import _cost_cuda, _loss, _not_converged, _pieces, _rules, _solve, _solve_cuda, _transforms, cost

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def direct(*tensors: Tensor | None) -> bool:
    """Whether the eager Functions may run on these tensors."""
    if torch.compiler.is_compiling():
        return False
    for t in tensors:
        if t is not None and type(t) not in _PLAIN:
            return False
    return (
        forward_ad._current_level < 0
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_function_stack() == 0
    )


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd would record a call on these tensors."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def reference_outputs(cost_matrix, a, b, init_f, init_g, options: _solve.Options) -> tuple[Tensor, ...]:
    """(value, dual, f, g) by the reference, differentiable to any order; a leading batch is a loop.

    The reference runs plain iterations: ``accelerate`` changes the way there, not where they lead.
    """
    return reference_solved(cost_matrix, a, b, init_f, init_g, options)[:4]


def reference_solved(cost_matrix, a, b, init_f, init_g, options: _solve.Options) -> tuple[Tensor, ...]:
    """The same with the marginal error and the iterations that ran: as `Sinkhorn`, problem by problem."""
    init = None if init_f is None else (init_f, init_g)
    if cost_matrix.dim() == 2:
        *found, n_iter = reference.sinkhorn(
            cost_matrix, a, b, reg=options.reg, max_iter=options.max_iter, tol=options.tol, grad=options.grad, init=init
        )  # fmt: skip
        return *found, torch.tensor(n_iter, device=cost_matrix.device)

    def one(mass, k):
        return mass if mass is None or mass.dim() == 1 else mass[k]

    outputs = [
        reference_solved(c, one(a, k), one(b, k), one(init_f, k), one(init_g, k), options)
        for k, c in enumerate(cost_matrix)
    ]
    return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))


def differentiate(outputs_of, inputs, upstream):
    """Gradients of the inputs that need one, with a graph; None for the others.

    ``outputs_of(*inputs)`` gets a view of each input: one tensor in two places has a gradient for each of them.
    """
    with torch.enable_grad():
        apart = [None if t is None else t.view_as(t) for t in inputs]
        outputs = outputs_of(*apart)
        wanted = [t for t in apart if t is not None and t.requires_grad]
        pairs = [(o, u) for o, u in zip(outputs, upstream, strict=True) if u is not None and o.requires_grad]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [u for _, u in pairs], create_graph=True, allow_unused=True
            )
            if pairs
            else [None] * len(wanted)
        )
    return [next(found) if t is not None and t.requires_grad else None for t in apart]


class Sinkhorn(torch.autograd.Function):
    """From a cost (B?, N, M): (value, dual, f, g, marginal_error, n_iter)."""

    @staticmethod
    def forward(ctx: Any, matrix, a, b, init_f, init_g, options):  # noqa: D102
        needs = any(ctx.needs_input_grad[:3])
        s = _solve.forward(matrix, a, b, init_f, init_g, options, needs)
        if needs:
            constants = (s.f, s.g) if options.grad == "envelope" else ()
            ctx.mark_non_differentiable(*constants, s.marginal_error, s.n_iter)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(matrix, a, b, init_f, init_g, s.f, s.g, s.saved)
            ctx.options = options
        return s[:6]

    @staticmethod
    def backward(ctx: Any, *upstream):  # noqa: D102
        matrix, a, b, init_f, init_g, f, g, saved = ctx.saved_tensors
        options, upstream = ctx.options, upstream[:4]
        if all(u is None for u in upstream):
            return (None,) * 6
        if torch.is_grad_enabled():
            _transforms.refuse_second_order(options.grad)

            def again(matrix, a, b):
                return reference_outputs(matrix, a, b, init_f, init_g, options)

            return *differentiate(again, (matrix, a, b), upstream), None, None, None
        problem = _solve.problem_of(matrix, a, b, init_f, init_g, saved, options)
        d_cost, d_a, d_b = _solve.backward(matrix, a, b, f, g, problem, upstream, options)
        needs = ctx.needs_input_grad
        return d_cost, d_a if needs[1] else None, d_b if needs[2] else None, None, None, None


class SinkhornLoss(torch.autograd.Function):
    """From features x (N, D), y (M, D): the transport value, or the dual value where ``regularized``."""

    @staticmethod
    def forward(ctx: Any, x, y, a, b, init_f, init_g, options):  # noqa: D102
        loss, f, g, kept = _loss.forward(x, y, a, b, init_f, init_g, options, True)
        ctx.save_for_backward(x, y, a, b, init_f, init_g, f, g, kept)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, upstream):  # noqa: D102
        x, y, a, b, init_f, init_g, f, g, kept = ctx.saved_tensors
        options = ctx.options
        if torch.is_grad_enabled():
            return _differentiable_gradients(x, y, a, b, init_f, init_g, upstream, options)
        needs = ctx.needs_input_grad
        dx, dy, d_a, d_b = _loss.backward(x, y, a, b, init_f, init_g, f, g, kept, upstream, options, needs)
        if dx is not None and dx.dtype != x.dtype:
            dx = dx.to(x.dtype)
        if dy is not None and dy.dtype != y.dtype:
            dy = dy.to(y.dtype)
        return dx, dy, d_a if needs[2] else None, d_b if needs[3] else None, None, None, None


class SmallSinkhornLoss(torch.autograd.Function):
    """The same where `_loss.one_call` says so: the gradient is made along with the loss, and scaled backward."""

    @staticmethod
    def forward(ctx: Any, x, y, a, b, init_f, init_g, options):  # noqa: D102
        need_x, need_y = ctx.needs_input_grad[:2]
        loss, dx, dy = _loss.with_gradient(x, y, a, b, init_f, init_g, options, need_x, need_y)
        ctx.save_for_backward(x, y, dx, dy, a, b, init_f, init_g)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, upstream):  # noqa: D102
        x, y, dx, dy, a, b, init_f, init_g = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_gradients(x, y, a, b, init_f, init_g, upstream, ctx.options)
        if dx is not None:
            dx = _pieces.times(dx, upstream, x.dtype)
        if dy is not None:
            dy = _pieces.times(dy, upstream, y.dtype)
        return dx, dy, None, None, None, None, None


def _differentiable_gradients(x, y, a, b, init_f, init_g, upstream, options: _loss.LossOptions):
    """Gradients of a loss of features through the reference, with a graph."""
    _transforms.refuse_second_order(options.solver.grad)

    def again(x, y, a, b):
        matrix = reference.cost(x.to(options.dtype), y.to(options.dtype), options.metric)
        outputs = reference_outputs(matrix, a, b, init_f, init_g, options.solver)
        return (outputs[int(options.regularized)],)

    return *differentiate(again, (x, y, a, b), (upstream,)), None, None, None


# The same calls for torch.compile, export and functorch.


def register_backward(op, setup_context, backward, rule):
    """Give a registered op its gradient and its rule for ``vmap``; returns the callable to use.

    functorch does not transform the autograd formula of a registered op, only Functions with a
    ``setup_context``: so under its transforms the same pieces run as such a Function. ``rule(call, info, in_dims,
    *args)`` gives what a Function's ``vmap`` does; it makes its calls by ``call``, which is what is returned here.
    """
    torch.library.register_autograd(op._opoverload, backward, setup_context=setup_context)

    def forward(*args):
        return op(*args)

    def vmap(info, in_dims, *args):
        return rule(call, info, in_dims, *args)

    torch.library.register_vmap(op._opoverload, vmap)
    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
    }
    function = type(f"Transformed_{op._name}", (torch.autograd.Function,), members)

    def call(*args):
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
            return op(*args)
        return function.apply(*args)

    return call


def _contiguous(*tensors: Any) -> Any:
    return [None if t is None else t.contiguous() for t in tensors]


@torch.library.custom_op("ucmkd_fast::sinkhorn_forward", mutates_args=())
def sinkhorn_forward(
    matrix: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    init_f: Tensor | None,
    init_g: Tensor | None,
    reg: float,
    max_iter: int,
    tol: float,
    grad: str,
    accelerate: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The forward call with everything that the backward needs as outputs."""
    options = _solve.Options(reg, max_iter, tol, grad, accelerate)
    matrix, a, b, init_f, init_g = _contiguous(matrix, a, b, init_f, init_g)
    s = _solve.forward(matrix, a, b, init_f, init_g, options, True)
    _not_converged.look(s.marginal_error, s.value, a, options)
    return s.value, s.dual, s.f, s.g, s.marginal_error, s.n_iter, s.saved


@sinkhorn_forward.register_fake
def _(matrix, a, b, init_f, init_g, reg, max_iter, tol, grad, accelerate):
    lead, (n, m) = matrix.shape[:-2], matrix.shape[-2:]
    batch, history = lead[0] if lead else 1, grad == "unrolled"
    if _solve_cuda.runs_on(matrix):
        size = _solve_cuda.saved_size(batch, n, m, max_iter, history)
    else:
        size = batch * _solve.saved_size(n, m, max_iter, history)
    return (
        matrix.new_empty(lead),
        matrix.new_empty(lead),
        matrix.new_empty((*lead, n)),
        matrix.new_empty((*lead, m)),
        matrix.new_empty(lead),
        matrix.new_empty(lead, dtype=torch.int64),
        matrix.new_empty(size),
    )


@torch.library.custom_op("ucmkd_fast::sinkhorn_backward", mutates_args=())
def sinkhorn_backward(
    matrix: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    init_f: Tensor | None,
    init_g: Tensor | None,
    f: Tensor,
    g: Tensor,
    saved: Tensor,
    up_value: Tensor | None,
    up_dual: Tensor | None,
    up_f: Tensor | None,
    up_g: Tensor | None,
    reg: float,
    max_iter: int,
    tol: float,
    grad: str,
    accelerate: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the cost and of the masses (empty where they are not given)."""
    options = _solve.Options(reg, max_iter, tol, grad, accelerate)
    upstream = (up_value, up_dual, up_f, up_g)
    matrix, a, b, init_f, init_g = _contiguous(matrix, a, b, init_f, init_g)
    problem = _solve.problem_of(matrix, a, b, init_f, init_g, saved, options)
    d_cost, d_a, d_b = _solve.backward(matrix, a, b, f, g, problem, upstream, options)
    none = matrix.new_empty(0)
    return d_cost, none if d_a is None else d_a, none.clone() if d_b is None else d_b


@sinkhorn_backward.register_fake
def _(
    matrix,
    a,
    b,
    init_f,
    init_g,
    f,
    g,
    saved,
    up_value,
    up_dual,
    up_f,
    up_g,
    reg,
    max_iter,
    tol,
    grad,
    accelerate,
):
    none = matrix.new_empty(0)
    return (
        matrix.new_empty(matrix.shape),
        none if a is None else a.new_empty(a.shape),
        none.clone() if b is None else b.new_empty(b.shape),
    )


_sinkhorn_backward = register_backward(
    sinkhorn_backward, _rules.gradient_setup, _rules.gradient_backward, _rules.backward_rule
)


def _setup_context(ctx, inputs, output):
    matrix, a, b, init_f, init_g, *ctx.options = inputs
    _, _, f, g, error, n_iter, saved = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(error, n_iter, saved)
    ctx.save_for_backward(matrix, a, b, init_f, init_g, f, g, saved)


def _backward(ctx, *upstream):
    tensors = ctx.saved_tensors
    upstream = upstream[:4]
    if all(u is None for u in upstream):
        return (None,) * 10
    if ctx.options[3] == "envelope":
        upstream = (*upstream[:2], None, None)
    d_cost, d_a, d_b = _sinkhorn_backward(*tensors, *upstream, *ctx.options)
    return (
        d_cost,
        d_a if tensors[1] is not None else None,
        d_b if tensors[2] is not None else None,
        *[None] * 7,
    )


sinkhorn_transformed = register_backward(sinkhorn_forward, _setup_context, _backward, _rules.forward_rule)


@torch.library.custom_op("ucmkd_fast::cost_forward", mutates_args=())
def cost_forward(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The cost matrix (N, M), and the scales of the features (N + M,) for the backward; on a GPU of batches too."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if _solve_cuda.runs_on(x):
        return _cost_cuda.forward(x, y, metric, dtype)
    matrix, features = cost.products(x, y, metric, dtype)
    cost.finish(features, matrix)
    return matrix, features.scale


@cost_forward.register_fake
def _(x, y, metric):
    lead, n, m = x.shape[:-2], x.shape[-2], y.shape[-2]
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((*lead, n, m), dtype=dtype), x.new_empty((lead.numel() * (n + m),), dtype=dtype)


@torch.library.custom_op("ucmkd_fast::cost_backward", mutates_args=())
def cost_backward(
    x: Tensor, y: Tensor, scale: Tensor, matrix: Tensor, grad_cost: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients of both feature sets, in the cost's dtype."""
    if _solve_cuda.runs_on(x):
        return _cost_cuda.backward(x, y, scale, matrix, grad_cost, metric)
    features = cost.with_known_scales(x, y, scale, metric, matrix.dtype)
    # The gradient may be shared by autograd: work on a copy.
    weights = grad_cost.clone(memory_format=torch.contiguous_format)
    sums = cost.weigh(features, matrix, weights)
    dx, dy = cost.backward(features, matrix, weights, sums, (True, True))
    assert dx is not None and dy is not None
    return dx, dy


@cost_backward.register_fake
def _(x, y, scale, matrix, grad_cost, metric):
    return matrix.new_empty(x.shape), matrix.new_empty(y.shape)


_cost_backward_op = register_backward(
    cost_backward, _rules.cost_gradient_setup, _rules.cost_gradient_backward, _rules.cost_backward_rule
)


def _cost_setup(ctx, inputs, output):
    x, y, ctx.metric = inputs
    matrix, scale = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(scale)
    ctx.save_for_backward(x, y, scale, matrix)


def _cost_backward(ctx, grad_cost, *_):
    if grad_cost is None:
        return None, None, None
    x, y, scale, matrix = ctx.saved_tensors
    dx, dy = _cost_backward_op(x, y, scale, matrix, grad_cost, ctx.metric)
    return dx.to(x.dtype), dy.to(y.dtype), None


cost_transformed = register_backward(cost_forward, _cost_setup, _cost_backward, _rules.cost_rule)
