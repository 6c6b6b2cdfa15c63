"""Entropic optimal transport, as obvious as possible (DESIGN: objectives, gradients, metrics).

    P = exp((f + g - C) / reg),   f (N,), g (M,) potentials in units of cost

One iteration, in the order of POT's ``sinkhorn``: g from f, then f from g.
Rows and columns of zero mass take no part; ``+inf`` in a cost forbids a pair.

Unbalanced (Chizat et al. 2018, "Scaling algorithms for unbalanced optimal transport problems"): marginals are held by
rho_a KL(P1 | a) + rho_b KL(P'1 | b), and each half-step is damped. With f~ = f - reg log a, g~ = g - reg log b:

    g~_j = -rho_b / (rho_b + reg) reg LSE_i((f_i - C_ij) / reg)          f~ likewise
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


def damping(rho: float, reg: float) -> float:
    """How far a half-step goes that only leans towards its masses; 1 where they are exact (rho = inf)."""
    return 1.0 if rho == math.inf else rho / (rho + reg)


def _half(log_mass: Tensor, scores: Tensor, dim: int, reg: float, rho: float) -> Tensor:
    return reg * (log_mass - damping(rho, reg) * torch.logsumexp(scores / reg, dim))


def kept_mass(z: Tensor, mass: Tensor, reg: float, rho: float) -> Tensor:
    """What a half-step leaves of each mass > 0, mass exp(-z~ / rho): the sums of its rows or columns of P."""
    return mass * torch.exp(-(z - reg * mass.log()) / rho)


def translation(f: Tensor, g: Tensor, a: Tensor, b: Tensor, reg: float, rho: tuple[float, float]) -> Tensor:
    """The shift t () for which (f + t, g - t), of the same plan, has the greatest dual value.

    Séjourné, Vialard, Peyré 2022, "Faster unbalanced optimal transport: translation invariant Sinkhorn and 1-D
    Frank-Wolfe", proposition 2.
    """
    return shift(kept_mass(f, a, reg, rho[0]).sum(), kept_mass(g, b, reg, rho[1]).sum(), rho)


def shift(kept_a: Tensor, kept_b: Tensor, rho: tuple[float, float]) -> Tensor:
    """That of `translation`, from the sums (B?,) of what both half-steps left of the masses."""
    both = min(rho) if math.inf in rho else rho[0] * rho[1] / (rho[0] + rho[1])
    return both * (kept_a / kept_b).log()


def _iterate(C, a, b, reg, max_iter, tol, f, rho, shifted):
    """The iterations on strictly positive masses. C (N, M) may hold +inf."""
    log_a, log_b = a.log(), b.log()
    error = None
    for n_iter in range(1, max_iter + 1):
        if shifted and n_iter > 1:
            f = f + translation(f, g, a, b, reg, rho)  # noqa: F821 (of the iteration before)
        g = _half(log_b, f[:, None] - C, 0, reg, rho[1])
        f = _half(log_a, g[None, :] - C, 1, reg, rho[0])
        if tol > 0 or n_iter == max_iter:
            with torch.no_grad():
                columns = ((f[:, None] + g - C) / reg).exp().sum(0)
                error = (columns - kept_mass(g, b, reg, rho[1])).abs().sum()
            if 0 < tol >= error:
                break
    return f, g, error, n_iter


def _implicit(C, a, b, reg, f, g, rho):
    """(f, g) with the gradient of the fixed point: a dense least-squares solve."""
    n = len(f)

    def one_iteration(z):
        new_g = _half(b.log(), z[:n, None] - C, 0, reg, rho[1])
        new_f = _half(a.log(), z[None, n:] - C, 1, reg, rho[0])
        return torch.cat([new_f, new_g])

    z = torch.cat([f, g]).detach()
    out = one_iteration(z)
    if out.requires_grad:
        jacobian = torch.autograd.functional.jacobian(one_iteration, z).detach()
        system = (torch.eye(len(z), dtype=z.dtype, device=z.device) - jacobian).mT
        out.register_hook(lambda grad: torch.linalg.pinv(system, rtol=1e-10) @ grad)
    return out[:n], out[n:]


def _marginal_term(z: Tensor, rho: float) -> Tensor:
    """What a potential without its mass pays per mass: z~, less where the marginal may give way."""
    return z if rho == math.inf else -rho * torch.expm1(-z / rho)


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
    unbalanced: tuple[float, float] | None = None,
) -> Solution:
    """Solve one problem C (N, M) with masses a (N,), b (M,); ``unbalanced`` is (rho_a, rho_b), inf holds a side."""
    n, m = C.shape
    a = C.new_full((n,), 1 / n) if a is None else a
    b = C.new_full((m,), 1 / m) if b is None else b
    rows, cols = a.detach() > 0, b.detach() > 0
    inner, aa, bb = C[rows][:, cols], a[rows], b[cols]
    f = inner.new_full((int(rows.sum()),), -reg * math.log(n)) if init is None else init[0][rows].detach()
    rho = (math.inf, math.inf) if unbalanced is None else unbalanced
    if min(rho) == math.inf:
        unbalanced = None
    shifted = unbalanced is not None and (tol > 0 or grad != "unrolled")

    with torch.set_grad_enabled(grad == "unrolled" and torch.is_grad_enabled()):
        f, g, error, n_iter = _iterate(inner, aa, bb, reg, max_iter, tol, f, rho, shifted)
    if grad == "implicit":
        f, g = _implicit(inner, aa, bb, reg, f, g, rho)

    finite = torch.where(inner.isinf(), 0, inner)
    P = ((f[:, None] + g - inner) / reg).exp()
    if grad == "envelope":  # P is a constant of <P, C>
        P = P.detach()
    value = (P * finite).sum()

    f_full = C.new_full((n,), -math.inf).index_put((rows,), f)
    g_full = C.new_full((m,), -math.inf).index_put((cols,), g)
    # The mass-free potentials are finite also where a mass is 0.
    f_free = -damping(rho[0], reg) * reg * torch.logsumexp((g[None, :] - C[:, cols]) / reg, 1)
    g_free = (g - reg * bb.log()).detach() if grad == "envelope" else g - reg * bb.log()
    if grad == "envelope":
        f_free = f_free.detach()
        every_g = -damping(rho[1], reg) * reg * torch.logsumexp((f[:, None] - C[rows]) / reg, 0).detach()
        every_g = torch.where(cols, C.new_zeros(m).index_put((cols,), g_free), every_g)
        dual = (_marginal_term(f_free, rho[0]) * a).sum() + (_marginal_term(every_g, rho[1]) * b).sum()
        # d/dC of -reg sum(P) at fixed potentials is P
        mass = (((f_free + reg * a.detach().log())[rows][:, None] + g.detach() - inner) / reg).exp().sum()
        dual = dual - reg * (mass - mass.detach())
        if unbalanced is None:  # masses of equal sums: what all of them gain alike is left out
            kept, a, b = a.detach().sum(), a.detach(), b.detach()
        else:  # of the plan a_i b_j exp((f~_i + g~_j - C_ij) / reg), whose sums by either side are these
            kept_a = a * (-f_free / rho[0]).exp()
            kept_b = b * (-every_g / rho[1]).exp()
            kept = kept_a.sum() + kept_b.sum() - kept_b.detach().sum()
        dual = dual - reg * (kept - a.sum() * b.sum())
    else:
        dual = (_marginal_term(f_free[rows], rho[0]) * aa).sum() + (_marginal_term(g_free, rho[1]) * bb).sum()
        kept = aa.sum() if rho[0] == math.inf else kept_mass(f, aa, reg, rho[0]).sum()
        dual = dual - reg * (kept - aa.sum() * bb.sum())
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
        rho = options.pop("unbalanced", None)
        sides = (rho, None if rho is None else (rho[0],) * 2, None if rho is None else (rho[1],) * 2)
        problems = ((x, a, y, b), (x, a, x, a), (y, b, y, b))
        between, within_x, within_y = (
            sinkhorn(cost(u, v, metric), c, d, unbalanced=side, **options).value_regularized
            for (u, c, v, d), side in zip(problems, sides, strict=True)
        )
        value = between - (within_x + within_y) / 2
        if rho is None:
            return value
        mass_a, mass_b = (1.0 if z is None else z.sum() for z in (a, b))
        return value + options.get("reg", 0.1) / 2 * (mass_a - mass_b) ** 2
    raise ValueError(f"objective must be transport, regularized or divergence, got {objective!r}")
