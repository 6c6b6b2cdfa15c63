"""`solve` and `solve_sample` of `compat.pot`: what is refused, and the fields of the result."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from . import _stopping
from ._arrays import Give
from ._result import OTResult, WithGradients
from ._stopping import Rule, mass_of, rule_of, warn_not_converged

GRADS = ("autodiff", "envelope", "last_step", "detach")
USE_POT = "use POT's own function"


class Settings(NamedTuple):
    """Arguments of `solve`, once checked."""

    reg: float
    kl: bool  # else entropy
    rule: Rule
    grad: str


def refuse(given: dict[str, tuple[Any, Any, str]]) -> None:
    """Raise for the first argument that is not at its default; entries are (value, default, alternative)."""
    for name, (value, default, alternative) in given.items():
        if value is not default and not (isinstance(value, (str, int, float)) and value == default):
            raise NotImplementedError(f"{name}= is not built here: {alternative}")


class OfSolve(NamedTuple):
    """Arguments that `solve` and `solve_sample` share, as they are given."""

    reg: Any
    c: Any
    reg_type: Any
    unbalanced: Any
    unbalanced_type: Any
    method: Any
    n_threads: Any
    max_iter: Any
    plan_init: Any
    potentials_init: Any
    tol: Any
    verbose: Any
    grad: Any

    def check(self) -> None:
        """What is refused of every problem."""
        refuse({
            "n_threads": (self.n_threads, 1, "torch.set_num_threads(n) sets the threads of the kernels"),
            "plan_init": (self.plan_init, None, "start from potentials, sinkhorn(..., warmstart=(log_u, log_v))"),
        })  # fmt: skip
        if self.reg is None or (isinstance(self.reg, (int, float)) and self.reg == 0):
            raise NotImplementedError(
                f"exact transport (reg=None or 0) is not built here: give reg > 0, or {USE_POT}"
            )
        if not isinstance(self.reg_type, str) or self.reg_type.lower() not in ("kl", "entropy"):
            raise NotImplementedError(
                f"reg_type={self.reg_type!r} is not built here: use 'KL' or 'entropy', or {USE_POT}"
            )
        if not isinstance(self.unbalanced_type, str) or self.unbalanced_type.lower() != "kl":
            raise NotImplementedError(
                f"unbalanced_type={self.unbalanced_type!r} is not built here: use 'KL', or {USE_POT}"
            )
        if self.method not in (None, "sinkhorn", "sinkhorn_log"):
            raise NotImplementedError(
                f"method={self.method!r} is not built here: leave it out, or use 'sinkhorn_log'"
            )
        checks.choice("grad", self.grad, GRADS)


def settings(asked: OfSolve) -> Settings:
    """Of a balanced problem, checked; raises as `pot.solve` says."""
    refuse({
        "c": (asked.c, None, "POT reads it with unbalanced=, here the reference measure is a b'; leave it out"),
        "potentials_init": (asked.potentials_init, None, "use sinkhorn(..., warmstart=(log_u, log_v))"),
    })  # fmt: skip
    asked.check()
    max_iter = 1000 if asked.max_iter is None else asked.max_iter
    rule = rule_of(max_iter, "max_iter", 1e-9 if asked.tol is None else asked.tol, "tol", 10, asked.verbose)
    if asked.grad == "last_step" and rule.max_iter < 2:
        raise ValueError(f"grad='last_step' needs max_iter >= 2, got {max_iter}")
    return Settings(
        checks.positive_number("reg", asked.reg), asked.reg_type.lower() == "kl", rule, asked.grad
    )


def solve(cost: Tensor, a: Tensor | None, b: Tensor | None, settings: Settings, give: Give) -> OTResult:
    """The result for a cost (N, M) and masses (N,), (M,), None where uniform."""
    reg, kl, rule, grad = settings
    live = cost, mass_of("a", a, cost, 0), mass_of("b", b, cost, 1)
    cost, a, b = live
    if grad != "autodiff":
        cost, a, b = (t.detach() for t in live)
    if grad == "last_step":
        rule = rule._replace(max_iter=rule.max_iter - 1)
    zeros = cost.new_zeros(cost.shape[0]), cost.new_zeros(cost.shape[1])
    solved = _stopping.solve(cost, a, [b], reg, [zeros], rule, False)
    if not solved.converged:
        warn_not_converged(4)
    found = solved.results[0]
    log_u, log_v = (z / reg for z in found.potentials)
    plan, linear = solved.plan(), found.value
    if grad == "last_step":
        log_u, log_v = _last_step(*live, reg, log_u, log_v)
        plan = (log_u[:, None] + log_v - live[0] / reg).exp()
        linear = (
            plan * torch.where(plan > 0, cost, 0)
        ).sum()  # as POT: cost and masses constant from here on
    value = reg * (_side(plan.sum(1), log_u, a, kl) + _side(plan.sum(0), log_v, b, kl))
    if grad == "last_step":
        value = value + linear - (plan * torch.where(plan > 0, live[0], 0)).sum()
    if grad == "envelope":
        # As POT: log_u and log_v as they are, masses inside, each up to its mean.
        slopes = [reg * (z - z.mean()) for z in (log_u, log_v)]
        value = WithGradients.apply(value, (plan, *slopes), *live)
    return OTResult((give(log_u), give(log_v)), give(value), give(linear), plan=give(plan))


def _side(marginal: Tensor, log_scaling: Tensor, mass: Tensor, kl: bool) -> Tensor:
    """One side of <P, C / reg + log P> = <P 1, log u> + <P' 1, log v>; KL takes <P 1, log a> off."""
    present = mass > 0
    weight = torch.where(present, log_scaling, 0)
    if kl:
        weight = weight - torch.where(present, mass, 1).log()
    return (marginal * weight).sum()


def _last_step(cost, a, b, reg, log_u, log_v) -> tuple[Tensor, Tensor]:
    """Both half-steps from the potentials found, each from the other's old one."""
    new_v = b.log() - torch.logsumexp(log_u[:, None] - cost / reg, 0)
    new_u = a.log() - torch.logsumexp(log_v - cost / reg, 1)
    return new_u, new_v
