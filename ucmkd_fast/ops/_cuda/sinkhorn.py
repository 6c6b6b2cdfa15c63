"""Sinkhorn on given costs on a GPU: allocation, addresses, gradients. No checks and no autograd here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._native import _C
from .. import _dual, not_converged
from .._addresses import address
from .._problem import Gradients, Kept, Options, Problem, Solution, Upstream
from . import _device as device
from ._device import even


class Saved:
    """Where things lie in the block that the backward needs; sizes in elements of the cost's dtype."""

    def __init__(self, shape: tuple[int, int, int], options: Options, history: bool):
        batch, n, m = shape
        steps = options.max_iter if history else 1
        self.hist_f = 0
        self.hist_g = even(batch * (options.max_iter + 1 if history else 1) * n)
        self.log_f = self.hist_g + even(batch * steps * m)
        self.log_g = self.log_f + even(batch * steps * n)
        self.alpha = self.log_g + even(batch * steps * m)
        self.n_iter = self.alpha + even(batch * n)  # int64
        self.flags = self.n_iter + 2 * batch  # int32
        self.size = self.flags + even(batch)
        if options.unbalanced is not None:
            self.last_f = self.size
            self.last_g = self.last_f + even(batch * n)
            self.kept_a = self.last_g + even(batch * m)
            self.kept_b = self.kept_a + even(batch * n)
            self.shifts = self.kept_b + even(batch * m)
            self.size = self.shifts + even(3 * batch * steps)


def sizes_of(shape: torch.Size) -> tuple[int, int, int]:
    """(B, N, M) of a cost (B?, N, M)."""
    return shape[:-2].numel(), shape[-2], shape[-1]


def saved_size(shape: torch.Size, options: Options, history: bool) -> int:
    """As `Door.saved_size`."""
    return Saved(sizes_of(shape), options, history).size


class Place:
    """The memory of a solver: the block that the backward needs, and the potentials."""

    def __init__(self, saved: Tensor, f: Tensor, g: Tensor, shape: tuple[int, int, int], history: bool):
        self.saved, self.f, self.g, self.shape, self.history = saved, f, g, shape, history


def call_of(p: Problem, options: Options, at: Place) -> Any:
    """The part that every call of a problem shares."""
    batch, n, m = at.shape
    lies, size, base = (
        Saved(at.shape, options, at.history),
        at.saved.element_size(),
        at.saved.data_ptr(),
    )
    call = device.kernels.CudaSinkhorn()
    call.f64 = at.saved.dtype == torch.float64
    call.device = at.saved.device.index or 0
    call.stream, call.regime = device.stream(at.saved), device.regime
    call.own_barrier, call.clusters = device.own_barrier, device.clusters
    for name, number in device.tuning.items():
        setattr(call, f"tune_{name}", number)
    call.n, call.m, call.batch, call.max_iter = n, m, batch, options.max_iter
    call.reg, call.tol, call.history = options.reg, options.tol, at.history
    (call.rho_a, call.rho_b), call.shifted = options.rho, options.shifted
    call.relax = options.accelerate == "relax"
    call.a, call.b, call.init_f = address(p.a), address(p.b), address(p.init_f)
    call.a_stride = n if p.a is not None and p.a.dim() == 2 else 0
    call.b_stride = m if p.b is not None and p.b.dim() == 2 else 0
    call.f, call.g = at.f.data_ptr(), at.g.data_ptr()
    unbalanced = () if options.unbalanced is None else ("last_f", "last_g", "kept_a", "kept_b", "shifts")
    for name in ("hist_f", "hist_g", "log_f", "log_g", "alpha", "n_iter", "flags", *unbalanced):
        setattr(call, name, base + size * getattr(lies, name))
    return call


class Solver:
    """One problem on a given cost: its call, with the memory that has to stay alive meanwhile."""

    def __init__(self, p: Problem, options: Options, at: Place):
        self._p, self._options, self._at, self._cost = p, options, at, p.matrix
        self._call = call_of(p, options, at)
        self._call.cost = self._cost.data_ptr()
        self._work = device.empty(self._cost, device.kernels.cuda_sinkhorn_work(self._call))
        self._call.work = self._work.data_ptr()

    def forward(self) -> Solution:
        """Runs the iterations."""
        not_converged.flush_warnings()
        cost, at, call = self._cost, self._at, self._call
        lead = cost.shape[:-2]
        value, dual, error = (device.empty(cost, *lead) for _ in range(3))
        n_iter = device.empty(cost, *lead, dtype=torch.int64)
        call.value, call.dual, call.marginal_error = value.data_ptr(), dual.data_ptr(), error.data_ptr()
        call.n_iter_out = n_iter.data_ptr()
        device.kernels.cuda_sinkhorn_forward(call)
        device.check(n_iter, cost=cost, a=self._p.a, b=self._p.b)
        return Solution(value, dual, at.f, at.g, error, n_iter)

    def backward(self, up: _dual.Arriving) -> Gradients:
        """Gradients of the cost (B?, N, M) and of masses (B?, N), (B?, M), from those of value, f, g."""
        cost, at, call, options = self._cost, self._at, self._call, self._options
        lead, (batch, n, m), size = cost.shape[:-2], at.shape, cost.element_size()
        implicit = options.grad == "implicit"
        call.value_weight, call.grad_f, call.grad_g = address(up.value), address(up.f), address(up.g)
        grad_cost = device.empty(cost, *cost.shape)
        call.grad_cost = grad_cost.data_ptr()
        call.implicit, call.plan_only = implicit, options.grad == "envelope"
        grad_a = grad_b = None
        if options.grad != "envelope":
            rows = 1 if implicit else options.max_iter
            of_f, of_g = even(batch * rows * n), even(batch * rows * m)
            steps = device.empty(
                cost, of_f + of_g + 2 * batch
            )  # df, dg, and the first step, an int64 per problem
            call.df = steps.data_ptr()
            call.dg, call.first = call.df + size * of_f, call.df + size * (of_f + of_g)
            grad_a, grad_b = device.empty(cost, *lead, n), device.empty(cost, *lead, m)
            call.grad_a, call.grad_b = grad_a.data_ptr(), grad_b.data_ptr()
            call.tolerance = device.adjoint_tolerance(cost.dtype, options.tol)
            call.max_sweeps = _C.max_sweeps(options.max_iter)
            device.kernels.cuda_sinkhorn_adjoint(call)
            if implicit:
                flags = at.saved[Saved(at.shape, options, False).flags :][:batch]
                missed = flags.view(torch.int32)[:batch] & _C.FLAGS["not_converged"]
                not_converged.report_gradient(missed.any())
        device.kernels.cuda_sinkhorn_gradient(call)
        return Gradients(cost=grad_cost, a=grad_a, b=grad_b)


def solve(p: Problem, options: Options, save: bool) -> tuple[Solution, Tensor]:
    """As `Door.solve`."""
    cost = p.matrix
    lead, shape = cost.shape[:-2], sizes_of(cost.shape)
    history = save and options.grad == "unrolled"
    saved = device.empty(cost, Saved(shape, options, history).size)
    f, g = device.empty(cost, *lead, shape[1]), device.empty(cost, *lead, shape[2])
    return Solver(p, options, Place(saved, f, g, shape, history)).forward(), saved


def solve_backward(p: Problem, kept: Kept, up: Upstream, options: Options) -> Gradients:
    """As `Door.solve_backward`."""
    assert kept.block is not None and kept.f is not None and kept.g is not None
    shape = sizes_of(p.matrix.shape)
    solver = Solver(p, options, Place(kept.block, kept.f, kept.g, shape, options.grad == "unrolled"))
    if options.grad == "envelope":
        found = solver.backward(_dual.Arriving(_dual.envelope_weight(up)))
        grad_a, grad_b = _dual.envelope_masses(p, kept, up.dual, options, False)
        return found._replace(a=grad_a, b=grad_b)
    arriving = _dual.arriving(up, (p.a, p.b), (kept.f, kept.g), shape[1:], options)
    found = solver.backward(arriving)
    grad_a, grad_b = _dual.with_direct(arriving, (found.a, found.b))
    return found._replace(a=_dual.like_mass(grad_a, p.a), b=_dual.like_mass(grad_b, p.b))
