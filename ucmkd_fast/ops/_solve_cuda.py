"""Calls of the Sinkhorn kernels for CUDA tensors: allocation, addresses, gradients; the twin of `_solve`.

Everything stays on the device and on torch's current stream: nothing is read back, nothing waits. Input that
the kernels refuse gives NaN, and ``n_iter`` tells why (see `refusal`).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from .._native import _C
from . import _not_converged
from .refusals import explained

# The module with the kernels' entries. Tests put the execution model here, which runs them on CPU tensors.
kernels: Any = _C if _C.build_info()["cuda_architectures"] else None
device_type = "cuda"
regime = 0  # kAuto of csrc/sinkhorn/regime.h; tests force another
own_barrier = True  # of cooperative grids: 0.15 us quicker each time than the runtime's own (H100)
tuning: dict[
    str, int
] = {}  # "threads", "quads", "grid" of csrc/sinkhorn/regime.h's Tuning, instead of its choice

# Flag of csrc/sinkhorn/cuda.h
BAD_COST, FORBIDDEN, BAD_MASS, NO_MASS, SUMS, NOT_CONVERGED, OVERFLOW = (1 << bit for bit in range(7))

REFUSALS = {  # in the order in which they are told: what comes first may bring about the last
    BAD_COST: "cost must be a number or +inf (a forbidden pair) everywhere, got NaN or -inf (or, with class_cost, a "
    "label that is none of its columns)",
    BAD_MASS: "masses must be finite and >= 0, got a negative one, NaN or inf",
    NO_MASS: "masses must not all be 0, got an all-zero vector",
    SUMS: "a and b must have equal sums (each is 1 where it is not given), got sums that differ",
    OVERFLOW: "the distances between x and y must stay in range, got one that overflows",
    FORBIDDEN: "every row and column with mass needs a pair of finite cost with mass, got one that has none",
}


def runs_on(tensor: Tensor) -> bool:
    """Whether the kernels of this module take this tensor."""
    return kernels is not None and tensor.device.type == device_type


def fits_block(n: int, m: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a problem (N, M) fits the shared memory of one block (`shared_of_block` of csrc/sinkhorn/regime.h)."""
    call = kernels.CudaSinkhorn()
    call.f64, call.device, call.n, call.m = dtype == torch.float64, device.index or 0, n, m
    return bool(kernels.cuda_sinkhorn_fits_block(call))


def refusal(n_iter: Tensor) -> str | None:
    """What the kernels had against the input, or None. Reads ``n_iter`` from the device."""
    bits = -int(n_iter.min())
    return next((text for bit, text in REFUSALS.items() if bits > 0 and bits & bit), None)


def check(n_iter: Tensor, **tensors: Tensor | None) -> None:
    """Raise ValueError for input that the kernels refused, under UCMKD_CHECK=1; this waits for the device."""
    if os.environ.get("UCMKD_CHECK") == "1" and (text := refusal(n_iter)):
        raise ValueError(explained(text, **tensors))


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised memory from torch's allocator: the only place where this module takes some."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _stream(tensor: Tensor) -> int:
    return torch._C._cuda_getCurrentRawStream(tensor.device.index or 0) if tensor.is_cuda else 0


def _even(size: int) -> int:
    return (size + 1) // 2 * 2


class Saved:
    """Where things lie in the block that the backward needs; sizes in elements of the cost's dtype."""

    def __init__(self, batch: int, n: int, m: int, max_iter: int, history: bool):
        self.hist_f = 0
        self.hist_g = _even(batch * (max_iter + 1 if history else 1) * n)
        steps = max_iter if history else 1
        self.log_f = self.hist_g + _even(batch * steps * m)
        self.log_g = self.log_f + _even(batch * steps * n)
        self.alpha = self.log_g + _even(batch * steps * m)
        self.n_iter = self.alpha + _even(batch * n)  # int64
        self.flags = self.n_iter + 2 * batch  # int32
        self.size = self.flags + _even(batch)


def saved_size(batch: int, n: int, m: int, max_iter: int, history: bool) -> int:
    """Elements of the block; works with symbolic sizes."""
    return Saved(batch, n, m, max_iter, history).size


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def call_of(batch, n, m, a, b, init_f, f, g, saved, options, history):
    """The part that every call of a problem shares."""
    at, size, base = Saved(batch, n, m, options.max_iter, history), saved.element_size(), saved.data_ptr()
    call = kernels.CudaSinkhorn()
    call.f64 = saved.dtype == torch.float64
    call.device = saved.device.index or 0
    call.stream, call.regime = _stream(saved), regime
    call.own_barrier = own_barrier
    for name, number in tuning.items():
        setattr(call, f"tune_{name}", number)
    call.n, call.m, call.batch, call.max_iter = n, m, batch, options.max_iter
    call.reg, call.tol, call.history = options.reg, options.tol, history
    call.relax = options.accelerate == "relax"
    call.a, call.b, call.init_f = (_address(t) for t in (a, b, init_f))
    call.a_stride = n if a is not None and a.dim() == 2 else 0
    call.b_stride = m if b is not None and b.dim() == 2 else 0
    call.f, call.g = f.data_ptr(), g.data_ptr()
    call.hist_f, call.hist_g, call.alpha = (base + size * k for k in (at.hist_f, at.hist_g, at.alpha))
    call.log_f, call.log_g = base + size * at.log_f, base + size * at.log_g
    call.n_iter, call.flags = base + size * at.n_iter, base + size * at.flags
    return call


def call_on(cost, a, b, init_f, f, g, saved, options, history):
    """The call on a cost, and its work space (to be kept alive)."""
    batch = cost.shape[0] if cost.dim() == 3 else 1
    call = call_of(batch, *cost.shape[-2:], a, b, init_f, f, g, saved, options, history)
    call.cost = cost.data_ptr()
    work = empty(cost, kernels.cuda_sinkhorn_work(call))
    call.work = work.data_ptr()
    return call, work


def forward(cost, a, b, init_f, options, save: bool) -> tuple[Tensor, ...]:
    """(value, dual, f, g, marginal_error, n_iter, saved) as `_solve.Solved`."""
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    history = save and options.grad == "unrolled"
    saved = empty(cost, saved_size(lead.numel(), n, m, options.max_iter, history))
    f, g = empty(cost, *lead, n), empty(cost, *lead, m)
    call, _work = call_on(cost, a, b, init_f, f, g, saved, options, history)
    value, dual, error, n_iter = run_forward(call, cost, a, b)
    return value, dual, f, g, error, n_iter, saved


def run_forward(call, cost, a, b) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The call's (value, dual, marginal_error, n_iter)."""
    _not_converged.flush_warnings()
    lead = cost.shape[:-2]
    value, dual, error = empty(cost, *lead), empty(cost, *lead), empty(cost, *lead)
    n_iter = empty(cost, *lead, dtype=torch.int64)
    call.value, call.dual, call.marginal_error = value.data_ptr(), dual.data_ptr(), error.data_ptr()
    call.n_iter_out = n_iter.data_ptr()
    kernels.cuda_sinkhorn_forward(call)
    check(n_iter, cost=cost, a=a, b=b)
    return value, dual, error, n_iter


def adjoint_tolerance(dtype: torch.dtype, tol: float) -> float:
    """The sweep back may stop where what remains is below rounding, or well below the tolerance asked for."""
    return max(0.1 * tol, (5.96e-8 if dtype == torch.float32 else 1.11e-16) / 4)


def backward(
    cost: Tensor,
    a,
    b,
    init_f,
    f: Tensor,
    g: Tensor,
    saved: Tensor,
    upstream: tuple[Tensor | None, ...],
    options,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the cost (B?, N, M) and of the masses (B?, N), (B?, M), from those of value, f, g."""
    call, _work = call_on(cost, a, b, init_f, f, g, saved, options, options.grad == "unrolled")
    return run_backward(call, cost, saved, upstream, options)


def run_backward(
    call, cost: Tensor, saved: Tensor, upstream: tuple[Tensor | None, ...], options
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same of a call."""
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    batch, size = lead.numel(), cost.element_size()
    implicit = options.grad == "implicit"
    call.value_weight, call.grad_f, call.grad_g = (_address(t) for t in upstream)
    grad_cost = empty(cost, *cost.shape)
    call.grad_cost = grad_cost.data_ptr()
    call.implicit, call.plan_only = implicit, options.grad == "envelope"
    grad_a = grad_b = None
    if options.grad != "envelope":
        rows = 1 if implicit else options.max_iter
        of_f, of_g = _even(batch * rows * n), _even(batch * rows * m)
        steps = empty(cost, of_f + of_g + 2 * batch)  # df, dg, and the first step, an int64 per problem
        call.df = steps.data_ptr()
        call.dg, call.first = call.df + size * of_f, call.df + size * (of_f + of_g)
        grad_a, grad_b = empty(cost, *lead, n), empty(cost, *lead, m)
        call.grad_a, call.grad_b = grad_a.data_ptr(), grad_b.data_ptr()
        call.tolerance = adjoint_tolerance(cost.dtype, options.tol)
        call.max_sweeps = max(1000, 10 * options.max_iter)
        kernels.cuda_sinkhorn_adjoint(call)
        if implicit:
            at = Saved(batch, n, m, options.max_iter, False).flags
            flags = saved[at : at + batch].view(torch.int32)[:batch]
            _not_converged.report_gradient((flags & NOT_CONVERGED).any())
    kernels.cuda_sinkhorn_gradient(call)
    return grad_cost, grad_a, grad_b
