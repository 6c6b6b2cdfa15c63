"""Entropic optimal transport: `sinkhorn` on a cost, `sinkhorn_loss` on features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _classes, _lists, _route, checks, not_converged, sharded
from ._problem import Convergence, Problem
from .arguments import Asked, check_features, check_init, checked, envelope_has_no_mass_gradient, mass
from .result import SinkhornResult

Unbalanced = float | tuple[float | None, float | None] | None


def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    reg: float = 0.1,
    max_iter: int = 100,
    tol: float = 0.0,
    grad: str = "unrolled",
    init: tuple[Tensor, Tensor] | None = None,
    accelerate: str | None = None,
    reg_scale: str | None = None,
    unbalanced: Unbalanced = None,
) -> SinkhornResult:
    """Entropic optimal transport for a given cost.

    Iterates g_j = reg (log b_j - LSE_i((f_i - C_ij) / reg)), then f likewise, from f = -reg log N: the
    order of POT's ``sinkhorn`` (Cuturi 2013, "Sinkhorn Distances", in the log domain).

    Args:
        cost: (N, M), or a batch (B, N, M); float32, float64, or half precision (then solved in float32, its gradient
            of the same half precision); may be negative, +inf forbids a pair.
        a: (N,) or (B, N) masses >= 0 of the rows, float32 or float64; None is 1 / N. Masses of at most 1e-30
            (1e-290 in float64) take no part.
        b: (M,) or (B, M) masses >= 0 of the columns, of the same sum unless ``unbalanced``; None is 1 / M.
        reg: entropic regularisation, in units of cost.
        max_iter: iterations at most.
        tol: stop when ``sum_j |(P'1)_j - b_j|`` is at most this; 0 runs ``max_iter`` iterations.
            Not reached in ``max_iter``, it is a `ConvergenceWarning`.
        grad: ``"unrolled"``, the exact gradient of the iterations that ran; ``"implicit"``, that of the fixed
            point; ``"envelope"``, the plan held constant (exact for ``value_regularized`` at convergence).
        init: potentials (f, g) of an earlier call to start from; not differentiated.
        accelerate: ``"relax"``: over-relaxed iterations (omega = 3/2; Thibault et al. 2021), about half as many
            where many are needed; the same fixed point. With ``grad="implicit"`` or ``"envelope"``.
        reg_scale: None, or ``"mean"``: reg is then a factor of the mean cost, over the finite entries of each problem
            whatever their masses. A constant for gradients. Values, potentials and ``init`` stay in units of cost.
            A mean that is not above 0 is refused on the CPU; on other devices and under transforms the results are
            NaN. ``unbalanced`` is a factor of it as well.
        unbalanced: None, exact marginals; or rho > 0, in units of cost: they are held by rho KL(P1 | a) and
            rho KL(P'1 | b) instead, and need no equal sums (Chizat et al. 2018). ``(rho_a, rho_b)`` for each side, None
            or inf for one that is exact. Small rho leaves out what is far from everything. With ``tol`` > 0 and with
            ``grad="implicit"`` or ``"envelope"`` the potentials are shifted between iterations (Séjourné et al. 2022),
            without which a large rho converges slowly.

    Returns:
        A `SinkhornResult`.

    Raises:
        TypeError: something is not a tensor of floats, or dtypes differ.
        ValueError: shapes, devices or values outside what is said above.

    Warns:
        ConvergenceWarning: ``tol`` was not reached, or reg is below the rounding of the cost.
    """
    checks.tensor("cost", cost, "(N, M) or (B, N, M)", 2, 3, half=True)
    if cost.dtype in checks.HALVES:
        cost = cost.float()
    if 0 in cost.shape:
        raise ValueError(f"cost must have at least one row and one column, got shape {tuple(cost.shape)}")
    options = checked(
        Asked(reg, max_iter, tol, grad, accelerate, reg_scale, cost.dtype, unbalanced=unbalanced)
    )
    batch = cost.shape[0] if cost.dim() == 3 else None
    if a is not None or b is not None:
        a = mass("a", a, cost.shape[-2], batch, cost.dtype)
        b = mass("b", b, cost.shape[-1], batch, cost.dtype)
        checks.same_device(cost=cost, a=a, b=b)
    init_f, init_g = check_init(init, cost.shape, cost)
    p = Problem(cost=cost, a=a, b=b, init_f=init_f, init_g=init_g)
    return _route.given(p, options, reg_scale is not None)


def sinkhorn_loss(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    metric: str = "cosine",
    reg: float = 0.1,
    max_iter: int = 100,
    tol: float = 0.0,
    objective: str = "transport",
    grad: str = "unrolled",
    init: tuple[Tensor, Tensor] | None = None,
    accelerate: str | None = None,
    reg_scale: str | None = None,
    unbalanced: Unbalanced = None,
    class_cost: Tensor | None = None,
    y_labels: Tensor | None = None,
    offsets: tuple[Tensor, Tensor] | None = None,
    memory_budget: int | None = None,
    group: Any = None,
    return_result: bool = False,
    convergence: Convergence | None = None,
) -> Tensor | SinkhornResult:
    """Entropic optimal transport between two sets of features: UCMKD's feature alignment (paper, FA).

    Args:
        x: (N, D) features, or a batch (B, N, D); float32, float64, or half precision (then computed in float32).
        y: (M, D) features, or (B, M, D).
        a: (N,) masses of x, as in `sinkhorn`; (N,) or (B, N) in a batch.
        b: (M,) masses of y; (M,) or (B, M) in a batch.
        metric: ``"cosine"`` 1 - <x^, y^>; ``"chordal"`` |x^ - y^|; ``"l2"`` |x - y|; ``"l1"``; ``"sqeuclidean"``.
        reg: entropic regularisation, in units of the cost.
        max_iter: as in `sinkhorn`.
        tol: as in `sinkhorn`.
        objective: ``"transport"`` <P, C>, what the method's published code trains on; ``"regularized"``
            <P, C> + reg KL(P | a b') by its dual value; ``"divergence"``, the debiased
            OT(x, y) - (OT(x, x) + OT(y, y)) / 2 of the latter (Feydy et al. 2019). Where ``unbalanced``, the
            ``"regularized"`` value has the terms of both marginals, and the divergence reg / 2 (sum a - sum b)^2 beside
            them (Séjourné et al. 2019); x is held by rho_a against itself, y by rho_b.
        grad: as in `sinkhorn`.
        init: as in `sinkhorn`; for ``"divergence"`` it starts the problem between x and y.
        accelerate: as in `sinkhorn`.
        reg_scale: None, or ``"mean"``: as in `sinkhorn`, with the term by class in the cost; for ``"divergence"`` the
            mean cost between x and y serves all three problems; with ``group`` the mean is over all processes. Read
            by the host (once per call) on the CPU, and on a GPU for panels and shards of ``"cosine"`` and
            ``"chordal"`` only.
        unbalanced: as in `sinkhorn`.
        class_cost: W (N, K), in a batch (B, N, K), a term of the cost by class: C_ij = d(x_i, y_j) + W[i, k_j]; of
            the cost's dtype, may be negative, +inf forbids a class to a row; differentiable. With ``y_labels``; see
            `class_conditional_loss` for the case of W = 0 or +inf.
        y_labels: k (M,), in a batch (B, M), int64, the class of each y, from 0 to K - 1.
        offsets: ``(x_offsets, y_offsets)``, (B + 1,) int64 on the CPU, ascending from 0: B problems of different
            sizes, rows ``x_offsets[k]`` to ``x_offsets[k + 1]`` of x (sum N_k, D) against those of y (sum M_k, D).
            All that goes with x and y (masses, ``init``, ``class_cost``, ``y_labels``) is flat as they are; masses
            have equal sums problem by problem. A problem without rows on one side has nothing to transport: its loss
            and its gradients are 0.
        memory_budget: bytes that the cost and the plan may take, by default a quarter of the free memory. Where
            they do not fit, the cost is made panel by panel in every sweep: O(T (N + M)) memory, the same loss and
            gradient, several times slower. For one problem.
        group: a group of torch.distributed whose processes share the problem: x, y and all that goes with them are
            this process's rows, any number of them. Every process returns the loss of all rows; its gradient is that
            with respect to the local rows, not scaled (a trainer that averages gradients over processes multiplies
            this term by their number). All processes call forward and backward alike.
        return_result: give the `SinkhornResult` of the problem between x and y instead of the loss.
        convergence: filled in with the marginal error and the iterations of the problem between x and y. Whoever
            gives one looks there: the call then warns of nothing.

    Returns:
        The loss, () or (B,), float32 or float64; or the result (a `BatchResult` for batches).

    Raises:
        TypeError: something is not a tensor, integers, or float64 with float32.
        ValueError: shapes, widths, devices or values that do not fit; the message says which.
        NotImplementedError: an argument that is not built yet.

    Warns:
        ConvergenceWarning: as in `sinkhorn`, unless ``convergence`` is given.
    """
    if group is not None:
        sharded.check_group(group)
    dtype = check_features(x, y, shards=group is not None)
    options = checked(
        Asked(reg, max_iter, tol, grad, accelerate, reg_scale, dtype, metric, objective, unbalanced)
    )
    batch = x.shape[0] if x.ndim == 3 else None
    if a is not None or b is not None:
        a = mass("a", a, x.shape[-2], batch, dtype)
        b = mass("b", b, y.shape[-2], batch, dtype)
        checks.same_device(x=x, a=a, b=b)
        envelope_has_no_mass_gradient(options, a, b)
    init_f = init_g = None
    if init is not None:
        init_f, init_g = check_init(
            init, torch.Size((*x.shape[:-1], y.shape[-2])), x.new_empty(0, dtype=dtype)
        )
    divergence = objective == "divergence"
    if return_result and divergence:
        raise ValueError("return_result=True is for one problem: use objective='transport' or 'regularized'")
    if class_cost is not None or y_labels is not None:
        _classes.check(class_cost, y_labels, x, y, dtype)
        if divergence:
            raise ValueError(
                "objective='divergence' compares x with itself, whose classes are not known: with class_cost use "
                "'transport' or 'regularized'"
            )
    p = Problem(x, y, a, b, init_f, init_g, class_cost, y_labels)
    call = _route.Call(convergence, return_result, divergence, reg_scale is not None, memory_budget, group)
    if offsets is None and batch is None:
        return _route.loss(p, options, call)
    if memory_budget is not None or group is not None:
        raise ValueError("memory_budget and group are for one problem, got a batch")
    with not_converged.at_most_one():
        return _lists.loss(p, offsets, options, call)
