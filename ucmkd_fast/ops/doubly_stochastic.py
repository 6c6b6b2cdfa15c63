"""The doubly stochastic projection: columns and rows of exp(logits), normalised in turn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.doubly_stochastic import doubly_stochastic as reference
from . import _devices, checks, transforms
from ._projection import ProjectionOptions

STARTS = ("exp", "softmax")
ORDERS = ("columns-rows", "rows-columns")
_MOST_ITERATIONS = 1 << 20  # what the adjoint keeps stays countable


def doubly_stochastic(
    logits: Tensor,
    n_iter: int = 20,
    *,
    eps: float = 0.0,
    start: str = "exp",
    order: str = "columns-rows",
) -> Tensor:
    """The Sinkhorn-Knopp projection of hyper-connections and of soft matchings, with its exact gradient.

    exp(logits), whose columns and then rows are divided by their sums, ``n_iter`` times: P = diag(u) exp(logits)
    diag(v). The gradient is that of these iterations. Whatever the range of the logits, the result is that of the log
    domain: a matrix that leaves the range of its dtype is computed there.

    What others compute (docs/doubly-stochastic.md has the table): the paper on mHC (arXiv 2512.24880, Equation 9) and
    lucidrains' hyper-connections the defaults; TransformerEngine ``order="rows-columns"``; TileKernels, the inference
    code of DeepSeek-V4, Liger and Megatron ``start="softmax", order="rows-columns", eps=1e-6``.

    Args:
        logits: (..., n, m); float32, float64, or half precision, which is computed in float32. -inf forbids an entry.
        n_iter: pairs of normalisations, >= 1.
        eps: >= 0, added to every sum, and with ``start="softmax"`` to every entry of the softmax that is not forbidden.
        start: ``"exp"``, or ``"softmax"`` of the rows. Before rows a softmax is their first normalisation.
        order: ``"columns-rows"``: rows come last and sum to one exactly; ``"rows-columns"``.

    Returns:
        (..., n, m), contiguous and in the dtype of the logits. Rows tend to sums of 1 and columns to sums of n / m.

    Raises:
        TypeError: no tensor, integer logits, numbers that are none.
        ValueError: NaN, +inf, or a row or column of -inf (on a GPU that matrix is NaN, and UCMKD_CHECK=1 raises); a
            shape without a row or a column; eps outside of [0, 1], n_iter < 1, unknown options.

    Source: Sinkhorn and Knopp, Pacific Journal of Mathematics 21(2), 1967.
    """
    options = _checked(logits, n_iter, eps, start, order)
    if not logits.numel():
        return logits.clone(memory_format=torch.contiguous_format)
    door = _devices.door(logits)
    if door.KERNELS and transforms.direct(logits):
        result: Tensor = transforms.applied(DoublyStochastic)(logits, options, door)
        return result
    if not door.KERNELS:
        _devices.warn_without_kernels(logits.device)
    if not door.KERNELS or transforms.by_torch():
        return by_torch(logits, options)
    transformed: Tensor = _forward_call(logits, *options)
    return transformed


def _checked(logits: Any, n_iter: Any, eps: Any, start: Any, order: Any) -> ProjectionOptions:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a torch.Tensor of shape (..., n, m), got {type(logits).__name__}")
    checks.tensor("logits", logits, "(..., n, m)", max(2, logits.dim()), half=True)
    if 0 in logits.shape[-2:]:
        raise ValueError(f"logits must have at least one row and one column, got shape {tuple(logits.shape)}")
    n_iter = checks.count_at_least_one("n_iter", n_iter)
    if n_iter > _MOST_ITERATIONS:
        raise ValueError(f"n_iter must be at most {_MOST_ITERATIONS}, got {n_iter}")
    eps = checks.number_at_least_zero("eps", eps)
    if eps > 1:
        raise ValueError(f"eps must lie in [0, 1], as it is added to sums that are to be 1, got {eps:g}")
    checks.choice("start", start, STARTS)
    checks.choice("order", order, ORDERS)
    return ProjectionOptions(n_iter, eps, start, order)


def by_torch(logits: Tensor, options: ProjectionOptions) -> Tensor:
    """In the log domain by torch's own operations, differentiable to any order."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    n_iter, eps, start, order = options
    return reference(logits.to(wide), n_iter, eps=eps, start=start, order=order).to(logits.dtype)


class DoublyStochastic(torch.autograd.Function):
    """The logits are all that is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, options: ProjectionOptions, door: Any) -> Tensor:  # noqa: D102
        ctx.save_for_backward(logits)
        ctx.options, ctx.door = options, door
        result: Tensor = door.project(logits, options)
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None]:  # noqa: D102
        (logits,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = transforms.differentiate(lambda z: (by_torch(z, ctx.options),), (logits,), (upstream,))
            return found[0], None, None
        return ctx.door.project_backward(logits, upstream, ctx.options), None, None


@torch.library.custom_op("ucmkd_fast::doubly_stochastic", mutates_args=())
def doubly_stochastic_forward(logits: Tensor, n_iter: int, eps: float, start: str, order: str) -> Tensor:
    """The result (..., n, m)."""
    result: Tensor = _devices.door(logits).project(logits, ProjectionOptions(n_iter, eps, start, order))
    return result


@doubly_stochastic_forward.register_fake
def _(logits: Tensor, n_iter: int, eps: float, start: str, order: str) -> Tensor:
    return logits.new_empty(logits.shape)


@torch.library.custom_op("ucmkd_fast::doubly_stochastic_backward", mutates_args=())
def doubly_stochastic_backward(
    logits: Tensor, upstream: Tensor, n_iter: int, eps: float, start: str, order: str
) -> Tensor:
    """The gradient of the logits (..., n, m)."""
    options = ProjectionOptions(n_iter, eps, start, order)
    found: Tensor = _devices.door(logits).project_backward(logits, upstream, options)
    return found


@doubly_stochastic_backward.register_fake
def _(logits: Tensor, upstream: Tensor, n_iter: int, eps: float, start: str, order: str) -> Tensor:
    return logits.new_empty(logits.shape)


def _gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, upstream, *ctx.options = inputs
    ctx.save_for_backward(logits, upstream)


def _gradient_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Of the gradient, by torch's own operations."""
    options = ProjectionOptions(*ctx.options)

    def gradient(logits: Tensor, upstream: Tensor) -> list[Tensor | None]:
        return transforms.vjp(lambda z: (by_torch(z, options),), (logits,), (upstream,))

    return *transforms.vjp(gradient, ctx.saved_tensors, (upstream,)), *[None] * 4


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, *ctx.options = inputs
    ctx.save_for_backward(logits)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    (logits,) = ctx.saved_tensors
    return _backward_call(logits, upstream, *ctx.options), *[None] * 4


def _rule(call: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    """Matrices do not know of each other: a mapped dimension is one more of theirs."""
    tensors = [z for z in args if isinstance(z, Tensor)]
    fronts = [transforms.front(info, z, d) for z, d in zip(tensors, in_dims, strict=False)]
    return call(*fronts, *args[len(tensors) :]), 0


_backward_call = transforms.register_backward(
    doubly_stochastic_backward, _gradient_setup, _gradient_backward, _rule
)
_forward_call = transforms.register_backward(doubly_stochastic_forward, _setup, _backward, _rule)
