"""Entropic optimal transport: `sinkhorn` on a cost, `sinkhorn_loss` on features."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import sinkhorn as reference
from . import (
    _autograd,
    _by_torch,
    _loss,
    _solve_cuda,
    _transforms,
    checks,
    class_aware,
    memory,
    panel,
    ragged,
    sharded,
)
from ._loss import LossOptions, loss_options
from ._solve import Options
from .arguments import OBJECTIVES, check_features, check_init, check_options, envelope_has_no_mass_gradient
from .cost import METRICS
from .result import Convergence, SinkhornResult

_warned: set[str] = set()


def _warn_no_kernels(device: torch.device) -> None:
    if device.type not in _warned:
        _warned.add(device.type)
        warnings.warn(
            f"this build of ucmkd_fast has no kernels for {device.type} tensors: the torch reference runs there, "
            "much slower (install with nvcc at hand, or UCMKD_CUDA=ON, to build them)",
            stacklevel=4,
        )


def _solve(cost, a, b, init_fg: Any, options: Options) -> tuple[Tensor, ...]:
    """(value, dual, f, g, marginal_error, n_iter) by whatever runs on these tensors."""
    direct, kernels = _autograd.direct(cost, a, b, *init_fg), _has_kernels(cost)
    if not direct and (_transforms.by_torch() or (_transforms.active() and not kernels)):
        return _by_torch.solve(cost, a, b, init_fg[0], options)
    if not kernels:
        _warn_no_kernels(cost.device)
        value, dual, f, g = _autograd.reference_outputs(cost, a, b, init_fg[0], init_fg[1], options)
        plan = ((f.detach()[..., :, None] + g.detach()[..., None, :] - cost.detach()) / options.reg).exp()
        target = cost.new_full((cost.shape[-1],), 1 / cost.shape[-1]) if b is None else b.detach()
        error = (plan.sum(-2) - target).abs().sum(-1)
        return value, dual, f, g, error, torch.full(cost.shape[:-2], options.max_iter, device=cost.device)
    if direct:
        a, b = (None if t is None else t.contiguous() for t in (a, b))
        return _autograd.Sinkhorn.apply(cost.contiguous(), a, b, *init_fg, options)
    return _autograd.sinkhorn_transformed(cost, a, b, *init_fg, *options)[:6]


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
) -> SinkhornResult:
    """Entropic optimal transport for a given cost.

    Iterates g_j = reg (log b_j - LSE_i((f_i - C_ij) / reg)), then f likewise, from f = -reg log N: the
    order of POT's ``sinkhorn`` (Cuturi 2013, "Sinkhorn Distances", in the log domain).

    Args:
        cost: (N, M), or a batch (B, N, M); float32, float64, or half precision (then solved in float32, its gradient
            of the same half precision); may be negative, +inf forbids a pair.
        a: (N,) or (B, N) masses >= 0 of the rows, float32 or float64; None is 1 / N. Zero masses take no part.
        b: (M,) or (B, M) masses >= 0 of the columns, of the same sum; None is 1 / M.
        reg: entropic regularisation, in units of cost.
        max_iter: iterations at most.
        tol: stop when ``sum_j |(P'1)_j - b_j|`` is at most this; 0 runs ``max_iter`` iterations.
        grad: ``"unrolled"``, the exact gradient of the iterations that ran; ``"implicit"``, that of the fixed
            point; ``"envelope"``, the plan held constant (exact for ``value_regularized`` at convergence).
        init: potentials (f, g) of an earlier call to start from; not differentiated.
        accelerate: ``"relax"``: over-relaxed iterations (omega = 3/2; Thibault et al. 2021), about half as many
            where many are needed; the same fixed point. With ``grad="implicit"`` or ``"envelope"``.

    Returns:
        A `SinkhornResult`.

    Raises:
        TypeError: something is not a tensor of floats, or dtypes differ.
        ValueError: shapes, devices or values outside what is said above.
    """
    checks.tensor("cost", cost, "(N, M) or (B, N, M)", 2, 3, half=True)
    if cost.dtype in checks.HALVES:
        cost = cost.float()
    if 0 in cost.shape:
        raise ValueError(f"cost must have at least one row and one column, got shape {tuple(cost.shape)}")
    options = check_options(reg, max_iter, tol, grad, accelerate)
    batch = cost.shape[0] if cost.dim() == 3 else None
    a = checks.mass("a", a, cost.shape[-2], batch, cost.dtype)
    b = checks.mass("b", b, cost.shape[-1], batch, cost.dtype)
    checks.same_device(cost=cost, a=a, b=b)
    init_fg = check_init(init, cost.shape, cost.dtype, cost.device)
    return SinkhornResult(cost, _solve(cost, a, b, init_fg, options), options)


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
            OT(x, y) - (OT(x, x) + OT(y, y)) / 2 of the latter (Feydy et al. 2019).
        grad: as in `sinkhorn`.
        init: as in `sinkhorn`; for ``"divergence"`` it starts the problem between x and y.
        accelerate: as in `sinkhorn`.
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
        convergence: filled in with the marginal error and the iterations of the problem between x and y.

    Returns:
        The loss, () or (B,), float32 or float64; or the result (a `BatchResult` for batches).

    Raises:
        TypeError: something is not a tensor, integers, or float64 with float32.
        ValueError: shapes, widths, devices or values that do not fit; the message says which.
        NotImplementedError: an argument that is not built yet.
    """
    if group is not None:
        sharded.check_group(group)
    dtype = check_features(x, y, shards=group is not None)
    checks.choice("metric", metric, METRICS)
    checks.choice("objective", objective, OBJECTIVES)
    options = check_options(reg, max_iter, tol, grad, accelerate)
    batch = x.shape[0] if x.dim() == 3 else None
    if a is not None or b is not None:
        a = checks.mass("a", a, x.shape[-2], batch, dtype)
        b = checks.mass("b", b, y.shape[-2], batch, dtype)
        checks.same_device(x=x, a=a, b=b)
        envelope_has_no_mass_gradient(objective, grad, a, b)
    init_fg: tuple[Any, Any] = None, None
    if init is not None:
        init_fg = check_init(init, torch.Size((*x.shape[:-1], y.shape[-2])), dtype, x.device)
    if return_result and objective == "divergence":
        raise ValueError("return_result=True is for one problem: use objective='transport' or 'regularized'")
    by_class = class_cost, y_labels
    if class_cost is not None or y_labels is not None:
        class_aware.check_class_cost(class_cost, y_labels, x, y, dtype)
        if objective == "divergence":
            raise ValueError(
                "objective='divergence' compares x with itself, whose classes are not known: with class_cost use "
                "'transport' or 'regularized'"
            )
    settings = Settings(metric, dtype, objective != "transport", options, convergence)
    if offsets is not None or batch is not None:
        if memory_budget is not None or group is not None:
            raise ValueError("memory_budget and group are for one problem, got a batch")
        return _batch_loss(x, y, a, b, init_fg, by_class, offsets, objective, settings, return_result)

    how = memory_budget, group
    if objective != "divergence":
        return _one_problem(x, y, a, b, init_fg, by_class, settings, *how, return_result)
    between = _one_problem(x, y, a, b, init_fg, by_class, settings, *how)
    none, alone = (None, None), settings._replace(convergence=None)
    within = [_one_problem(z, z, m, m, none, none, alone, *how) for z, m in ((x, a), (y, b))]
    return between - (within[0] + within[1]) / 2


class Settings(NamedTuple):
    """What a loss runs with, once checked, on whatever way."""

    metric: str
    dtype: torch.dtype  # of the cost
    regularized: bool
    options: Options
    convergence: Convergence | None = None  # to fill in


def _for_kernels(settings: Settings) -> LossOptions:
    *plain, convergence = settings
    options = loss_options(*plain)
    return options if convergence is None else options._replace(convergence=convergence)


def _one_problem(x, y, a, b, init_fg, by_class, settings: Settings, budget, group, return_result=False):
    """The loss, or the result; by panels where the matrices do not fit."""
    n, m = len(x), len(y)
    metric, dtype, regularized, options, convergence = settings
    over = None
    if group is not None:
        wanted = "result" if return_result else regularized
        over = _shards(x, y, a, b, by_class, f"{dtype} {metric} {options} {wanted}", group)
        m = over.total_columns(m)
    streamed = memory.worth_asking(n, m, dtype.itemsize, budget) and _streamed(
        (x, y, a, b, by_class[0]), m, dtype, budget
    )
    if streamed or over is not None:
        rows = memory.panel_rows(n, m, dtype.itemsize, budget, x.device)
        how = metric, dtype, options, rows, not streamed, over
        outputs = panel.solve(x, y, a, b, init_fg, by_class, *how)
        _tell(convergence, outputs)
        if return_result:
            return panel.PanelResult(outputs[0], outputs, options)
        return outputs[int(regularized)]
    if by_class[0] is not None:
        return _class_aware(x, y, by_class, a, b, init_fg, settings, return_result)
    if not return_result and _has_kernels(x) and _autograd.direct(x, y, a, b):
        return _one_loss(x, y, a, b, init_fg, settings)
    matrix = _cost_matrix(x, y, metric, dtype)
    outputs = _solve(matrix, a, b, init_fg, options)
    _tell(convergence, outputs)
    return SinkhornResult(matrix, outputs, options) if return_result else outputs[int(regularized)]


def _one_loss(x, y, a, b, init_fg, settings: Settings) -> Tensor:
    a, b = None if a is None else a.contiguous(), None if b is None else b.contiguous()
    problem = (x, y, a, b, init_fg[0], init_fg[1], _for_kernels(settings))
    if not _autograd.recorded(x, y, a, b):
        return _loss.forward(*problem, False)[0]
    if _loss.one_call(x, y, a, b, settings.metric):
        return _autograd.SmallSinkhornLoss.apply(*problem)
    return _autograd.SinkhornLoss.apply(*problem)


def _tell(convergence: Convergence | None, outputs: tuple[Tensor, ...]) -> None:
    if convergence is not None:
        convergence.take(outputs[4], outputs[5])


def _shards(x, y, a, b, by_class, settings: str, group) -> sharded.Shards:
    given = "".join(name for name, t in zip("ab", (a, b), strict=True) if t is not None)
    classes = "" if by_class[0] is None else f"K {by_class[0].shape[1]}"
    wants_y = torch.is_grad_enabled() and y.requires_grad
    return sharded.Shards(group, len(x), len(y), wants_y, f"xy{given} {classes} {x.shape[1]} {settings}")


def _streamed(tensors, columns: int, dtype: torch.dtype, budget: int | None) -> bool:
    """Whether the matrices do not fit; without kernels for the device only a given budget is asked about."""
    x = tensors[0]
    if not _has_kernels(x) and budget is None:
        return False
    gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return memory.needs_panels(len(x), columns, dtype.itemsize, gradient, budget, x.device)


def _has_kernels(x: Tensor) -> bool:
    return x.is_cpu or _solve_cuda.runs_on(x)


def _batch_loss(x, y, a, b, init_fg, by_class, offsets, objective, settings: Settings, return_result):
    """The losses (B,) of a batch (B, N, D) or of a ragged list."""
    metric, dtype, regularized, options, convergence = settings
    if x.dim() == 3:
        if offsets is not None:
            raise ValueError(f"offsets are for flat x (sum N_k, D), got x of shape {tuple(x.shape)}")
        shape = torch.Size((*x.shape[:2], y.shape[1]))
        if x.device.type != "cpu" or _solve_cuda.runs_on(x) or not _autograd.direct(x, y, a, b, by_class[0]):
            return _composite_batch(x, y, a, b, init_fg, by_class, objective, settings, return_result)
        at = ragged.of_batch(*shape)
        a = a if a is None else a.expand(shape[:2]).reshape(-1)
        b = b if b is None else b.expand(shape[0], shape[2]).reshape(-1)
        init_fg = tuple(z if z is None else z.reshape(-1) for z in init_fg)
        if by_class[0] is not None:
            by_class = by_class[0].flatten(0, 1), by_class[1].flatten()
        x, y = x.flatten(0, 1), y.flatten(0, 1)
    else:
        if not _has_kernels(x):
            _warn_no_kernels(x.device)
        shape = None
        at = ragged.check_offsets(offsets, x.shape[0], y.shape[0])

    def solve(x, y, a, b, init_fg, by_class, at):
        return ragged.solve(x, y, a, b, init_fg, by_class, at, metric, dtype, options)

    outputs = solve(x, y, a, b, init_fg, by_class, at)
    _tell(convergence, outputs)
    if return_result:
        return ragged.result(outputs, at, shape, options, by_class)
    if objective != "divergence":
        return outputs[int(regularized)]
    none = None, None
    within = [
        solve(z, z, m, m, none, none, ragged.Offsets(k, k))[1] for z, m, k in ((x, a, at.x), (y, b, at.y))
    ]
    empty = (at.x.diff() == 0) | (at.y.diff() == 0)
    return torch.where(empty, 0, outputs[1] - (within[0] + within[1]) / 2)


def _composite_batch(x, y, a, b, init_fg, by_class, objective, settings: Settings, return_result):
    """A batch through its cost (B, N, M): on GPUs, under transforms and compilers."""
    metric, dtype, regularized, options, convergence = settings

    def solve(x, y, a, b, init_fg, by_class):
        matrix = _cost_matrix(x, y, metric, dtype)
        if by_class[0] is not None:
            matrix = class_aware.cost_by_class(matrix, *by_class)
        return matrix, _solve(matrix, a, b, init_fg, options)

    matrix, outputs = solve(x, y, a, b, init_fg, by_class)
    _tell(convergence, outputs)
    if return_result:
        classes = None if by_class[0] is None else (by_class[1], by_class[0].shape[-1])
        return SinkhornResult(matrix, outputs, options, classes)
    if objective != "divergence":
        return outputs[int(regularized)]
    none = None, None
    within = [solve(z, z, m, m, none, none)[1][1] for z, m in ((x, a), (y, b))]
    return outputs[1] - (within[0] + within[1]) / 2


def _class_aware(x, y, by_class, a, b, init_fg, settings: Settings, return_result):
    class_cost, y_labels = by_class
    metric, dtype, regularized, options, convergence = settings
    if not return_result and _has_kernels(x) and _autograd.direct(x, y, class_cost, a, b, y_labels):
        class_cost, a, b, y_labels = (
            None if t is None else t.contiguous() for t in (class_cost, a, b, y_labels)
        )
        how = _for_kernels(settings)
        return class_aware.ClassAwareLoss.apply(x, y, class_cost, a, b, y_labels, *init_fg, how)
    matrix = class_aware.cost_by_class(_cost_matrix(x, y, metric, dtype), class_cost, y_labels)
    outputs = _solve(matrix, a, b, init_fg, options)
    _tell(convergence, outputs)
    if return_result:
        return SinkhornResult(matrix, outputs, options, (y_labels, class_cost.shape[1]))
    return outputs[int(regularized)]


def _cost_matrix(x, y, metric, dtype) -> Tensor:
    """The cost (N, M), on a GPU of a batch too, as one op with a gradient: never (N, M, D) where kernels run."""
    if (_solve_cuda.runs_on(x) or (x.device.type == "cpu" and x.dim() == 2)) and not _transforms.by_torch():
        return _autograd.cost_transformed(x, y, metric)[0]
    return reference.cost(x.to(dtype), y.to(dtype), metric)
