"""As ``ot.unbalanced``: entropic transport with KL-relaxed marginals, on the fused kernels.

POT's argument names, defaults, logs, warnings and stopping rules; NumPy in, NumPy out; torch in, torch out with
gradients. Plans are diag(u) K diag(v) with K = c exp(-M / reg). docs/drop-in.md lists what differs.
"""

from __future__ import annotations

import warnings
from typing import Any

from ...ops import checks
from .._unbalanced import Asked, Solved, call


def sinkhorn_unbalanced(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    method: str = "sinkhorn",
    reg_type: str = "kl",
    c: Any = None,
    warmstart: tuple[Any, Any] | None = None,
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
    **kwargs: Any,
) -> Any:
    """As ``ot.sinkhorn_unbalanced``: the plan of ``<P, M> + reg KL(P | c) + reg_m KL(P 1 | a) + reg_m KL(P'1 | b)``.

    Args:
        a: (N,) masses, of any sum; empty is uniform.
        b: (M,) masses, or (M, K) histograms, each a problem of its own; empty is uniform.
        M: (N, M) cost.
        reg: entropic regularisation > 0, in units of cost.
        reg_m: weight of both marginals, in units of cost, or a pair for rows and columns; inf keeps a side exact.
        method: ``"sinkhorn"``, ``"sinkhorn_stabilized"``, ``"sinkhorn_translation_invariant"`` or
            ``"sinkhorn_reg_scaling"``, which is ``"sinkhorn"`` with a warning.
        reg_type: ``"kl"``, with the reference measure c, or ``"entropy"``, where it is 1.
        c: (N, M) reference measure >= 0; None is a b'.
        warmstart: logarithms of the scalings u, v to start from.
        numItermax: iterations at most.
        stopThr: stop where the scalings change by less, relative to the largest of them and 1: the mean of u and v at
            every iteration, of u at every 10th in ``"sinkhorn_stabilized"``.
        verbose: print the error of every look.
        log: give ``(result, log)``; the errors of all looks cost a call each.
        **kwargs: ``tau`` for ``"sinkhorn_stabilized"``: scalings this large are measured by their largest, not by 1.

    Returns:
        The plan (N, M), or the losses (K,); with ``log`` also a dict of ``err``, ``logu``, ``logv`` and, of one
        histogram, ``cost`` and ``total_cost``.

    Raises:
        NotImplementedError: c with several histograms, which POT does not read.
        TypeError: arrays of two kinds, or not real numbers.
        ValueError: shapes, devices or values that do not fit.
    """
    asked = Asked(a, b, M, reg, reg_m, reg_type, c, warmstart, numItermax, stopThr, verbose, log)
    return _plan_or_losses(call(asked, method, kwargs), log)


def sinkhorn_unbalanced2(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    method: str = "sinkhorn",
    reg_type: str = "kl",
    c: Any = None,
    warmstart: tuple[Any, Any] | None = None,
    returnCost: str = "linear",
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
    **kwargs: Any,
) -> Any:
    """As ``ot.sinkhorn_unbalanced2``: the loss; arguments and errors as in `sinkhorn_unbalanced`.

    Args:
        a: as in `sinkhorn_unbalanced`, and so are all but ``returnCost``.
        b: as in `sinkhorn_unbalanced`.
        M: as in `sinkhorn_unbalanced`.
        reg: as in `sinkhorn_unbalanced`.
        reg_m: as in `sinkhorn_unbalanced`.
        method: as in `sinkhorn_unbalanced`.
        reg_type: as in `sinkhorn_unbalanced`.
        c: as in `sinkhorn_unbalanced`.
        warmstart: as in `sinkhorn_unbalanced`.
        returnCost: ``"linear"``, ``<P, M>``, or ``"total"``, the objective with POT's divergences, sum p log(p / q).
        numItermax: as in `sinkhorn_unbalanced`.
        stopThr: as in `sinkhorn_unbalanced`.
        verbose: as in `sinkhorn_unbalanced`.
        log: as in `sinkhorn_unbalanced`.
        **kwargs: as in `sinkhorn_unbalanced`.

    Returns:
        The loss, a number or () tensor, or the linear losses (K,) of histograms; with ``log`` also the dict.
    """
    checks.choice("returnCost", returnCost, ("linear", "total"))
    asked = Asked(a, b, M, reg, reg_m, reg_type, c, warmstart, numItermax, stopThr, verbose, log)
    solved = call(asked, method, kwargs)
    if solved.histograms:
        if str(reg_type).lower() == "kl":
            warnings.warn("reg_type='kl' of several histograms is 'entropy', as in POT", stacklevel=2)
        return _plan_or_losses(solved, log)
    plan = solved.plan()
    loss = solved.give(solved.linear(plan) if returnCost == "linear" else solved.total(plan))
    return (loss, solved.log(plan)) if log else loss


def sinkhorn_knopp_unbalanced(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    reg_type: str = "kl",
    c: Any = None,
    warmstart: tuple[Any, Any] | None = None,
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
    **kwargs: Any,
) -> Any:
    """As ``ot.unbalanced.sinkhorn_knopp_unbalanced``: `sinkhorn_unbalanced` with method "sinkhorn"."""
    asked = Asked(a, b, M, reg, reg_m, reg_type, c, warmstart, numItermax, stopThr, verbose, log)
    return _plan_or_losses(call(asked, "sinkhorn", kwargs), log)


def sinkhorn_stabilized_unbalanced(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    reg_type: str = "kl",
    c: Any = None,
    warmstart: tuple[Any, Any] | None = None,
    tau: float = 1e5,
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
    **kwargs: Any,
) -> Any:
    """As ``ot.unbalanced.sinkhorn_stabilized_unbalanced``: `sinkhorn_unbalanced` with method "sinkhorn_stabilized"."""
    asked = Asked(a, b, M, reg, reg_m, reg_type, c, warmstart, numItermax, stopThr, verbose, log)
    return _plan_or_losses(call(asked, "sinkhorn_stabilized", {"tau": tau, **kwargs}), log)


def sinkhorn_unbalanced_translation_invariant(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    reg_type: str = "kl",
    c: Any = None,
    warmstart: tuple[Any, Any] | None = None,
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
    **kwargs: Any,
) -> Any:
    """As POT's function of this name: `sinkhorn_unbalanced` with method "sinkhorn_translation_invariant"."""
    asked = Asked(a, b, M, reg, reg_m, reg_type, c, warmstart, numItermax, stopThr, verbose, log)
    return _plan_or_losses(call(asked, "sinkhorn_translation_invariant", kwargs), log)


def _plan_or_losses(solved: Solved, log: bool) -> Any:
    plan = solved.plan()
    result = solved.give(solved.linear(plan) if solved.histograms else plan)
    return (result, solved.log(plan)) if log else result
