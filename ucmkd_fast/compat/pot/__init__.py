"""POT's entropic solvers on the fused kernels: `sinkhorn`, `sinkhorn2`, `solve`, `solve_sample`.

POT's argument names, defaults, logs, result fields, warnings and stopping rule (Flamary et al. 2021, "POT: Python
Optimal Transport"); NumPy in, NumPy out; torch in, torch out with gradients. Every method runs the same solver,
in scaling where that is safe and in the log domain where it is not. docs/drop-in.md lists what differs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops.matrix import cost_matrix
from .. import _entropic, _scaling, _unbalanced
from .._arrays import matrix, unify
from .._entropic import USE_POT, OfSolve, refuse
from .._result import OTResult
from . import batch, unbalanced
from .batch import dist_batch, solve_batch, solve_sample_batch
from .unbalanced import sinkhorn_unbalanced, sinkhorn_unbalanced2

__all__ = [
    "OTResult",
    "batch",
    "dist_batch",
    "sinkhorn",
    "sinkhorn2",
    "sinkhorn_unbalanced",
    "sinkhorn_unbalanced2",
    "solve",
    "solve_batch",
    "solve_sample",
    "solve_sample_batch",
    "unbalanced",
]

METRICS = {"sqeuclidean": "sqeuclidean", "euclidean": "l2", "cosine": "cosine", "cityblock": "l1"}


def sinkhorn(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: tuple[Any, Any] | None = None,
    **options: Any,
) -> Any:
    """As ``ot.sinkhorn``: the entropic transport plan; the losses where b holds several histograms.

    Args:
        a: (N,) masses; empty or None is uniform.
        b: (M,) masses, or (M, K) histograms, each a problem of its own; empty or None is uniform.
        M: (N, M) cost.
        reg: entropic regularisation, in units of cost.
        method: ``"sinkhorn"``, ``"sinkhorn_log"`` or ``"sinkhorn_stabilized"``: one solver, POT's logs of each.
        numItermax: iterations at most.
        stopThr: stop where ``|P'1 - b|_2`` is below this, looked at every 10 iterations
            (``print_period``, 20, in ``"sinkhorn_stabilized"``).
        verbose: print the error of every look.
        log: give ``(result, log)``.
        warn: warn where ``numItermax`` was reached.
        warmstart: logarithms of the scalings u, v to start from ((alpha, beta), in units of cost, for
            ``"sinkhorn_stabilized"``).
        **options: ``print_period`` and ``tau`` for ``"sinkhorn_stabilized"``; ``tau`` changes nothing, which is said
            once.

    Returns:
        The plan (N, M), or the losses (K,); with ``log`` also a dict of ``err``, ``niter``, ``u``, ``v`` and what
        else POT's method puts there.

    Raises:
        NotImplementedError: a method or option of POT that is not built here; the message names another.
        TypeError: arrays of two kinds, or not real numbers.
        ValueError: shapes, devices or values that do not fit.
    """
    solved = _scaling.call(a, b, M, reg, method, numItermax, stopThr, verbose, log, warn, warmstart, options)
    result = solved.losses() if solved.histograms else solved.parts[0].plan()
    return (solved.give(result), solved.log()) if log else solved.give(result)


def sinkhorn2(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = False,
    warmstart: tuple[Any, Any] | None = None,
    **options: Any,
) -> Any:
    """As ``ot.sinkhorn2``: the loss ``<P, M>``; arguments and errors as in `sinkhorn`.

    Returns:
        The loss, a number or () tensor, or (K,) where b holds histograms; with ``log`` also the dict.
    """
    solved = _scaling.call(a, b, M, reg, method, numItermax, stopThr, verbose, log, warn, warmstart, options)
    result = solved.losses() if solved.histograms else solved.results[0].value
    return (solved.give(result), solved.log()) if log else solved.give(result)


def solve(
    M: Any,
    a: Any = None,
    b: Any = None,
    reg: float | None = None,
    c: Any = None,
    reg_type: str = "KL",
    unbalanced: Any = None,
    unbalanced_type: str = "KL",
    method: str | None = None,
    n_threads: int = 1,
    max_iter: int | None = None,
    plan_init: Any = None,
    potentials_init: Any = None,
    tol: float | None = None,
    verbose: bool = False,
    grad: str = "autodiff",
) -> OTResult:
    """As ``ot.solve`` for entropic transport, balanced or with KL-relaxed marginals.

    Args:
        M: (N, M) cost.
        a: (N,) masses; None is uniform.
        b: (M,) masses; None is uniform. With ``unbalanced`` the sums may differ.
        reg: entropic regularisation > 0, in units of cost.
        c: (N, M) reference measure >= 0 of an unbalanced problem with ``"KL"``; None is a b'.
        reg_type: ``"KL"``, value = <P, M> + reg KL(P | a b'), or ``"entropy"``, <P, M> + reg <P, log P>.
        unbalanced: None, or the weight of both marginals in units of cost, or a pair for rows and columns; inf keeps a
            side exact. ``value`` has the marginal terms, as POT defines it (docs/drop-in.md).
        unbalanced_type: ``"KL"`` only; it is read with ``unbalanced``.
        method: None, ``"sinkhorn"`` or ``"sinkhorn_log"``, which are one here.
        n_threads: 1 only; ``torch.set_num_threads`` rules.
        max_iter: iterations at most; None is 1000.
        plan_init: None only.
        potentials_init: (log u, log v) to start an unbalanced problem with ``"KL"`` from; else None only, and
            ``sinkhorn(..., warmstart=)`` starts from potentials.
        tol: threshold on ``|P'1 - b|_2``, looked at every 10 iterations; with ``unbalanced`` on the relative change of
            u and v, at every iteration; None is 1e-9.
        verbose: print the error of every look.
        grad: ``"autodiff"``, the exact gradient of the iterations that ran, of every field; ``"envelope"``, of
            ``value`` only, as at convergence; ``"last_step"``, of the last iteration only; ``"detach"``, none. With
            ``unbalanced`` the first and the last.

    Returns:
        An `OTResult`.

    Raises:
        NotImplementedError: an argument of POT that is not built here; the message names the alternative.
        TypeError: arrays of two kinds, or not real numbers.
        ValueError: shapes, devices or values that do not fit.
    """
    asked = OfSolve(
        reg, c, reg_type, unbalanced, unbalanced_type, method, n_threads, max_iter, plan_init, potentials_init, tol,
        verbose, grad,
    )  # fmt: skip
    if unbalanced is not None:
        return _unbalanced.result(M, a, b, asked)
    settings = _entropic.settings(asked)
    arrays, give = unify({"M": M}, a=a, b=b)
    return _entropic.solve(matrix("M", arrays["M"], "(N, M)"), arrays["a"], arrays["b"], settings, give)


def solve_sample(
    X_a: Any,
    X_b: Any,
    a: Any = None,
    b: Any = None,
    metric: str = "sqeuclidean",
    reg: float | None = None,
    c: Any = None,
    reg_type: str = "KL",
    unbalanced: Any = None,
    unbalanced_type: str = "KL",
    lazy: bool = False,
    batch_size: int | None = None,
    method: str | None = None,
    n_threads: int = 1,
    max_iter: int | None = None,
    plan_init: Any = None,
    rank: int = 100,
    scaling: float = 0.95,
    potentials_init: Any = None,
    X_init: Any = None,
    tol: float | None = None,
    verbose: bool = False,
    grad: str = "autodiff",
    random_state: Any = None,
    debias: bool | str = False,
    n_projections: int = 50,
    projections: Any = None,
    scaler: Any = None,
) -> OTResult:
    """As ``ot.solve_sample`` for entropic transport: `solve` on the cost between two sets of points.

    Args:
        X_a: (N, D) points.
        X_b: (M, D) points.
        a: as in `solve`.
        b: as in `solve`.
        metric: ``"sqeuclidean"``, ``"euclidean"``, ``"cosine"`` or ``"cityblock"``.
        reg: as in `solve`, and so are ``c`` to ``unbalanced_type`` and ``n_threads`` to ``grad``.
        c: as in `solve`.
        reg_type: as in `solve`.
        unbalanced: as in `solve`.
        unbalanced_type: as in `solve`.
        lazy: False only: the cost is kept whole.
        batch_size: None only; it is read with ``lazy``.
        method: None only.
        n_threads: as in `solve`.
        max_iter: as in `solve`.
        plan_init: as in `solve`.
        rank: 100 only; it is read by low-rank methods.
        scaling: 0.95 only; it is read by method "geomloss".
        potentials_init: as in `solve`.
        X_init: None only.
        tol: as in `solve`.
        verbose: as in `solve`.
        grad: as in `solve`.
        random_state: None only.
        debias: take half of the values of both problems of a set with itself off, and put the three into ``log``.
        n_projections: 50 only.
        projections: None only.
        scaler: None only.

    Returns:
        An `OTResult`.

    Raises:
        NotImplementedError: an argument of POT that is not built here; the message names the alternative.
        TypeError: arrays of two kinds, or not real numbers.
        ValueError: shapes, devices or values that do not fit.
    """
    refuse({
        "lazy": (lazy, False, f"the cost (N, M) is kept whole; leave it out, or {USE_POT}"),
        "batch_size": (batch_size, None, f"it is read with lazy=True; leave it out, or {USE_POT}"),
        "rank": (rank, 100, f"low-rank methods are not; leave it out, or {USE_POT}"),
        "scaling": (scaling, 0.95, "use ucmkd_fast.compat.geomloss.SamplesLoss(scaling=...)"),
        "X_init": (X_init, None, f"leave it out, or {USE_POT}"),
        "random_state": (random_state, None, "nothing is drawn; leave it out"),
        "n_projections": (n_projections, 50, f"sliced transport is not; {USE_POT}"),
        "projections": (projections, None, f"sliced transport is not; {USE_POT}"),
        "scaler": (scaler, None, "scale X_a and X_b before the call"),
    })  # fmt: skip
    if method is not None:
        other = "ucmkd_fast.compat.geomloss.SamplesLoss" if "geomloss" in str(method) else USE_POT
        raise NotImplementedError(f"method={method!r} is not built here: leave it out, or use {other}")
    if debias not in (False, True):
        raise NotImplementedError(f"debias={debias!r} is not built here: use debias=True, or {USE_POT}")
    if not isinstance(metric, str) or metric not in METRICS:
        raise NotImplementedError(
            f"metric={metric!r} is not built here: use one of {', '.join(METRICS)}, or solve(M) with your own cost"
        )
    asked = OfSolve(
        reg, c, reg_type, unbalanced, unbalanced_type, None, n_threads, max_iter, plan_init, potentials_init, tol,
        verbose, grad,
    )  # fmt: skip
    settings = _entropic.settings(asked) if unbalanced is None else None
    arrays, give = unify({"X_a": X_a, "X_b": X_b}, a=a, b=b)
    x, y = (matrix(name, arrays[name], "(n, D)") for name in ("X_a", "X_b"))
    for name, z in (("X_a", x), ("X_b", y)):
        if z.is_cpu and not bool(z.isfinite().all()):
            raise ValueError(f"{name} must hold finite points, got NaN or inf in it")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"X_a and X_b must have the same width, got {tuple(x.shape)} and {tuple(y.shape)}")

    a, b = arrays["a"], arrays["b"]

    def between(p: Tensor, q: Tensor, mass_p: Tensor | None, mass_q: Tensor | None) -> OTResult:
        cost = cost_matrix(p, q, METRICS[metric], p.dtype)
        if settings is None:
            return _unbalanced.result(cost, mass_p, mass_q, asked, give)
        return _entropic.solve(cost, mass_p, mass_q, settings, give)

    result = between(x, y, a, b)
    return result.debiased(between(x, x, a, a), between(y, y, b, b)) if debias else result
