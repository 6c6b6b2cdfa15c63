"""The Sinkhorn divergence of `compat.geomloss` on a CPU: one native call for the whole loop (csrc/samples_loss/)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import _C
from ..ops.transforms import applied, differentiate
from . import _divergence
from ._divergence import Settings
from ._measures import Measures, addresses, contiguous

# Bytes of cost matrices that are kept for all sweeps. Of few features, or where memory has to be linear, only what the
# last cache holds: making a cost again takes less than reading it from memory. Of many, what a machine can spare.
KEPT_IN_CACHE, KEPT_IN_MEMORY, FEW_FEATURES = 64 << 20, 4 << 30, 8


class _Found(NamedTuple):
    """What the kernels give."""

    loss: Tensor | None  # (B,)
    terms: tuple[Tensor, Tensor]  # (B, N), (B, M)
    slopes: tuple[Tensor | None, Tensor | None]  # (B, N, D), (B, M, D) where asked for


def solve(m: Measures, s: Settings) -> Tensor | tuple[Tensor, Tensor]:
    """The loss (B,), or the potentials (B, N) and (B, M)."""
    found: Any = applied(_Potentials if s.potentials else _Loss)(*m.tensors, s)
    return found


def _keep_costs(m: Measures, s: Settings) -> bool:
    (n, d), rows = m.x.shape[1:], m.y.shape[1]
    size = m.x.element_size() * (n * rows + (n * n + rows * rows if s.debias else 0))
    return size <= (KEPT_IN_CACHE if s.linear or d <= FEW_FEATURES else KEPT_IN_MEMORY)


def _run(m: Measures, s: Settings, needs: tuple[bool, bool]) -> _Found:
    m = contiguous(m)
    value = None if s.potentials else m.x.new_empty(len(m.x))
    terms = torch.empty_like(m.a), torch.empty_like(m.b)
    slope_x, slope_y = (
        torch.empty_like(z) if need else None for z, need in zip((m.x, m.y), needs, strict=True)
    )
    _C.samples_forward(
        **addresses(m), p=s.p, eps=s.schedule, rho=s.rho, debias=s.debias, potentials=s.potentials,
        keep_costs=_keep_costs(m, s), loss=0 if value is None else value.data_ptr(), term_x=terms[0].data_ptr(),
        term_y=terms[1].data_ptr(), slope_x=0 if slope_x is None else slope_x.data_ptr(),
        slope_y=0 if slope_y is None else slope_y.data_ptr(),
    )  # fmt: skip
    return _Found(value, terms, (slope_x, slope_y))


class _Loss(torch.autograd.Function):
    """The loss, (B,); its gradients are made along with it."""

    @staticmethod
    def forward(ctx: Any, a, x, b, y, settings):  # noqa: D102
        needs = ctx.needs_input_grad
        found = _run(Measures(a, x, b, y, True, x.dtype), settings, (needs[1], needs[3]))
        ctx.save_for_backward(a, x, b, y, *found.terms, *found.slopes)
        ctx.settings = settings
        return found.loss

    @staticmethod
    def backward(ctx: Any, grad):  # noqa: D102
        a, x, b, y, term_x, term_y, slope_x, slope_y = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            return *_again(_divergence.loss, (a, x, b, y), ctx.settings, (grad,)), None
        needs = ctx.needs_input_grad
        return (
            grad[:, None] * term_x if needs[0] else None,
            None if slope_x is None else grad[:, None, None] * slope_x,
            grad[:, None] * term_y if needs[2] else None,
            None if slope_y is None else grad[:, None, None] * slope_y,
            None,
        )


class _Potentials(torch.autograd.Function):
    """The potentials, (B, N) and (B, M), each a function of its own points alone."""

    @staticmethod
    def forward(ctx: Any, a, x, b, y, settings):  # noqa: D102
        needs = ctx.needs_input_grad
        found = _run(Measures(a, x, b, y, True, x.dtype), settings, (needs[1], needs[3]))
        ctx.save_for_backward(a, x, b, y, *found.slopes)
        ctx.settings = settings
        return found.terms

    @staticmethod
    def backward(ctx: Any, grad_f, grad_g):  # noqa: D102
        a, x, b, y, slope_x, slope_y = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            return *_again(_divergence.terms, (a, x, b, y), ctx.settings, (grad_f, grad_g)), None
        of_x = None if slope_x is None else grad_f[:, :, None] * slope_x
        of_y = None if slope_y is None else grad_g[:, :, None] * slope_y
        return None, of_x, None, of_y, None


def _again(function: Any, inputs: tuple[Tensor, ...], s: Settings, upstream: tuple[Tensor, ...]) -> Any:
    """Gradients with a graph, by torch's operations."""

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        made = function(*tensors, s)
        return made if s.potentials else (made,)

    with torch.autocast(inputs[1].device.type, enabled=False):
        return differentiate(outputs, inputs, upstream)
