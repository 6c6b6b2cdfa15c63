"""Sinkhorn on given costs on a CPU: allocation, addresses, gradients. No checks and no autograd here."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import _C
from .. import _dual, not_converged
from .._addresses import address
from .._problem import Gradients, Kept, Options, Problem, Solution, Upstream
from ..refusals import explained


def padded(size: int) -> int:
    """As ``sinkhorn::padded`` of csrc, where symbolic sizes pass."""
    return (size + _C.PAD - 1) // _C.PAD * _C.PAD


def saved_size(shape: torch.Size, options: Options, history: bool) -> int:
    """As `Door.saved_size`: ``sinkhorn::saved_size`` of csrc for each problem, where symbolic sizes pass."""
    *lead, n, m = shape
    max_iter = options.max_iter
    size = padded(n) * padded(m) + padded(n) + _C.PAD
    each = size + (padded((max_iter + 1) * n) + padded(max_iter * m) if history else 0)
    if options.unbalanced is not None:
        steps = max_iter if history else 1
        each += padded(steps * n) + padded(steps * m)
    return each * lead[0] if lead else each


def native(
    p: Problem, options: Options, sizes: tuple[int, ...], cost: Tensor, saved: int, history: bool,
    features: _C.Features | None = None,
) -> _C.Problem:  # fmt: skip
    """The native problem of ``sizes`` (B?, N, M), in memory that begins with its cost.

    ``saved`` is the address of what the solver keeps, with the ``history`` of the iterations for their gradient.
    """
    *lead, n, m = sizes
    a, b, (rho_a, rho_b) = p.a, p.b, options.rho
    return _C.Problem(
        f64=cost.dtype is torch.float64, batch=lead[0] if lead else 1, n=n, m=m, reg=options.reg,
        max_iter=options.max_iter, tol=options.tol, cost=cost.data_ptr(), saved=saved, a=address(a),
        a_shared=a is None or a.dim() == 1, b=address(b), b_shared=b is None or b.dim() == 1,
        init_f=address(p.init_f), init_g=address(p.init_g), relax=options.accelerate == "relax", history=history,
        rho_a=rho_a, rho_b=rho_b, shifted=options.shifted, features=features,
    )  # fmt: skip


def solve(p: Problem, options: Options, save: bool) -> tuple[Solution, Tensor]:
    """As `Door.solve`. Raises ValueError for values that the kernel refuses."""
    cost = p.matrix
    shape = cost.shape
    lead, (n, m) = shape[:-2], shape[-2:]
    history = save and options.grad == "unrolled"
    saved = cost.new_empty(saved_size(shape, options, history))
    value, dual, error = cost.new_empty(lead), cost.new_empty(lead), cost.new_empty(lead)
    f, g, n_iter = (
        cost.new_empty((*lead, n)),
        cost.new_empty((*lead, m)),
        torch.empty(lead, dtype=torch.int64),
    )
    refused = _C.sinkhorn_forward(
        native(p, options, shape, cost, saved.data_ptr(), history), save_plan=save, f=f.data_ptr(), g=g.data_ptr(),
        value=value.data_ptr(), dual=dual.data_ptr(), marginal_error=error.data_ptr(), n_iter=n_iter.data_ptr(),
    )  # fmt: skip
    if refused is not None:
        raise ValueError(explained(refused, cost=cost, a=p.a, b=p.b))
    return Solution(value, dual, f, g, error, n_iter), saved


def solve_backward(p: Problem, kept: Kept, up: Upstream, options: Options) -> Gradients:
    """As `Door.solve_backward`."""
    cost = p.matrix
    assert kept.block is not None
    problem = native(p, options, cost.shape, cost, kept.block.data_ptr(), options.grad == "unrolled")
    grad_cost = torch.empty_like(cost)
    if options.grad == "envelope":
        weight = _dual.envelope_weight(up)
        _C.sinkhorn_envelope(problem, _C.Upstream(value=weight.data_ptr()), grad_cost=grad_cost.data_ptr())
        grad_a, grad_b = _dual.envelope_masses(p, kept, up.dual, options, True)
        return Gradients(cost=grad_cost, a=grad_a, b=grad_b)
    sizes = cost.shape[-2], cost.shape[-1]
    arriving = _dual.arriving(up, (p.a, p.b), (kept.f, kept.g), sizes, options)
    upstream = native_upstream(arriving)
    grad_a = None if p.a is None else cost.new_empty(cost.shape[:-1])
    grad_b = None if p.b is None else cost.new_empty((*cost.shape[:-2], sizes[1]))
    masses = {"grad_a": address(grad_a), "grad_b": address(grad_b)}
    if options.grad == "implicit":
        if not _C.sinkhorn_implicit(problem, upstream, grad_cost=grad_cost.data_ptr(), **masses):
            not_converged.warn_of_gradient()
    else:  # the adjoint sweep, one matrix product of its vectors, and dC made in place of the product
        left, right, depths = adjoint(problem, upstream, cost, cost.shape, options.max_iter, masses)
        if left.shape[-2]:  # out=: autocast leaves it alone
            torch.matmul(left.mT, right, out=grad_cost)
        _C.sinkhorn_adjoint_finish(
            problem, upstream, depth=depths.data_ptr(), grad_cost=grad_cost.data_ptr(), **masses
        )
    grad_a, grad_b = _dual.with_direct(arriving, (grad_a, grad_b))
    return Gradients(cost=grad_cost, a=_dual.like_mass(grad_a, p.a), b=_dual.like_mass(grad_b, p.b))


def native_upstream(up: _dual.Arriving) -> _C.Upstream:
    """The same for the native calls."""
    return _C.Upstream(value=address(up.value), f=address(up.f), g=address(up.g))


def adjoint(
    problem: _C.Problem, upstream: _C.Upstream, like: Tensor, sizes: tuple[int, ...], max_iter: int,
    masses: dict[str, int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The adjoint sweep of a problem of ``sizes`` (B?, N, M): the gradient of its cost is made from left' right.

    Returns left (B?, depth, N) and right (B?, depth, M), and the depth (B or 1,) int64 of each problem: -1 where it
    needs the log domain; the common depth is 0 where all do.
    """
    *lead, n, m = sizes
    rows = 2 * max_iter
    left, right = like.new_empty((*lead, rows, n)), like.new_empty((*lead, rows, m))
    depths = torch.empty(lead or (1,), dtype=torch.int64)
    depth = _C.sinkhorn_adjoint(
        problem, upstream, left=left.data_ptr(), right=right.data_ptr(), depth=depths.data_ptr(), **masses
    )
    return left[..., :depth, :], right[..., :depth, :], depths
