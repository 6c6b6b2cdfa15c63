"""What the ops share around autograd: plain eager calls, torch.func's transforms, forward mode, higher orders.

A dimension of ``vmap`` becomes the batch of a call. Forward mode and derivatives of derivatives take torch's own
operations (`_by_torch`): the kernels give one gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

from ._problem import Problem

_TransformType = torch._C._functorch.TransformType
_F = TypeVar("_F", bound=Callable[..., Any])

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # also one that outlived its transform
_transform = torch._C._functorch.peek_interpreter_stack
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack


def direct(*tensors: Tensor | None) -> bool:
    """Whether the eager Functions may run on these tensors."""
    if torch.compiler.is_compiling():
        return False
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or _wrapped(t)):
            return False
    return (
        forward_ad._current_level < 0
        and _dispatch_modes() == 0
        and _transform() is None
        and _function_modes() == 0
    )


def applied(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` for tensors that are `direct`: without what it looks for first, that transforms may be.

    Where autograd does not record, no input needs a gradient: ``ctx.needs_input_grad`` would say that parameters do.
    """
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled():
            return apply(*args)
        return apply(*(z.detach() if isinstance(z, Tensor) and z.requires_grad else z for z in args))

    return call


def not_compiled(function: _F) -> _F:
    """Leaves ``function`` out of compiled graphs; `torch.compiler.disable` has no types."""
    disabled: _F = torch.compiler.disable(function)
    return disabled


def alive(p: Problem) -> Problem:
    """With tensors that outlived their transform as plain ones."""
    return p if torch.compiler.is_compiling() else Problem(*unwrap_dead_wrappers(tuple(p)))


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd would record a call on these tensors."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def active() -> bool:
    """Whether a transform of torch.func is under way."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def forward_mode() -> bool:
    """Whether tangents are carried along."""
    return forward_ad._current_level >= 0


def orders() -> int:
    """How many derivatives the transforms under way take of each other; forward mode without torch.func is one."""
    kinds = [t.key() for t in torch._C._functorch.get_interpreter_stack() or ()]
    forward = kinds.count(_TransformType.Jvp)
    return kinds.count(_TransformType.Grad) + max(forward, int(forward_mode()))


def by_torch() -> bool:
    """Whether a call has to be made of torch's own operations."""
    if torch.compiler.is_compiling():
        return False
    return forward_mode() or orders() > 1


def refuse_second_order(grad: str) -> None:
    """Raise NotImplementedError for a second derivative under a ``grad`` that has none."""
    if grad != "unrolled":
        raise NotImplementedError(
            f"double backward needs grad='unrolled', got grad={grad!r}: "
            "its gradient is not the derivative of a function that could be differentiated again"
        )


def vjp(
    function: Any, inputs: Sequence[Tensor | None], upstream: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of ``inputs``, None where there is none, for the outputs that have an upstream one.

    A transform itself: it may be differentiated again, by whatever is under way around it.
    """
    given = [k for k, t in enumerate(inputs) if t is not None]

    def of_given(*tensors: Tensor) -> tuple[Tensor, ...]:
        full = list(inputs)
        for k, t in zip(given, tensors, strict=True):
            full[k] = t
        outputs = function(*full)
        return tuple(o for o, u in zip(outputs, upstream, strict=True) if u is not None)

    back = torch.func.vjp(of_given, *(inputs[k] for k in given))[1]
    found = dict(zip(given, back(tuple(u for u in upstream if u is not None)), strict=True))
    return [found.get(k) for k in range(len(inputs))]


def front(info: Any, tensor: Tensor, in_dim: int | None) -> Tensor:
    """(V, ...): the mapped dimension in front, made where a tensor has none."""
    _at_least_one(info)
    if in_dim is None:
        return tensor.expand(info.batch_size, *tensor.shape)
    return tensor.movedim(in_dim, 0)


def _at_least_one(info: Any) -> None:
    if not info.batch_size:
        raise ValueError("vmap needs at least one problem, got a mapped dimension of size 0")


def fold(info: Any, in_dims: Sequence[int | None], *tensors: Tensor) -> list[Tensor]:
    """Tensors (B, ...) with a mapped dimension each: (V * B, ...)."""
    return [front(info, t, d).flatten(0, 1) for t, d in zip(tensors, in_dims, strict=True)]


class Fold:
    """How tensors of problems (B?, ...) with a mapped dimension V become those of V problems, or of V * B."""

    def __init__(self, info: Any, in_dims: Sequence[int | None], like: Tensor, rank: int):
        """``like`` is the first tensor of ``in_dims``, of ``rank`` dimensions without V and B."""
        self._info = info
        own = list(like.shape)
        if in_dims[0] is not None:
            own.pop(in_dims[0])
        self._batch = own[: len(own) - rank]

    def __call__(self, tensor: Tensor | None, in_dim: int | None, rank: int | None) -> Tensor | None:
        """(V * B, ...), of ``rank`` dimensions in each problem, copied where problems share it; None stays.

        Without a rank: a block of memory (V, ...) of all problems in turn, flat.
        """
        if tensor is None:
            return None
        tensor = front(self._info, tensor, in_dim)
        if rank is None:
            return tensor.flatten()
        if tensor.dim() == 1 + rank:  # no batch of its own
            tensor = tensor[:, None].expand(-1, *self._batch, *tensor.shape[1:]) if self._batch else tensor
        return tensor.flatten(0, 1) if self._batch else tensor

    def back(self, tensor: Tensor) -> Tensor:
        """(V, B?, ...)."""
        apart: Tensor = tensor.unflatten(0, (self._info.batch_size, *self._batch))
        return apart

    def divide(self, block: Tensor) -> Tensor:
        """(V, ...), a block of memory of all problems as equal parts, which `__call__` joins again."""
        lacks = -len(block) % self._info.batch_size
        return torch.nn.functional.pad(block, (0, lacks)).view(self._info.batch_size, -1)


def one_by_one(
    call: Any, info: Any, in_dims: Sequence[int | None], *args: Any
) -> tuple[tuple[Tensor, ...], Any]:
    """The rule of an op that has no batch: a call for each slice."""
    _at_least_one(info)
    parts = [
        call(*(arg if d is None else arg.select(d, k) for arg, d in zip(args, in_dims, strict=True)))
        for k in range(info.batch_size)
    ]
    stacked = tuple(torch.stack(outputs) for outputs in zip(*parts, strict=True))
    return stacked, (0,) * len(stacked)


def differentiate(
    outputs_of: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    upstream: Sequence[Tensor | None],
) -> list[Tensor | None]:
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


def register_backward(
    op: torch.library.CustomOpDef,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    rule: Callable[..., Any],
) -> Callable[..., Any]:
    """Give a registered op its gradient and its rule for ``vmap``; returns the callable to use.

    functorch does not transform the autograd formula of a registered op, only Functions with a
    ``setup_context``: so under its transforms the same pieces run as such a Function. ``rule(call, info, in_dims,
    *args)`` gives what a Function's ``vmap`` does; it makes its calls by ``call``, which is what is returned here.
    """
    torch.library.register_autograd(op._opoverload, backward, setup_context=setup_context)

    def forward(*args: Any) -> Any:
        return op(*args)

    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        return rule(call, info, in_dims, *args)

    torch.library.register_vmap(op._opoverload, vmap)
    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
    }
    function: Any = type(f"Transformed_{op._name}", (torch.autograd.Function,), members)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
            return op(*args)
        return function.apply(*args)

    return call
