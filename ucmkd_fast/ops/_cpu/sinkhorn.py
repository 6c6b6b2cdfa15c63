"""Sinkhorn on given costs on a CPU: allocation, addresses, gradients. No checks and no autograd here."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._native import _C
from .. import _dual, not_converged
from .._addresses import address
from .._classes import Classes
from .._problem import Gradients, Kept, Options, Problem, Solution, Upstream
from ..refusals import explained
from .costs import Features


def padded(size: int) -> int:
    """As ``sinkhorn::padded`` of csrc, where symbolic sizes pass."""
    return (size + _C.PAD - 1) // _C.PAD * _C.PAD


def saved_size(shape: torch.Size, max_iter: int, history: bool) -> int:
    """As `Door.saved_size`: ``sinkhorn::saved_size`` of csrc for each problem, where symbolic sizes pass."""
    *lead, n, m = shape
    size = padded(n) * padded(m) + padded(n) + _C.PAD
    each = size + (padded((max_iter + 1) * n) + padded(max_iter * m) if history else 0)
    return each * lead[0] if lead else each


class Place(NamedTuple):
    """Where a native problem lies, beside the tensors of a `Problem`."""

    cost: Tensor  # (B?, N, M), or a block that begins with it
    saved: int  # address of what the solver keeps
    history: bool  # of the iterations, for their gradient
    features: Features | None = None
    classes: Classes | None = None


def native(p: Problem, options: Options, sizes: tuple[int, ...], at: Place) -> _C.Problem:
    """The native problem, of ``sizes`` (B?, N, M)."""
    *lead, n, m = sizes
    a, b = p.a, p.b
    return _C.Problem(
        f64=at.cost.dtype == torch.float64, batch=lead[0] if lead else 1, n=n, m=m, reg=options.reg,
        max_iter=options.max_iter, tol=options.tol, cost=at.cost.data_ptr(), saved=at.saved, a=address(a),
        a_shared=a is None or a.dim() == 1, b=address(b), b_shared=b is None or b.dim() == 1,
        init_f=address(p.init_f), init_g=address(p.init_g), relax=options.accelerate == "relax", history=at.history,
        features=None if at.features is None else at.features.native(classes=at.classes),
    )  # fmt: skip


def solve(p: Problem, options: Options, save: bool) -> tuple[Solution, Tensor]:
    """As `Door.solve`. Raises ValueError for values that the kernel refuses."""
    cost = p.matrix
    lead, (n, m) = cost.shape[:-2], cost.shape[-2:]
    history = save and options.grad == "unrolled"
    saved = cost.new_empty(saved_size(cost.shape, options.max_iter, history))
    value, dual, error = cost.new_empty(lead), cost.new_empty(lead), cost.new_empty(lead)
    n_iter = torch.empty(lead, dtype=torch.int64)
    found = Solution(value, dual, cost.new_empty((*lead, n)), cost.new_empty((*lead, m)), error, n_iter)
    problem = native(p, options, cost.shape, Place(cost, saved.data_ptr(), history))
    outputs = {name: z.data_ptr() for name, z in found._asdict().items()}
    refused = _C.sinkhorn_forward(problem, save_plan=save, **outputs)
    if refused is not None:
        raise ValueError(explained(refused, cost=cost, a=p.a, b=p.b))
    return found, saved


def solve_backward(p: Problem, kept: Kept, up: Upstream, options: Options) -> Gradients:
    """As `Door.solve_backward`."""
    cost = p.matrix
    assert kept.block is not None
    place = Place(cost, kept.block.data_ptr(), options.grad == "unrolled")
    problem = native(p, options, cost.shape, place)
    grad_cost = torch.empty_like(cost)
    if options.grad == "envelope":
        weight = _dual.envelope_weight(up)
        _C.sinkhorn_envelope(problem, _C.Upstream(value=weight.data_ptr()), grad_cost=grad_cost.data_ptr())
        grad_a, grad_b = _dual.envelope_masses(p, kept, up.dual, options.reg, True)
        return Gradients(cost=grad_cost, a=grad_a, b=grad_b)
    sizes = cost.shape[-2], cost.shape[-1]
    arriving = _dual.arriving(up, (p.a, p.b), (kept.f, kept.g), sizes, options.reg)
    upstream = native_upstream(arriving)
    lead = cost.shape[:-2]
    grad_a, grad_b = (
        None if mass is None else cost.new_empty((*lead, size))
        for mass, size in zip((p.a, p.b), sizes, strict=True)
    )
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


class Adjoint(NamedTuple):
    """What the sweep back leaves: the gradient of a cost is made from left' right."""

    left: Tensor  # (B?, depth, N)
    right: Tensor  # (B?, depth, M)
    depths: Tensor  # (B or 1,) int64 of each problem; -1 where it needs the log domain


def adjoint(
    problem: _C.Problem, upstream: _C.Upstream, like: Tensor, sizes: tuple[int, ...], max_iter: int,
    masses: dict[str, int],
) -> Adjoint:  # fmt: skip
    """The adjoint sweep of a problem of ``sizes`` (B?, N, M); depth is 0 where all need the log domain."""
    *lead, n, m = sizes
    rows = 2 * max_iter
    left, right = like.new_empty((*lead, rows, n)), like.new_empty((*lead, rows, m))
    depths = torch.empty(lead or (1,), dtype=torch.int64)
    depth = _C.sinkhorn_adjoint(
        problem, upstream, left=left.data_ptr(), right=right.data_ptr(), depth=depths.data_ptr(), **masses
    )
    return Adjoint(left[..., :depth, :], right[..., :depth, :], depths)
