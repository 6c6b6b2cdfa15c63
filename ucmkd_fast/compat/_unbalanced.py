"""Unbalanced functions of `compat.pot`: arguments read, problems run, values and logs as POT's methods write them."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from . import _relaxed
from ._arrays import Give, matrix, unify
from ._entropic import OfSolve, refuse
from ._relaxed import Found, Relaxed, Scalings
from ._result import OTResult
from ._stopping import mass_of, rule_of

METHODS = ("sinkhorn", "sinkhorn_stabilized", "sinkhorn_translation_invariant", "sinkhorn_reg_scaling")
REG_TYPES = ("kl", "entropy")
TAU = 1e5  # POT's
LOG_EPS = 1e-16  # POT's, inside the logarithms of its divergences


class Asked(NamedTuple):
    """Arguments as POT's functions are given them."""

    a: Any
    b: Any
    M: Any
    reg: Any
    reg_m: Any
    reg_type: Any
    c: Any
    warmstart: Any
    numItermax: Any
    stopThr: Any
    verbose: Any
    log: Any


class Solved(NamedTuple):
    """What a call found, and the way back to the caller's kind of array."""

    problem: Relaxed
    found: Found
    cost: Tensor  # (N, M)
    histograms: bool
    give: Give

    def plan(self) -> Tensor:
        """(N, M), or (K, N, M) of histograms."""
        return self.found.of.plan(self.found.at)

    def linear(self, plan: Tensor) -> Tensor:
        """``<P, M>``, () or (K,)."""
        return (plan * torch.where(plan > 0, self.cost, 0)).sum((-2, -1))

    def total(self, plan: Tensor, masses: bool = False) -> Tensor:
        """The objective, (), as POT's `sinkhorn_unbalanced` has it: divergences without their masses, or with them."""
        p, (rho_a, rho_b) = self.problem, self.problem.rho
        reference = p.a[:, None] * p.b if p.reference is None else p.reference
        value = self.linear(plan) + p.reg * divergence(plan, reference)
        if masses:
            value = value - p.reg * plan.sum()
        for rho, marginal, mass in ((rho_a, plan.sum(1), p.a), (rho_b, plan.sum(0), p.b)):
            if rho is not None:
                value = value + rho * divergence(marginal, mass)
                if masses:
                    value = value + rho * (mass - marginal).sum()
        return value

    def potentials(self) -> Scalings:
        """Log u and log v, (N,) and (M,) or (N, K) and (M, K), -inf where the mass is 0."""
        return Scalings(*(z.mT if self.histograms else z for z in self.found.at))

    def log(self, plan: Tensor) -> dict[str, Any]:
        """POT's dict."""
        log_u, log_v = self.potentials()
        known = {
            "err": [self.give(e) for e in self.found.errors],
            "logu": self.give(log_u),
            "logv": self.give(log_v),
        }
        if self.histograms:
            return known
        return {**known, "cost": self.give(self.linear(plan)), "total_cost": self.give(self.total(plan))}


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """``sum p log(p / q)``, POT's without the masses."""
    present = p > 0
    return (p * (p / torch.where(present, q, 1) + LOG_EPS).log()).sum()


def call(asked: Asked, method: Any, options: dict[str, Any]) -> Solved:
    """Read the arguments of a method and solve."""
    method = str(method).lower()
    checks.choice("method", method, METHODS)
    tau = TAU
    if method == "sinkhorn_stabilized" and "tau" in options:
        tau = checks.positive_number("tau", options.pop("tau"))
    if options:
        raise TypeError(f"{', '.join(options)}: no such argument of method {method!r} here; leave it out")
    if method == "sinkhorn_reg_scaling":
        warnings.warn("Method not implemented yet, as in POT: using method='sinkhorn'", stacklevel=3)
    solved = solve(asked, method, tau)
    if method == "sinkhorn_stabilized" and not solved.found.converged:
        warnings.warn(
            "Stabilized Unbalanced Sinkhorn did not converge: raise numItermax, stopThr or `reg`, or lower `reg_m`",
            stacklevel=3,
        )
    return solved


def solve(asked: Asked, method: str, tau: float = TAU) -> Solved:
    """Checked, with POT's rule of the method."""
    reg = checks.positive_number("reg", asked.reg)
    rho = relaxations(asked.reg_m)
    reg_type = str(asked.reg_type).lower()
    checks.choice("reg_type", reg_type, REG_TYPES)
    stabilized = method == "sinkhorn_stabilized"
    period = 10 if stabilized else 1
    rule = rule_of(asked.numItermax, "numItermax", asked.stopThr, "stopThr", period, asked.verbose)
    warm = asked.warmstart
    if warm is not None and not (isinstance(warm, (tuple, list)) and len(warm) == 2):
        raise TypeError(f"warmstart must be a pair of arrays, got {type(warm).__name__}")
    given = {} if warm is None else {"warmstart[0]": warm[0], "warmstart[1]": warm[1]}
    arrays, give = unify({"M": asked.M} | given, a=asked.a, b=asked.b, c=asked.c)
    cost = matrix("M", arrays["M"], "(N, M)")
    histograms = arrays["b"] is not None and arrays["b"].dim() == 2
    a, b = _masses(arrays["a"], arrays["b"], cost)
    problem = Relaxed(
        cost.expand(*b.shape[:-1], *cost.shape), a, b, _reference(arrays["c"], reg_type, cost, histograms), reg, rho,
        method == "sinkhorn_translation_invariant",
    )  # fmt: skip
    start = (
        problem.start() if warm is None else _warm(problem, arrays["warmstart[0]"], arrays["warmstart[1]"])
    )
    found = _relaxed.solve(problem, start, rule, tau if stabilized else None, bool(asked.log))
    return Solved(problem, found, cost, histograms, give)


def result(M: Any, a: Any, b: Any, asked: OfSolve, give: Give | None = None) -> OTResult:
    """Of `solve`; ``give`` where the arrays are tensors already, and not the caller's kind.

    With ``"KL"`` it is POT's `sinkhorn_knopp_unbalanced`. With ``"entropy"`` POT runs L-BFGS on the same objective,
    whose divergences have their masses there: here translation-invariant iterations find its minimum.
    """
    asked.check()
    entropy = asked.reg_type.lower() == "entropy"
    if asked.grad not in ("autodiff", "detach"):
        raise NotImplementedError(
            f"grad={asked.grad!r} with unbalanced= is not built here: POT does not read it; use 'autodiff' or 'detach'"
        )
    if entropy:
        advice = "POT reads it with reg_type='KL'; leave it out"
        refuse({"c": (asked.c, None, advice), "potentials_init": (asked.potentials_init, None, advice)})
    max_iter = 1000 if asked.max_iter is None else asked.max_iter
    tol = 1e-9 if asked.tol is None else asked.tol
    of_sinkhorn = Asked(
        a, b, M, asked.reg, asked.unbalanced, asked.reg_type, asked.c, asked.potentials_init, max_iter, tol,
        asked.verbose, False,
    )  # fmt: skip
    with torch.set_grad_enabled(torch.is_grad_enabled() and asked.grad == "autodiff"):
        solved = solve(of_sinkhorn, "sinkhorn_translation_invariant" if entropy else "sinkhorn")
        plan = solved.plan()
        linear, total = solved.linear(plan), solved.total(plan, masses=entropy)
    give = solved.give if give is None else give
    log_u, log_v = (give(z) for z in solved.potentials())
    return OTResult((log_u, log_v), give(total), give(linear), plan=give(plan))


def relaxations(reg_m: Any) -> tuple[float | None, float | None]:
    """Weights of the marginals of rows and columns, None where they are exact (inf)."""
    try:
        values = [float(reg_m)] if isinstance(reg_m, numbers.Real) else [float(value) for value in reg_m]
    except TypeError as error:
        raise TypeError(
            f"reg_m must be a number, or two for rows and columns, got {reg_m!r}; inf keeps a side exact"
        ) from error
    if not 1 <= len(values) <= 2:
        raise ValueError(f"reg_m must be one number or two, for rows and columns, got {len(values)}")
    pair = values * (3 - len(values))
    if not all(value > 0 for value in pair):  # false for NaN
        raise ValueError(f"reg_m must be > 0, or inf for an exact marginal, got {reg_m}")
    first, second = (None if value == math.inf else value for value in pair)
    return first, second


def _masses(a: Tensor | None, b: Tensor | None, cost: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) and (M,), or (K, N) and (K, M) of histograms."""
    a = mass_of("a", a, cost, 0)
    if b is None or b.dim() != 2:
        return a, mass_of("b", b, cost, 1)
    if b.shape[0] != cost.shape[1] or not b.shape[1]:
        raise ValueError(f"b must have shape ({cost.shape[1]}, K) with K > 0, got {tuple(b.shape)}")
    columns = torch.stack([mass_of("b", z, cost, 1) for z in b.unbind(1)])
    return a.expand(len(columns), -1), columns


def _reference(c: Tensor | None, reg_type: str, cost: Tensor, histograms: bool) -> Tensor | None:
    if histograms:  # POT's kernel is exp(-M / reg) there whatever reg_type is
        if c is not None:
            raise NotImplementedError(
                "c= with several histograms is not built here: POT does not read it; leave it out"
            )
        return torch.ones_like(cost)
    if reg_type == "entropy":
        if c is not None:
            warnings.warn("reg_type='entropy' has the reference measure 1: c is not read", stacklevel=5)
        return torch.ones_like(cost)
    if c is None:
        return None
    if c.shape != cost.shape:
        raise ValueError(f"c must have the shape of M, {tuple(cost.shape)}, got {tuple(c.shape)}")
    if c.is_cpu and not bool((c >= 0).all()):
        raise ValueError("c must be >= 0 everywhere, got a negative number or NaN")
    return c


def _warm(problem: Relaxed, log_u: Tensor | None, log_v: Tensor | None) -> Scalings:
    """Logarithms of scalings (N,) and (M,), or (N, K) and (M, K), as POT takes them."""
    assert log_u is not None and log_v is not None
    parts = []
    for k, (z, like) in enumerate(((log_u, problem.a), (log_v, problem.b))):
        size, count = like.shape[-1], like.shape[0] if like.dim() == 2 else 1
        if tuple(z.shape) not in ((size,), (size, count), (size, 1)):
            raise ValueError(
                f"warmstart[{k}] must have shape ({size},){f' or ({size}, {count})' if count > 1 else ''}, "
                f"got {tuple(z.shape)}"
            )
        z = z.detach()
        parts.append(
            (z.mT if z.dim() == 2 else z).expand(like.shape).clone() if like.dim() == 2 else z.reshape(size)
        )
    return Scalings(*parts)
