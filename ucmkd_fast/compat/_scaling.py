"""`sinkhorn` and `sinkhorn2` of `compat.pot`: arguments read, problems run, logs as POT's methods write them."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.result import SinkhornResult
from . import _stopping
from ._arrays import Give, matrix, unify
from ._stopping import Solved, mass_of, rule_of, warn_not_converged

METHODS = ("sinkhorn", "sinkhorn_log", "sinkhorn_stabilized")


class Call(NamedTuple):
    """What a call of `sinkhorn` or `sinkhorn2` found."""

    parts: list[Solved]  # problems that stopped together: one, or one a histogram
    histograms: bool
    method: str
    reg: float
    give: Give

    @property
    def results(self) -> list[SinkhornResult]:
        return [r for part in self.parts for r in part.results]

    def losses(self) -> Tensor:
        return torch.stack([r.value for r in self.results])

    def log(self) -> dict[str, Any]:
        """POT's dict of the method."""
        pairs = [r.potentials for r in self.results]
        if self.histograms:
            f, g = (torch.stack([pair[side] for pair in pairs], 1) for side in (0, 1))
        else:
            f, g = pairs[0]
        log_u, log_v = f / self.reg, g / self.reg
        seen = {"err": [self.give(e) for e in self.parts[0].errors]}
        last = self.parts[0].n_iter - 1
        if self.method == "sinkhorn_stabilized":
            pair = self.give(f), self.give(g)
            names = {"alpha": pair[0], "beta": pair[1], "warmstart": pair}
            return {**seen, "n_iter": last, "logu": self.give(log_u), "logv": self.give(log_v), **names}
        scalings = {"u": self.give(log_u.exp()), "v": self.give(log_v.exp())}
        if self.method == "sinkhorn":
            return {**seen, "niter": last, **scalings}
        logs = {"log_u": self.give(log_u), "log_v": self.give(log_v)}
        return {**logs, **scalings} if self.histograms else {**seen, "niter": last, **logs, **scalings}


def call(a, b, M, reg, method, numItermax, stopThr, verbose, log, warn, warmstart, options) -> Call:
    method = _check_method(method)
    reg = checks.positive_number("reg", reg)
    period = options.pop("print_period", 20) if method == "sinkhorn_stabilized" else 10
    if method == "sinkhorn_stabilized" and "tau" in options:
        _say_what_tau_does(checks.positive_number("tau", options.pop("tau")))
    if options:
        raise TypeError(f"{', '.join(options)}: no such argument of method {method!r} here; leave it out")
    required = {"M": M}
    if warmstart is not None:
        if not (isinstance(warmstart, (tuple, list)) and len(warmstart) == 2):
            raise TypeError(f"warmstart must be a pair of arrays, got {type(warmstart).__name__}")
        required |= {"warmstart[0]": warmstart[0], "warmstart[1]": warmstart[1]}
    arrays, give = unify(required, a=a, b=b)
    cost = matrix("M", arrays["M"], "(N, M)")
    a, b = arrays["a"], arrays["b"]
    histograms = b is not None and b.dim() == 2
    if histograms and method == "sinkhorn_stabilized":
        raise NotImplementedError(
            "several histograms with method='sinkhorn_stabilized' are not built: use method='sinkhorn_log'"
        )
    if histograms and b.shape[0] != cost.shape[1]:
        raise ValueError(f"b must have shape ({cost.shape[1]}, K), got {tuple(b.shape)}")
    if histograms and not b.shape[1]:
        raise ValueError(f"b must hold at least one histogram, got shape {tuple(b.shape)}")
    a = mass_of("a", a, cost, 0)
    columns = [mass_of("b", c, cost, 1) for c in (b.contiguous().unbind(1) if histograms else [b])]
    warm = arrays.get("warmstart[0]"), arrays.get("warmstart[1]")
    starts = _starts(method, cost, reg, *warm, len(columns))
    rule = rule_of(numItermax, "numItermax", stopThr, "stopThr", period, verbose)

    together = method == "sinkhorn"  # POT's sinkhorn_log solves histograms one by one
    groups = [(columns, starts)] if together else [([c], [s]) for c, s in zip(columns, starts, strict=True)]
    record = log and (together or not histograms)  # and logs no errors of them
    parts = [_stopping.solve(cost, a, c, reg, s, rule, record) for c, s in groups]
    if warn and not all(part.converged for part in parts):
        warn_not_converged(4)
    return Call(parts, histograms, method, reg, give)


_told: set[str] = set()


def _say_what_tau_does(tau: float) -> None:
    """Once; POT absorbs scalings beyond ``tau`` into the potentials."""
    if "tau" not in _told:
        _told.add("tau")
        warnings.warn(f"tau={tau:g} changes nothing here: ranges are kept safe by themselves", stacklevel=4)


def _check_method(method: Any) -> str:
    name = str(method).lower()
    if name in ("greenkhorn", "sinkhorn_epsilon_scaling"):
        raise NotImplementedError(
            f"method={method!r} is not built here: use 'sinkhorn_log', which no reg breaks"
        )
    checks.choice("method", name, METHODS)
    return name


def _starts(method, cost, reg, first, second, count) -> list[tuple[Tensor, Tensor] | None]:
    """Potentials to start each histogram from: POT's u is 1 / N in scaling, and 1 in the log domain.

    The plan does not depend on that constant, the potentials do. Only f is read: an iteration makes g first.
    """
    n, m = cost.shape
    if first is None:
        if method != "sinkhorn_log":
            return [None] * count
        first = cost.new_zeros(n)
    shapes = [None if z is None else tuple(z.shape) for z in (first, second)]
    if first.dim() == 1:
        first = first[:, None].expand(n if len(first) == n else -1, count)
    if tuple(first.shape) != (n, count) or (second is not None and second.shape[:1] != (m,)):
        raise ValueError(
            f"warmstart must hold log-scalings of shapes ({n},) and ({m},)"
            f"{f', or ({n}, {count}) and ({m}, {count})' if count > 1 else ''}, got {shapes[0]} and {shapes[1]}"
        )
    f = first.detach() - reg * math.log(n) if method == "sinkhorn_stabilized" else first.detach() * reg
    g = cost.new_zeros(m)
    return [(f[:, k].contiguous(), g) for k in range(count)]
