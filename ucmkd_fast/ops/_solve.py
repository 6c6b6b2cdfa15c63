"""Calls of the native Sinkhorn: allocation, addresses, gradients. No checks and no autograd here."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from .._native import _C

PAD = _C.padded(1)  # kPad of csrc/sinkhorn/params.h


class Solved(NamedTuple):
    """Outputs of one forward call, with the batch dimension of the cost (or none)."""

    value: Tensor  # (B?) <P, C>
    dual: Tensor  # (B?) dual value of <P, C> + reg KL(P | a b')
    f: Tensor  # (B?, N)
    g: Tensor  # (B?, M)
    marginal_error: Tensor  # (B?) sum_j |(P'1)_j - b_j|
    info: Tensor  # (B?, 2) int64: iterations that ran, kind of history
    saved: Tensor  # (B * saved_size,) what the backward needs


def _padded(size: int) -> int:
    return (size + PAD - 1) // PAD * PAD


def saved_size(n: int, m: int, max_iter: int, history: bool) -> int:
    """As ``sinkhorn::saved_size`` in csrc; in Python so that symbolic sizes pass."""
    size = _padded(n) * _padded(m) + _padded(n)
    return size + (_padded((max_iter + 1) * n) + _padded(max_iter * m) if history else 0)


def _problem(cost, a, b, init_f, saved, info, reg, max_iter, tol, history):
    n, m = cost.shape[-2:]
    batch = cost.shape[0] if cost.dim() == 3 else 1
    return _C.SinkhornProblem(
        cost.dtype == torch.float64, batch, n, m, max_iter, reg, tol, cost.data_ptr(),
        0 if a is None else a.data_ptr(), a is None or a.dim() == 1,
        0 if b is None else b.data_ptr(), b is None or b.dim() == 1,
        0 if init_f is None else init_f.data_ptr(), history, saved.data_ptr(), info.data_ptr(),
    )  # fmt: skip


def forward(
    cost: Tensor,  # (B?, N, M) contiguous
    a: Tensor | None,  # (B?, N) contiguous
    b: Tensor | None,  # (B?, M) contiguous
    init_f: Tensor | None,  # (B?, N) contiguous
    reg: float,
    max_iter: int,
    tol: float,
    history: bool,
    save_plan: bool,
) -> Solved:
    """Run the iterations. Raises ValueError for values that the kernel refuses."""
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    batch = lead[0] if lead else 1
    saved = cost.new_empty(batch * saved_size(n, m, max_iter, history))
    info = torch.empty((*lead, 2), dtype=torch.int64)
    f, g = cost.new_empty((*lead, n)), cost.new_empty((*lead, m))
    value, dual, error = cost.new_empty(lead), cost.new_empty(lead), cost.new_empty(lead)
    problem = _problem(cost, a, b, init_f, saved, info, reg, max_iter, tol, history)
    refused = _C.sinkhorn_forward(
        problem, save_plan, f.data_ptr(), g.data_ptr(), value.data_ptr(), dual.data_ptr(), error.data_ptr()
    )
    if refused is not None:
        raise ValueError(refused)
    return Solved(value, dual, f, g, error, info, saved)


def _dual_upstream(cost, a, b, f, g, reg, grad_dual, grad_f, grad_g):
    """The dual value <f - reg log a, a> + <g - reg log b, b> - reg (sum a - sum a sum b) as upstream of f, g, a, b.

    At N = 1 to M = 1 as elsewhere; rows and columns of zero mass take no part.
    """
    w = grad_dual[..., None]
    n, m = cost.shape[-2:]
    mass_a = f.new_full((n,), 1 / n) if a is None else a
    mass_b = g.new_full((m,), 1 / m) if b is None else b
    grad_f = w * mass_a + (0 if grad_f is None else grad_f)
    grad_g = w * mass_b + (0 if grad_g is None else grad_g)

    def direct(mass, potential, other):
        free = torch.where(mass > 0, potential - reg * mass.log(), 0)
        return w * torch.where(mass > 0, free - 2 * reg + reg * other.sum(-1, keepdim=True), 0)

    direct_a = None if a is None else direct(mass_a, f, mass_b)
    direct_b = (
        None
        if b is None
        else w * torch.where(mass_b > 0, g - reg * mass_b.log() - reg + reg * mass_a.sum(-1, keepdim=True), 0)
    )
    return grad_f.contiguous(), grad_g.contiguous(), direct_a, direct_b


def backward(
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    init_f: Tensor | None,
    f: Tensor,
    g: Tensor,
    saved: Tensor,
    info: Tensor,
    grad_value: Tensor | None,
    grad_dual: Tensor | None,
    grad_f: Tensor | None,
    grad_g: Tensor | None,
    reg: float,
    max_iter: int,
    tol: float,
    grad: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the cost (B?, N, M) and of the masses (B?, N), (B?, M)."""
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    if grad == "envelope":
        return _envelope(cost, a, b, f, g, saved, info, grad_value, grad_dual, reg, max_iter, tol)
    direct_a = direct_b = None
    if grad_dual is not None:
        grad_f, grad_g, direct_a, direct_b = _dual_upstream(cost, a, b, f, g, reg, grad_dual, grad_f, grad_g)
    up = [None if t is None else t.contiguous() for t in (grad_value, grad_f, grad_g)]
    addresses = [0 if t is None else t.data_ptr() for t in up]
    grad_a, grad_b = cost.new_empty((*lead, n)), cost.new_empty((*lead, m))
    problem = _problem(cost, a, b, init_f, saved, info, reg, max_iter, tol, grad == "unrolled")
    if grad == "implicit":
        grad_cost = torch.empty_like(cost)
        if not _C.sinkhorn_implicit(
            problem, *addresses, grad_cost.data_ptr(), grad_a.data_ptr(), grad_b.data_ptr()
        ):
            warnings.warn(
                "the implicit gradient of sinkhorn did not reach its tolerance: the iterations converge too slowly "
                "at this reg; raise reg, or use grad='unrolled', which is exact for the iterations that ran",
                stacklevel=2,
            )
    else:
        left = cost.new_empty((*lead, 2 * max_iter, n))
        right = cost.new_empty((*lead, 2 * max_iter, m))
        depths = torch.empty(lead or (1,), dtype=torch.int64)
        depth = _C.sinkhorn_adjoint(
            problem, *addresses, left.data_ptr(), right.data_ptr(), grad_a.data_ptr(), grad_b.data_ptr(),
            depths.data_ptr(),
        )  # fmt: skip
        if depth == 0:
            grad_cost = torch.empty_like(cost)
        else:
            grad_cost = torch.matmul(left[..., :depth, :].mT, right[..., :depth, :])
        _C.sinkhorn_adjoint_finish(
            problem, *addresses, depths.data_ptr(), grad_cost.data_ptr(), grad_a.data_ptr(), grad_b.data_ptr()
        )
    if direct_a is not None:
        grad_a += direct_a
    if direct_b is not None:
        grad_b += direct_b
    return grad_cost, _like_mass(grad_a, a), _like_mass(grad_b, b)


def _like_mass(grad: Tensor, mass: Tensor | None) -> Tensor:
    """Masses shared by a batch get the sum of its gradients."""
    return grad.sum(0) if mass is not None and grad.dim() > mass.dim() else grad


def _free(cost: Tensor, f: Tensor, g: Tensor, mass: Tensor, reg: float) -> Tensor:
    """F without its log-mass, finite also where the mass is 0."""
    regular = f - reg * mass.log()
    if bool((mass > 0).all()):
        return regular
    everywhere = -reg * torch.logsumexp((g[..., None, :] - cost) / reg, -1)
    return torch.where(mass > 0, regular, everywhere)


def _envelope(cost, a, b, f, g, saved, info, grad_value, grad_dual, reg, max_iter, tol):
    """DC = P; da, db = the potentials without the masses (of the regularised value)."""
    weight = grad_value if grad_dual is None else grad_dual if grad_value is None else grad_value + grad_dual
    grad_cost = torch.empty_like(cost)
    weight = weight.contiguous()
    problem = _problem(cost, a, b, None, saved, info, reg, max_iter, tol, False)
    _C.sinkhorn_envelope(problem, weight.data_ptr(), grad_cost.data_ptr())
    grad_a, grad_b = torch.zeros_like(f), torch.zeros_like(g)
    if grad_dual is not None:
        w = grad_dual[..., None]
        if a is not None:
            grad_a = w * _free(cost, f, g, a, reg)
        if b is not None:
            grad_b = w * _free(cost.mT, g, f, b, reg)
    return grad_cost, _like_mass(grad_a, a), _like_mass(grad_b, b)
