"""Calls of the native loss between features, value and gradient: around `_solve`, whose place in it is the cost.

A small problem whose masses need no gradient is one native call, `with_gradient`. Otherwise the forward leaves
one block of memory for the backward, `kept`: the cost (N, M), the scales of the features (N + M,), and from an
aligned place on what `_solve.saved_size` counts. For large problems torch's BLAS makes the matrix products.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import _C, METRIC_CODES
from . import _loss_cuda, _not_converged, _solve, _solve_cuda
from ._solve import GRAD_CODES, Options, _address
from .cost import (
    Features,
    add_products,
    begin_gradients,
    check_scales,
    finish_gradients,
    plain,
    with_known_scales,
)
from .cost import backward as features_backward
from .refusals import explained
from .result import Convergence

#: Multiply-adds of x y' above which torch's matrix products are used: there they are faster than our own
#: (tried at N = M = 32 to 512, D = 512: own ones are 3 to 30 percent faster up to 256).
OWN_PRODUCTS = 256 * 256 * 512


class LossOptions(NamedTuple):
    """What a loss between features runs with, once checked."""

    metric: str
    dtype: torch.dtype  # of the cost
    regularized: bool  # the dual value instead of <P, C>
    solver: Options
    native: Any  # the same as `with_gradient` hands it over
    convergence: Convergence | None = None  # to fill in


@functools.lru_cache(maxsize=256)
def loss_options(metric: str, dtype: torch.dtype, regularized: bool, solver: Options) -> LossOptions:
    """One object for every call with the same options: in a small call, making it would be felt."""
    native = _C.SinkhornLossSettings(
        dtype is torch.float64, METRIC_CODES[metric], regularized, solver.reg, solver.max_iter, solver.tol,
        solver.accelerate == "relax", GRAD_CODES[solver.grad],
    )  # fmt: skip
    return LossOptions(metric, dtype, regularized, solver, native)


class Classes(NamedTuple):
    """A term of the cost by class, see csrc/cost/features.h."""

    cost: Tensor  # (N, K) contiguous
    labels: Tensor  # (M,) int64 contiguous
    distance: Tensor | None = None  # (N, M)
    grad: Tensor | None = None  # (N, K), written by the backward


def _features(x: Tensor, y: Tensor, kept: Tensor, options: LossOptions) -> Features:
    """Both sets as the kernels read them; their scales are, or will be, in ``kept``."""
    n, m = len(x), len(y)
    return with_known_scales(x, y, kept[n * m : n * m + n + m], options.metric, options.dtype)


def _problem(
    features: Features, a, b, init_f, init_g, kept, options: LossOptions, history: bool, classes
) -> Any:
    x, y, _, metric, given_x, given_y = features
    (n, d), m = x.shape, len(y)
    solver = options.solver
    cost, size = kept.data_ptr(), kept.element_size()
    scale_x = cost + size * n * m
    scale_y = scale_x + size * n
    saved = cost + size * _solve._padded(n * m + n + m)
    problem = _C.SinkhornProblem(
        options.dtype is torch.float64, 1, n, m, solver.max_iter, solver.reg, solver.tol, cost, _address(a), True,
        _address(b), True, _address(init_f), _address(init_g), solver.accelerate == "relax", history, saved,
        METRIC_CODES[metric], d, x.data_ptr(), y.data_ptr(), scale_x, scale_y,
    )  # fmt: skip
    if given_x is not x:
        problem.set_given(given_x.data_ptr(), given_y.data_ptr())
    if classes is not None:
        problem.set_classes(classes.cost.shape[1], *(_address(t) for t in classes))
    return problem


def _kept_cost(kept: Tensor, n: int, m: int) -> Tensor:
    return kept[: n * m].view(n, m)


def _own_products(x: Tensor, y: Tensor, metric: str) -> bool:
    return x.numel() * len(y) <= OWN_PRODUCTS or metric == "l1"


#: Elements of the cost up to which the gradient is made along with the loss on a CUDA device: to issue the kernels
#: takes longer than they run, and twice as long in the thread that autograd has for the device.
SMALL_ON_DEVICE = 1 << 18


def one_call(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, metric: str) -> bool:
    """Whether `with_gradient` takes the problem."""
    if (a is not None and a.requires_grad) or (b is not None and b.requires_grad):
        return False
    if _solve_cuda.runs_on(x):
        return len(x) * len(y) <= SMALL_ON_DEVICE
    return _own_products(x, y, metric)


def with_gradient(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    init_f: Tensor | None,
    init_g: Tensor | None,
    options: LossOptions,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss () and its gradients of x (N, D) and y (M, D), in the cost's dtype."""
    if _solve_cuda.runs_on(x):
        return _with_gradient_cuda(x, y, a, b, init_f, options, (need_x, need_y))
    x, y = plain(x, options.dtype), plain(y, options.dtype)
    loss = x.new_empty(())
    dx, dy = torch.empty_like(x) if need_x else None, torch.empty_like(y) if need_y else None
    error, n_iter = _to_fill_in(x, options)
    said = _C.sinkhorn_loss_and_gradient(
        options.native, *x.shape, len(y), x.data_ptr(), y.data_ptr(), _address(a), _address(b), _address(init_f),
        _address(init_g), loss.data_ptr(), _address(error), _address(n_iter), _address(dx), _address(dy),
    )  # fmt: skip
    if said is not None:
        if isinstance(said, str):
            _raise(said, x, y, a=a, b=b)
        _not_converged.remark(said, error, loss, a, options)
    return loss, dx, dy


def _with_gradient_cuda(x, y, a, b, init_f, options: LossOptions, needs: tuple[bool, bool]):
    """The same on the device."""

    def upstream_of(kept, f, g, one):
        return _upstream(x, y, a, b, f, g, kept, one, options)[:3]

    return _loss_cuda.with_gradient(x, y, a, b, init_f, options, needs, upstream_of)


def _to_fill_in(like: Tensor, options: LossOptions) -> tuple[Tensor | None, Tensor | None]:
    """Where the marginal error and the iterations go, if somebody wants them."""
    if options.convergence is None:
        return (like.new_empty(()) if options.solver.tol > 0 else None), None
    error, n_iter = like.new_empty(()), torch.empty((), dtype=torch.int64)
    options.convergence.take(error, n_iter)
    return error, n_iter


def _raise(refused: str, x: Tensor, y: Tensor, **others: Tensor | None) -> None:
    check_scales(refused, x, y)
    raise ValueError(explained(refused, **others))


def forward(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    a: Tensor | None,
    b: Tensor | None,
    init_f: Tensor | None,
    init_g: Tensor | None,
    options: LossOptions,
    save: bool,
    classes: Classes | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """The loss, the potentials where its gradient needs them, and what the backward needs."""
    if _solve_cuda.runs_on(x):
        return _loss_cuda.forward(x, y, a, b, init_f, options, save, classes)
    n, m = len(x), len(y)
    history = save and options.solver.grad == "unrolled"
    size = _solve._padded(n * m + n + m) + _solve.saved_size(n, m, options.solver.max_iter, history)
    kept, value = (x.new_empty(shape, dtype=options.dtype) for shape in (size, ()))
    features = _features(x, y, kept, options)
    own = _own_products(x, y, options.metric)
    if not own:  # out=: autocast leaves it alone
        torch.mm(features.x, features.y.t(), out=_kept_cost(kept, n, m))
    dual = f = g = None
    if options.regularized:
        dual = kept.new_empty(())
        if save and (a is not None or b is not None):
            f, g = kept.new_empty(n), kept.new_empty(m)
    problem = _problem(features, a, b, init_f, init_g, kept, options, history, classes)
    error, n_iter = _to_fill_in(kept, options)
    refused = _C.sinkhorn_loss_forward(
        problem, own, save, _address(f), _address(g), value.data_ptr(), _address(dual), _address(error),
        _address(n_iter),
    )  # fmt: skip
    if refused is not None:
        by_class = {} if classes is None else {"class_cost": classes.cost, "y_labels": classes.labels}
        _raise(refused, x, y, a=a, b=b, **by_class)
    _not_converged.look_at_loss(error, value, a, options, classes is not None)
    return (value if dual is None else dual), f, g, kept


def backward(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    init_f: Tensor | None,
    init_g: Tensor | None,
    f: Tensor | None,
    g: Tensor | None,
    kept: Tensor,
    upstream: Tensor,
    options: LossOptions,
    needs: Sequence[bool],  # of x, y, a, b
    classes: Classes | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, y (in the cost's dtype), a and b."""
    if _solve_cuda.runs_on(x):
        return _backward_cuda(x, y, a, b, init_f, f, g, kept, upstream, options, needs, classes)
    solver, features = options.solver, _features(x, y, kept, options)
    problem = _problem(features, a, b, init_f, init_g, kept, options, solver.grad == "unrolled", classes)
    if not _own_products(x, y, options.metric):
        return _backward_large(features, a, b, f, g, kept, problem, upstream, options, needs, classes)
    x, y = features[:2]
    dx, dy = torch.empty_like(x) if needs[0] else None, torch.empty_like(y) if needs[1] else None
    if a is b is None and not options.regularized:
        up, grad_a, grad_b = _solve.Upstream(upstream), None, None
    else:
        up = _upstream(x, y, a, b, f, g, kept, upstream, options)
        grad_a, grad_b = (None if mass is None else torch.empty_like(mass) for mass in (a, b))
    if not _C.sinkhorn_loss_backward(
        problem, GRAD_CODES[solver.grad], _address(up.value), _address(up.f), _address(up.g), _address(grad_a),
        _address(grad_b), _address(dx), _address(dy),
    ):  # fmt: skip
        _not_converged.warn_of_gradient()
    if a is b is None:
        return dx, dy, None, None
    matrix = _kept_cost(kept, len(x), len(y))
    return dx, dy, *_mass_gradients(matrix, a, b, f, g, upstream, up, grad_a, grad_b, options)


def _mass_gradients(matrix, a, b, f, g, upstream, up: _solve.Upstream, grad_a, grad_b, options: LossOptions):
    """Of a and b: through the iterations (``grad_a``, ``grad_b``) and directly; the envelope has its own."""
    if options.solver.grad == "envelope":
        dual = upstream if options.regularized else None
        return _solve._envelope_masses(matrix, a, b, f, g, dual, options.solver.reg)
    return _solve._plus(grad_a, up.direct_a), _solve._plus(grad_b, up.direct_b)


def _of_outputs(upstream: Tensor, options: LossOptions) -> tuple[Tensor | None, ...]:
    """As those of value, dual, f, g."""
    return (None, upstream, None, None) if options.regularized else (upstream, None, None, None)


def _upstream(x, y, a, b, f, g, kept, upstream, options: LossOptions) -> _solve.Upstream:
    outputs = _of_outputs(upstream, options)
    return _solve._upstream(len(x), len(y), kept, a, b, f, g, outputs, options.solver)


def _backward_large(
    features: Features, a, b, f, g, kept, problem, upstream, options: LossOptions, needs, classes
):
    """The same with torch's matrix products."""
    x, y = features[:2]
    n, m, solver = len(x), len(y), options.solver
    matrix = _kept_cost(kept, n, m)
    distance = matrix if classes is None else classes.distance
    up = _upstream(x, y, a, b, f, g, kept, upstream, options)
    addresses = [_address(t) for t in up[:3]]
    grad_a, grad_b = (None if mass is None else torch.empty_like(mass) for mass in (a, b))
    masses = _address(grad_a), _address(grad_b)
    sums, product = kept.new_empty(n + m), None
    if solver.grad == "unrolled":
        left, right, depths = _solve.adjoint(problem, kept, (), n, m, addresses, masses, solver.max_iter)
        product = left, right
        if not len(left):  # the log domain makes all rows at once
            weights = kept.new_empty(n, m)
            _C.sinkhorn_adjoint_finish(
                problem, *addresses, depths.data_ptr(), weights.data_ptr(), *masses, *_two(sums, n)
            )
            dx, dy = features_backward(features, distance, weights, sums, needs[:2])
            return dx, dy, *_mass_gradients(None, a, b, f, g, upstream, up, grad_a, grad_b, options)
    elif solver.grad == "implicit":
        if not _C.sinkhorn_implicit(problem, *addresses, 0, *masses, *_two(sums, n)):
            _not_converged.warn_of_gradient()
    call = problem, GRAD_CODES[solver.grad], addresses[0]
    dx, dy = _in_blocks(features, distance, call, sums, product, needs[:2])
    return dx, dy, *_mass_gradients(matrix, a, b, f, g, upstream, up, grad_a, grad_b, options)


def _two(sums: Tensor, n: int) -> tuple[int, int]:
    """Addresses of the first n numbers and of the rest."""
    return sums.data_ptr(), sums.data_ptr() + n * sums.element_size()


#: Bytes of a block of rows of the cost's gradient: it stays in the cache from the pass that makes it to the products
#: that read it.
BLOCK = 2 << 20


def _in_blocks(
    features: Features, distance: Tensor | None, call, sums: Tensor, product, need
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and y; that of the cost exists for a block of rows at a time.

    It comes from ``product`` (left, right), or from ``sums`` (N + M,).
    """
    n, m = len(features.x), len(features.y)
    grads = begin_gradients(features, need)
    block = min(n, max(16, BLOCK // (m * sums.element_size())))
    buffer, of_rows, of_columns = sums.new_empty(block, m), sums.new_empty(n), sums.new_zeros(m)
    part = torch.empty_like(of_columns)
    given = (0, 0) if product else _two(sums, n)
    for begin in range(0, n, block):
        rows = slice(begin, min(n, begin + block))
        weights = buffer[: rows.stop - begin]
        if product:  # out=: autocast leaves it alone
            torch.mm(product[0][:, rows].t(), product[1], out=weights)
        _C.sinkhorn_gradient_rows(
            *call, begin, rows.stop, *given, weights.data_ptr(), of_rows[rows].data_ptr(), part.data_ptr()
        )
        of_columns += part
        add_products(features, rows, None if distance is None else distance[rows], weights, grads)
    finish_gradients(features, of_rows, of_columns, grads)
    return grads


def _backward_cuda(x, y, a, b, init_f, f, g, kept, upstream, options: LossOptions, needs, classes):
    """The same on the device."""
    up = _upstream(x, y, a, b, f, g, kept, upstream, options)
    dx, dy, grad_a, grad_b, matrix = _loss_cuda.backward(
        x, y, a, b, init_f, f, g, kept, up[:3], options, needs, classes
    )
    return dx, dy, *_mass_gradients(matrix, a, b, f, g, upstream, up, grad_a, grad_b, options)
