"""Calls of the native Sinkhorn: allocation, addresses, gradients. No checks and no autograd here."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import _C
from . import _not_converged, _solve_cuda
from .refusals import explained

GRAD_CODES = {"unrolled": 0, "implicit": 1, "envelope": 2}  # Grad of csrc/sinkhorn/entry.h
PAD = _C.padded(1)  # kPad of csrc/sinkhorn/params.h
_NO_FEATURES = (-1, 0, 0, 0, 0, 0)
_NO_WEIGHTS = (0, 0)


class Options(NamedTuple):
    """What a call runs with, once checked."""

    reg: float
    max_iter: int
    tol: float
    grad: str
    accelerate: str | None = None


class Solved(NamedTuple):
    """Outputs of one forward call, with the batch dimension of the cost (or none)."""

    value: Tensor  # (B?) <P, C>
    dual: Tensor  # (B?) dual value of <P, C> + reg KL(P | a b')
    f: Tensor  # (B?, N)
    g: Tensor  # (B?, M)
    marginal_error: Tensor  # (B?) sum_j |(P'1)_j - b_j|
    n_iter: Tensor  # (B?) int64
    saved: Tensor  # (B * saved_size,) what the backward needs


def _padded(size: int) -> int:
    return (size + PAD - 1) // PAD * PAD


def saved_size(n: int, m: int, max_iter: int, history: bool) -> int:
    """As ``sinkhorn::saved_size`` in csrc; in Python so that symbolic sizes pass."""
    size = _padded(n) * _padded(m) + _padded(n) + PAD
    return size + (_padded((max_iter + 1) * n) + _padded(max_iter * m) if history else 0)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _problem(cost, a, b, init_f, init_g, saved, options, history):
    n, m = cost.shape[-2:]
    return _C.SinkhornProblem(
        cost.dtype == torch.float64, cost.shape[0] if cost.dim() == 3 else 1, n, m, options.max_iter, options.reg,
        options.tol, cost.data_ptr(), _address(a), a is None or a.dim() == 1, _address(b), b is None or b.dim() == 1,
        _address(init_f), _address(init_g), options.accelerate == "relax", history, saved.data_ptr(),
        *_NO_FEATURES,
    )  # fmt: skip


def forward(
    cost: Tensor,  # (B?, N, M) contiguous
    a: Tensor | None,  # (B?, N) contiguous
    b: Tensor | None,  # (B?, M) contiguous
    init_f: Tensor | None,  # (B?, N) contiguous
    init_g: Tensor | None,  # (B?, M) contiguous
    options: Options,
    save: bool,
) -> Solved:
    """Run the iterations. Raises ValueError for values that the kernel refuses."""
    if _solve_cuda.runs_on(cost):
        return Solved(*_solve_cuda.forward(cost, a, b, init_f, options, save))
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    history = save and options.grad == "unrolled"
    saved = cost.new_empty((lead[0] if lead else 1) * saved_size(n, m, options.max_iter, history))
    f, g = cost.new_empty((*lead, n)), cost.new_empty((*lead, m))
    value, dual, error = cost.new_empty(lead), cost.new_empty(lead), cost.new_empty(lead)
    n_iter = torch.empty(lead, dtype=torch.int64)
    problem = _problem(cost, a, b, init_f, init_g, saved, options, history)
    outputs = (f, g, value, dual, error, n_iter)
    refused = _C.sinkhorn_forward(problem, save, *(_address(t) for t in outputs))
    if refused is not None:
        raise ValueError(explained(refused, cost=cost, a=a, b=b))
    return Solved(value, dual, f, g, error, n_iter, saved)


def _dual_upstream(cost, n, m, a, b, f, g, reg, grad_dual, grad_f, grad_g):
    """Upstream of f, g, a, b from that of the dual value.

    <f - reg log a, a> + <g - reg log b, b> - reg (sum a - sum a sum b); zero masses take no part.
    """
    w = grad_dual[..., None]
    mass_a = cost.new_full((n,), 1 / n) if a is None else a
    mass_b = cost.new_full((m,), 1 / m) if b is None else b
    grad_f = w * mass_a if grad_f is None else w * mass_a + grad_f
    grad_g = w * mass_b if grad_g is None else w * mass_b + grad_g
    direct_a = direct_b = None
    if a is not None:
        free = f - reg * a.log()
        direct_a = w * torch.where(a > 0, free - 2 * reg + reg * mass_b.sum(-1, keepdim=True), 0)
    if b is not None:
        free = g - reg * b.log()
        direct_b = w * torch.where(b > 0, free - reg + reg * mass_a.sum(-1, keepdim=True), 0)
    return grad_f.contiguous(), grad_g.contiguous(), direct_a, direct_b


class Upstream(NamedTuple):
    """Upstream gradients as the kernels take them."""

    value: Tensor | None  # (B?)
    f: Tensor | None = None  # (B?, N)
    g: Tensor | None = None  # (B?, M)
    direct_a: Tensor | None = None  # (B?, N), to be added to the gradient of a
    direct_b: Tensor | None = None


def _upstream(n, m, like, a, b, f, g, upstream, options: Options) -> Upstream:
    """From that of value, dual, f, g."""
    value, dual, up_f, up_g = upstream
    if options.grad == "envelope":
        weight = value if dual is None else dual if value is None else value + dual
        assert weight is not None, "some upstream gradient is there"
        return Upstream(weight.contiguous())
    direct_a = direct_b = None
    if dual is not None:
        up_f, up_g, direct_a, direct_b = _dual_upstream(like, n, m, a, b, f, g, options.reg, dual, up_f, up_g)
    value, up_f, up_g = (None if t is None else t.contiguous() for t in (value, up_f, up_g))
    return Upstream(value, up_f, up_g, direct_a, direct_b)


def _plus(grad: Tensor | None, direct: Tensor | None) -> Tensor | None:
    return grad if grad is None or direct is None else grad.add_(direct)


def problem_of(cost, a, b, init_f, init_g, saved, options: Options) -> Any:
    """The native problem of a backward on a given cost; on a CUDA device, what is needed to make one."""
    if _solve_cuda.runs_on(cost):
        return init_f, saved
    return _problem(cost, a, b, init_f, init_g, saved, options, options.grad == "unrolled")


def backward(
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    f: Tensor | None,  # read where the masses have a gradient
    g: Tensor | None,
    problem: Any,
    upstream: tuple[Tensor | None, ...],  # of value, dual, f, g
    options: Options,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the cost (B?, N, M) and of given masses (B?, N), (B?, M)."""
    if _solve_cuda.runs_on(cost):
        return _backward_cuda(cost, a, b, f, g, problem, upstream, options)
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    up = _upstream(n, m, cost, a, b, f, g, upstream, options)
    up_addresses = [_address(t) for t in up[:3]]
    if options.grad == "envelope":
        grad_cost = torch.empty_like(cost)
        _C.sinkhorn_envelope(problem, up_addresses[0], grad_cost.data_ptr(), *_NO_WEIGHTS)
        return grad_cost, *_envelope_masses(cost, a, b, f, g, upstream[1], options.reg)
    grad_a = None if a is None else cost.new_empty((*lead, n))
    grad_b = None if b is None else cost.new_empty((*lead, m))
    masses = (_address(grad_a), _address(grad_b))
    if options.grad == "implicit":
        grad_cost = torch.empty_like(cost)
        if not _C.sinkhorn_implicit(problem, *up_addresses, grad_cost.data_ptr(), *masses, *_NO_WEIGHTS):
            _not_converged.warn_of_gradient()
    else:
        grad_cost = _unrolled(problem, cost, up_addresses, masses, options.max_iter)
    grad_a, grad_b = _plus(grad_a, up.direct_a), _plus(grad_b, up.direct_b)
    return grad_cost, _like_mass(grad_a, a), _like_mass(grad_b, b)


def _backward_cuda(
    cost, a, b, f, g, problem, upstream, options
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same on the device: gradients of the cost and of given masses."""
    init_f, saved = problem
    n, m = cost.shape[-2:]
    up = _upstream(n, m, cost, a, b, f, g, upstream, options)
    grad_cost, grad_a, grad_b = _solve_cuda.backward(cost, a, b, init_f, f, g, saved, up[:3], options)
    if options.grad == "envelope":
        return grad_cost, *_envelope_masses(cost, a, b, f, g, upstream[1], options.reg)
    grad_a, grad_b = _plus(grad_a, up.direct_a), _plus(grad_b, up.direct_b)
    return grad_cost, _like_mass(grad_a, a), _like_mass(grad_b, b)


class Adjoint(NamedTuple):
    """What the sweep back leaves: the gradient of a cost is made from left' right."""

    left: Tensor  # (B?, depth, N)
    right: Tensor  # (B?, depth, M)
    depths: Tensor  # (B or 1,) int64 of each problem; -1 where it needs the log domain


def adjoint(problem, cost: Tensor, lead, n: int, m: int, up_addresses, masses, max_iter: int) -> Adjoint:
    """The adjoint sweep of a problem on tensors like ``cost``; depth is 0 where all need the log domain."""
    rows = 2 * max_iter
    left, right = cost.new_empty((*lead, rows, n)), cost.new_empty((*lead, rows, m))
    depths = torch.empty(lead or (1,), dtype=torch.int64)
    depth = _C.sinkhorn_adjoint(
        problem, *up_addresses, left.data_ptr(), right.data_ptr(), *masses, depths.data_ptr()
    )
    return Adjoint(left[..., :depth, :], right[..., :depth, :], depths)


def _unrolled(problem, cost, up_addresses, masses, max_iter: int) -> Tensor:
    """The adjoint sweep, one matrix product of its vectors, and dC made in place of the product."""
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    left, right, depths = adjoint(problem, cost, lead, n, m, up_addresses, masses, max_iter)
    grad_cost = torch.empty_like(cost)
    if left.shape[-2]:  # out=: autocast leaves it alone
        torch.matmul(left.mT, right, out=grad_cost)
    _C.sinkhorn_adjoint_finish(
        problem, *up_addresses, depths.data_ptr(), grad_cost.data_ptr(), *masses, *_NO_WEIGHTS
    )
    return grad_cost


def _like_mass(grad: Tensor | None, mass: Tensor | None) -> Tensor | None:
    """Masses shared by a batch get the sum of its gradients."""
    if grad is None or mass is None:
        return None
    return grad.sum(0) if grad.dim() > mass.dim() else grad


def _free(cost: Tensor, f: Tensor, g: Tensor, mass: Tensor, reg: float) -> Tensor:
    """Potential f without its log-mass, finite also where the mass is 0."""
    regular = f - reg * mass.log()
    if mass.device.type == "cpu" and bool((mass > 0).all()):  # elsewhere this would wait for the device
        return regular
    everywhere = -reg * torch.logsumexp((g[..., None, :] - cost) / reg, -1)
    return torch.where(mass > 0, regular, everywhere)


def _envelope_masses(cost, a, b, f, g, grad_dual, reg) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the regularised value: the potentials without the masses. The plan is a constant of the other."""
    if grad_dual is None:
        zero_a, zero_b = (None if mass is None else torch.zeros_like(mass) for mass in (a, b))
        return zero_a, zero_b
    w = grad_dual[..., None]
    return (
        None if a is None else _like_mass(w * _free(cost, f, g, a, reg), a),
        None if b is None else _like_mass(w * _free(cost.mT, g, f, b, reg), b),
    )
