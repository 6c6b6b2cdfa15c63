"""As ``ot.batch``: many entropic problems of one size in one call, and what users call next to it.

NumPy in, NumPy out; torch in, torch out with gradients. The problems run together on the fused kernels and stop where
POT stops them. docs/drop-in.md lists what differs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ops import arguments, checks
from .. import _batch
from .._arrays import Give, unify
from .._batch import Problems, Projected
from .._distances import cost_of
from .._entropic import GRADS, USE_POT, refuse
from .._result import OTResult
from .._stopping import Rule, rule_of

METHODS = ("auto", "log_sinkhorn", "sinkhorn")
REG_TYPES = ("kl", "entropy")
METRICS = ("sqeuclidean", "euclidean", "minkowski", "kl")
LOG_EPS = 1e-16  # POT's, inside its logarithms of plans
PERIOD = 10  # iterations between two looks at the error


def solve_batch(
    M: Any,
    reg: float | None = None,
    a: Any = None,
    b: Any = None,
    max_iter: int = 1000,
    tol: float = 1e-5,
    method: str = "auto",
    inner_iter: int = 1,
    inner_reg: float = 1e-3,
    reg_type: str = "entropy",
    grad: str = "envelope",
) -> OTResult:
    """As ``ot.solve_batch`` for entropic problems.

    Args:
        M: (B, N, M) costs.
        reg: entropic regularisation > 0, in units of cost.
        a: (B, N) masses, or (N,) for all; None is uniform.
        b: (B, M) masses, or (M,) for all; None is uniform.
        max_iter: iterations at most.
        tol: stop where the largest ``|P_k 1 - a_k|_2`` of the batch is below this, looked at every 10 iterations.
        method: ``"auto"``, ``"log_sinkhorn"`` or ``"sinkhorn"``: one solver; potentials of ``"sinkhorn"`` are the
            scalings themselves, of the others their logarithms.
        inner_iter: 1 only; it is read by method "proximal".
        inner_reg: 1e-3 only; it is read by method "proximal".
        reg_type: ``"entropy"``, value = <P, M> + reg <P, log P>, or ``"kl"``, <P, M> + reg KL(P | a b').
        grad: ``"envelope"``, of ``value`` and ``value_linear`` with the plan constant; ``"autodiff"``, the exact
            gradient of the iterations that ran, of every field; ``"last_step"``, of the last iteration only;
            ``"detach"``, none.

    Returns:
        An `OTResult` whose fields have the batch first: plan (B, N, M), value and value_linear (B,), potentials
        (B, N) and (B, M); ``log["n_iter"]`` is the index of the last iteration.

    Raises:
        NotImplementedError: an argument of POT that is not built here; the message names the alternative.
        TypeError: arrays of two kinds, or not real numbers.
        ValueError: shapes, devices or values that do not fit.
    """
    asked = _settings(reg, max_iter, tol, method, inner_iter, inner_reg, reg_type, grad)
    arrays, give = unify({"M": M}, a=a, b=b)
    return _solve(_problems("M", arrays["M"], arrays["a"], arrays["b"], asked.reg), asked, give)


def solve_sample_batch(
    X_a: Any,
    X_b: Any,
    reg: float | None = None,
    a: Any = None,
    b: Any = None,
    metric: str = "sqeuclidean",
    p: float = 2,
    max_iter: int = 1000,
    tol: float = 1e-5,
    method: str = "auto",
    inner_iter: int = 1,
    inner_reg: float = 1e-3,
    reg_type: str = "entropy",
    grad: str = "envelope",
) -> OTResult:
    """As ``ot.solve_sample_batch``: `solve_batch` on the costs between two batches of points.

    Args:
        X_a: (B, N, D) points.
        X_b: (B, M, D) points.
        reg: as in `solve_batch`, and so are ``a``, ``b`` and ``max_iter`` to ``grad``.
        a: as in `solve_batch`.
        b: as in `solve_batch`.
        metric: as in `dist_batch`.
        p: as in `dist_batch`.
        max_iter: as in `solve_batch`.
        tol: as in `solve_batch`.
        method: as in `solve_batch`.
        inner_iter: as in `solve_batch`.
        inner_reg: as in `solve_batch`.
        reg_type: as in `solve_batch`.
        grad: as in `solve_batch`.

    Returns:
        An `OTResult`, as `solve_batch`.

    Raises:
        NotImplementedError: an argument of POT that is not built here; the message names the alternative.
        TypeError: arrays of two kinds, or not real numbers.
        ValueError: shapes, devices or values that do not fit.
    """
    asked = _settings(reg, max_iter, tol, method, inner_iter, inner_reg, reg_type, grad)
    arrays, give = unify({"X_a": X_a, "X_b": X_b}, a=a, b=b)
    cost = _distances("X_a", "X_b", arrays["X_a"], arrays["X_b"], metric, p)
    return _solve(_problems("M", cost, arrays["a"], arrays["b"], asked.reg), asked, give)


def dist_batch(X1: Any, X2: Any = None, metric: str = "sqeuclidean", p: float = 2, nx: Any = None) -> Any:
    """As ``ot.dist_batch``: the costs between two batches of points.

    Args:
        X1: (B, N, D) points.
        X2: (B, M, D) points; None is X1.
        metric: ``"sqeuclidean"``, ``"euclidean"``, ``"minkowski"`` with ``p``, or ``"kl"``, KL(y | x) of points that
            are distributions.
        p: order of ``"minkowski"``.
        nx: None only; the kind of the arrays says it.

    Returns:
        (B, N, M) costs.

    Raises:
        TypeError: arrays of two kinds, or not real numbers.
        ValueError: shapes that do not fit, or an unknown metric.
    """
    _refuse_backend(nx)
    arrays, give = unify({"X1": X1} if X2 is None else {"X1": X1, "X2": X2})
    return give(_distances("X1", "X2", arrays["X1"], arrays["X1" if X2 is None else "X2"], metric, p))


def loss_linear_batch(M: Any, T: Any, nx: Any = None) -> Any:
    """As ``ot.batch.loss_linear_batch``: ``<T_k, M_k>`` of costs and plans (B, N, M), (B,)."""
    _refuse_backend(nx)
    arrays, give = unify({"M": M, "T": T})
    cost, plan = (_batch_of(name, arrays[name], "(B, N, M)") for name in ("M", "T"))
    return give((cost * plan).sum((1, 2)))


def loss_linear_samples_batch(X: Any, Y: Any, T: Any, metric: str = "sqeuclidean") -> Any:
    """As ``ot.batch.loss_linear_samples_batch``: `loss_linear_batch` on the costs of `dist_batch`."""
    return loss_linear_batch(dist_batch(X, Y, metric), T)


def entropy_batch(T: Any, nx: Any = None, eps: float = LOG_EPS) -> Any:
    """As ``ot.batch.entropy_batch``: ``- sum T log(T + eps)`` of plans (B, N, M), (B,)."""
    _refuse_backend(nx)
    arrays, give = unify({"T": T})
    return give(-_sum_of_logs(_batch_of("T", arrays["T"], "(B, N, M)"), None, eps))


def bregman_log_projection_batch(
    K: Any,
    a: Any = None,
    b: Any = None,
    nx: Any = None,
    max_iter: int = 10000,
    tol: float = 1e-5,
    grad: str = "detach",
) -> dict[str, Any]:
    """As ``ot.batch.bregman_log_projection_batch``: the plans exp(K + u + v) with marginals a and b.

    Args:
        K: (B, N, M) logarithms of affinities: minus the costs over the regularisation.
        a: as in `solve_batch`.
        b: as in `solve_batch`.
        nx: None only; the kind of the arrays says it.
        max_iter: as in `solve_batch`.
        tol: as in `solve_batch`.
        grad: ``"detach"``, ``"autodiff"`` or ``"last_step"``, as in `solve_batch`.

    Returns:
        ``T`` and ``log_T`` (B, N, M), ``potentials`` (B, N) and (B, M), ``n_iters``.

    Raises:
        TypeError: arrays of two kinds, or not real numbers.
        ValueError: shapes, devices or values that do not fit.
    """
    _refuse_backend(nx)
    arrays, give = unify({"K": K}, a=a, b=b)
    log_plan, found = _projection(-_batch_of("K", arrays["K"], "(B, N, M)"), arrays, max_iter, tol, grad)
    pair = give(found.log_u), give(found.log_v)
    return {
        "T": give(log_plan.exp()),
        "log_T": give(log_plan),
        "n_iters": found.n_iter - 1,
        "potentials": pair,
    }


def bregman_projection_batch(
    K: Any,
    a: Any = None,
    b: Any = None,
    nx: Any = None,
    max_iter: int = 10000,
    tol: float = 1e-5,
    grad: str = "detach",
) -> dict[str, Any]:
    """As ``ot.batch.bregman_projection_batch``: as `bregman_log_projection_batch` of affinities K >= 0 themselves.

    Returns:
        ``T`` (B, N, M), ``potentials``, the scalings (B, N) and (B, M), ``n_iters``.
    """
    _refuse_backend(nx)
    arrays, give = unify({"K": K}, a=a, b=b)
    log_plan, found = _projection(
        -_batch_of("K", arrays["K"], "(B, N, M)").log(), arrays, max_iter, tol, grad
    )
    pair = give(found.log_u.exp()), give(found.log_v.exp())
    return {"T": give(log_plan.exp()), "n_iters": found.n_iter - 1, "potentials": pair}


class _Settings(NamedTuple):
    """Arguments of `solve_batch`, once checked."""

    reg: float
    rule: Rule
    scalings: bool  # potentials are u and v, else their logarithms
    kl: bool  # else entropy
    grad: str


def _settings(reg, max_iter, tol, method, inner_iter, inner_reg, reg_type, grad) -> _Settings:
    if method == "proximal" or (method == "auto" and (reg is None or reg == 0)):
        raise NotImplementedError(
            "the proximal point method (method='proximal', or reg=None or 0) is not built here: give reg > 0, or use "
            "POT's exact solver"
        )
    checks.choice("method", method, METHODS)
    checks.choice("reg_type", reg_type, REG_TYPES)
    checks.choice("grad", grad, GRADS)
    refuse({
        "inner_iter": (inner_iter, 1, "it is read by method 'proximal'; leave it out"),
        "inner_reg": (inner_reg, 1e-3, "it is read by method 'proximal'; leave it out"),
    })  # fmt: skip
    rule = rule_of(max_iter, "max_iter", tol, "tol", PERIOD, False)
    return _Settings(checks.positive_number("reg", reg), rule, method == "sinkhorn", reg_type == "kl", grad)


def _refuse_backend(nx: Any) -> None:
    refuse({"nx": (nx, None, f"arrays are NumPy's or torch's; leave it out, or {USE_POT}")})


def _batch_of(name: str, value: Tensor | None, shape: str) -> Tensor:
    return checks.tensor(name, value, shape, 3)


def _problems(name: str, cost: Tensor | None, a: Tensor | None, b: Tensor | None, reg: float) -> Problems:
    cost = _batch_of(name, cost, "(B, N, M)")
    if 0 in cost.shape:
        raise ValueError(f"{name} must have problems with rows and columns, got shape {tuple(cost.shape)}")
    return Problems(cost, _masses("a", a, cost, 1), _masses("b", b, cost, 2), reg)


def _masses(name: str, mass: Tensor | None, cost: Tensor, side: int) -> Tensor:
    """(B, N) of the rows (side 1) or (B, M) of the columns (2)."""
    batch, size = cost.shape[0], cost.shape[side]
    if mass is None:
        return cost.new_full((batch, size), 1 / size)
    found = arguments.mass(name, mass, size, batch, cost.dtype)
    assert found is not None
    return found.expand(batch, size)


def _distances(name_x: str, name_y: str, x: Tensor | None, y: Tensor | None, metric: str, p: float) -> Tensor:
    x, y = _batch_of(name_x, x, "(B, n, D)"), _batch_of(name_y, y, "(B, n, D)")
    if x.shape[::2] != y.shape[::2]:
        raise ValueError(
            f"{name_x} and {name_y} must hold as many problems of one width, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    metric = metric.lower() if isinstance(metric, str) else metric
    checks.choice("metric", metric, METRICS)
    if metric == "minkowski":
        return torch.linalg.vector_norm(x[:, :, None] - y[:, None, :], checks.positive_number("p", p), -1)
    if metric == "kl":
        tiny = 1e-10  # POT's
        return (y * (y + tiny).log()).sum(-1)[:, None, :] - (x + tiny).log() @ y.mT
    square = 2 * cost_of(x, y, 2).clamp_min(0)
    if metric == "sqeuclidean":
        return square
    return torch.where(
        square > 0, torch.where(square > 0, square, 1).sqrt(), 0
    )  # gradient 0 where points meet


def _solve(problems: Problems, asked: _Settings, give: Give) -> OTResult:
    """The fields of POT's result, with its gradients."""
    reg, rule, scalings, kl, grad = asked
    cost, a, b, _ = problems
    found = _batch.project(problems, rule, grad)
    pair = found.log_u, found.log_v
    plan = _log_plan(problems, found, grad).exp()
    if grad in ("detach", "envelope"):
        plan = plan.detach()
    if grad == "detach":
        cost, a, b = cost.detach(), a.detach(), b.detach()
    linear = (plan * torch.where(plan > 0, cost, 0)).sum((1, 2))
    reference = a[:, :, None] * b[:, None, :] if kl else None
    value = linear + reg * _sum_of_logs(plan, reference, LOG_EPS)
    if scalings:
        pair = pair[0].exp(), pair[1].exp()
    log = {"n_iter": found.n_iter - 1}
    return OTResult((give(pair[0]), give(pair[1])), give(value), give(linear), plan=give(plan), log=log)


def _log_plan(problems: Problems, found: Projected, grad: str) -> Tensor:
    """(B, N, M); of a last step POT keeps the costs outside u and v constant."""
    cost = problems.cost.detach() if grad == "last_step" else problems.cost
    return found.log_u[:, :, None] + found.log_v[:, None, :] - cost / problems.reg


def _sum_of_logs(plan: Tensor, reference: Tensor | None, eps: float) -> Tensor:
    """``sum P log(P / reference + eps)`` (B,); 0 where P is."""
    if reference is not None:
        ratio = plan / torch.where(plan > 0, reference, 1)
    else:
        ratio = plan
    return (plan * (ratio + eps).log()).sum((1, 2))


def _projection(
    cost: Tensor, arrays: dict[str, Tensor | None], max_iter, tol, grad
) -> tuple[Tensor, Projected]:
    checks.choice("grad", grad, ("detach", "autodiff", "last_step"))
    problems = _problems("K", cost, arrays["a"], arrays["b"], 1.0)
    rule = rule_of(max_iter, "max_iter", tol, "tol", PERIOD, False)
    if grad == "detach":
        problems = problems.detached()
    found = _batch.project(problems, rule, grad)
    return _log_plan(problems, found, grad), found
