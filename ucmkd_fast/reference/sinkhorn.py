"""Entropic optimal transport, as obvious as possible (DESIGN: objectives, gradients, metrics).

    P = exp((f + g - C) / reg),   f (N,), g (M,) potentials in units of cost

One iteration, in the order of POT's ``sinkhorn``: g from f, then f from g.
Rows and columns of zero mass take no part; ``+inf`` in a cost forbids a pair.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..names import did_you_mean

METRICS = ("cosine", "chordal", "l2", "l1", "sqeuclidean")


class Solution(NamedTuple):
    """What `sinkhorn` returns; differentiable down to ``g``."""

    value: Tensor  # () <P, C>
    value_regularized: Tensor  # () the dual value of <P, C> + reg KL(P | a b')
    f: Tensor  # (N,) -inf where a is 0
    g: Tensor  # (M,) -inf where b is 0
    marginal_error: Tensor  # () sum_j |(P'1)_j - b_j|
    n_iter: int


def _safe_norm(z: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, with gradient 0 (not NaN) at 0."""
    square = (z * z).sum(-1)
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def normalise(z: Tensor) -> Tensor:
    """Rows of z (N, D) at unit norm; a zero row stays zero and gets gradient 0.

    One whose squared norm is below the dtype's normal numbers counts as zero: its gradient is beyond them.
    """
    zero = (z * z).sum(-1, keepdim=True) < torch.finfo(z.dtype).tiny
    z = torch.where(zero, 0, z)
    return z / torch.where(zero, 1, _safe_norm(z)[..., None])


def cost(x: Tensor, y: Tensor, metric: str = "cosine") -> Tensor:
    """C (N, M) from features x (N, D) and y (M, D); never negative."""
    if metric == "cosine":
        return (1 - normalise(x) @ normalise(y).mT).clamp_min(0)
    if metric == "chordal":
        x, y = normalise(x), normalise(y)
        metric = "l2"
    difference = x[..., :, None, :] - y[..., None, :, :]
    if metric == "l1":
        return difference.abs().sum(-1)
    if metric == "l2":
        return _safe_norm(difference)
    if metric == "sqeuclidean":
        return (difference * difference).sum(-1)
    raise ValueError(f"metric must be one of {METRICS}, got {metric!r}{did_you_mean(metric, METRICS)}")


def _half(log_mass: Tensor, scores: Tensor, dim: int, reg: float) -> Tensor:
    return reg * (log_mass - torch.logsumexp(scores / reg, dim))


def _iterate(C, a, b, reg, max_iter, tol, f):
    """The iterations on strictly positive masses. C (N, M) may hold +inf."""
    log_a, log_b = a.log(), b.log()
    error = None
    for n_iter in range(1, max_iter + 1):  # noqa: B007
        g = _half(log_b, f[:, None] - C, 0, reg)
        f = _half(log_a, g[None, :] - C, 1, reg)
        if tol > 0 or n_iter == max_iter:
            with torch.no_grad():
                error = (((f[:, None] + g - C) / reg).exp().sum(0) - b).abs().sum()
            if 0 < tol >= error:
                break
    return f, g, error, n_iter


def _implicit(C, a, b, reg, f, g):
    """(f, g) with the gradient of the fixed point: a dense least-squares solve."""
    n = len(f)

    def one_iteration(z):
        new_g = _half(b.log(), z[:n, None] - C, 0, reg)
        new_f = _half(a.log(), z[None, n:] - C, 1, reg)
        return torch.cat([new_f, new_g])

    z = torch.cat([f, g]).detach()
    out = one_iteration(z)
    if out.requires_grad:
        jacobian = torch.autograd.functional.jacobian(one_iteration, z).detach()
        system = (torch.eye(len(z), dtype=z.dtype, device=z.device) - jacobian).mT
        out.register_hook(lambda grad: torch.linalg.pinv(system, rtol=1e-10) @ grad)
    return out[:n], out[n:]


def sinkhorn(
    C: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    reg: float = 0.1,
    max_iter: int = 100,
    tol: float = 0.0,
    grad: str = "unrolled",
    init: tuple[Tensor, Tensor] | None = None,
) -> Solution:
    """Solve one problem C (N, M) with masses a (N,), b (M,)."""
    n, m = C.shape
    a = C.new_full((n,), 1 / n) if a is None else a
    b = C.new_full((m,), 1 / m) if b is None else b
    rows, cols = a.detach() > 0, b.detach() > 0
    inner, aa, bb = C[rows][:, cols], a[rows], b[cols]
    f = inner.new_full((int(rows.sum()),), -reg * math.log(n)) if init is None else init[0][rows].detach()

    with torch.set_grad_enabled(grad == "unrolled" and torch.is_grad_enabled()):
        f, g, error, n_iter = _iterate(inner, aa, bb, reg, max_iter, tol, f)
    if grad == "implicit":
        f, g = _implicit(inner, aa, bb, reg, f, g)

    finite = torch.where(inner.isinf(), 0, inner)
    P = ((f[:, None] + g - inner) / reg).exp()
    if grad == "envelope":  # P is a constant of <P, C>
        P = P.detach()
    value = (P * finite).sum()

    f_full = C.new_full((n,), -math.inf).index_put((rows,), f)
    g_full = C.new_full((m,), -math.inf).index_put((cols,), g)
    # The mass-free potentials are finite also where a mass is 0.
    f_free = -reg * torch.logsumexp((g[None, :] - C[:, cols]) / reg, 1)
    g_free = (g - reg * bb.log()).detach() if grad == "envelope" else g - reg * bb.log()
    if grad == "envelope":
        f_free = f_free.detach()
        every_g = -reg * torch.logsumexp((f[:, None] - C[rows]) / reg, 0).detach()
        every_g = torch.where(cols, C.new_zeros(m).index_put((cols,), g_free), every_g)
        dual = (f_free * a).sum() + (every_g * b).sum()
        # d/dC of -reg sum(P) at fixed potentials is P
        mass = (((f_free + reg * a.detach().log())[rows][:, None] + g.detach() - inner) / reg).exp().sum()
        dual = (
            dual
            - reg * (mass - mass.detach())
            - reg * (a.detach().sum() - a.detach().sum() * b.detach().sum())
        )
    else:
        dual = (f_free[rows] * aa).sum() + (g_free * bb).sum() - reg * (aa.sum() - aa.sum() * bb.sum())
    return Solution(value, dual, f_full, g_full, error, n_iter)


def plan(C: Tensor, f: Tensor, g: Tensor, reg: float) -> Tensor:
    """P (N, M) of the potentials."""
    return ((f[:, None] + g[None, :] - C) / reg).exp()


def sinkhorn_loss(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    metric: str = "cosine",
    objective: str = "transport",
    class_cost: Tensor | None = None,
    y_labels: Tensor | None = None,
    **options,
) -> Tensor:
    """The loss between features x (N, D) and y (M, D); options as in `sinkhorn`.

    With ``class_cost`` W (N, K) and ``y_labels`` k (M,) the cost is d(x_i, y_j) + W[i, k_j].
    """
    if objective in ("transport", "regularized"):
        C = cost(x, y, metric)
        if class_cost is not None:
            C = C + class_cost[:, y_labels]
        solution = sinkhorn(C, a, b, **options)
        return solution.value if objective == "transport" else solution.value_regularized
    if objective == "divergence":
        between = sinkhorn(cost(x, y, metric), a, b, **options).value_regularized
        within_x = sinkhorn(cost(x, x, metric), a, a, **options).value_regularized
        within_y = sinkhorn(cost(y, y, metric), b, b, **options).value_regularized
        return between - (within_x + within_y) / 2
    raise ValueError(f"objective must be transport, regularized or divergence, got {objective!r}")
