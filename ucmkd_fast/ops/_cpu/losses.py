"""The loss between features on a CPU, value and gradient: around `sinkhorn`, whose place in it is the cost.

A small problem whose masses need no gradient is one native call. Otherwise the forward leaves one block of memory for
the backward: the cost (N, M), the scales of the features (N + M,), and from an aligned place on what
`sinkhorn.saved_size` counts. For large problems torch's BLAS makes the matrix products.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..._native import _C
from .. import _dual, not_converged
from .._addresses import address
from .._classes import Classes
from .._pieces import converted
from .._problem import Convergence, Gradients, Kept, Needs, Options, Pair, Problem
from ..cost import BY_DIFFERENCE, SUMMED
from ..refusals import explained
from . import sinkhorn
from .costs import (
    Features,
    add_products,
    backward,
    begin_gradients,
    check_scales,
    finish_gradients,
    two,
    with_known_scales,
)

OWN_PRODUCTS = _C.OWN_PRODUCTS


@functools.lru_cache(maxsize=256)
def _settings(options: Options) -> _C.LossSettings:
    """One object for every call with the same options: in a small call, making it would be felt."""
    return _C.LossSettings(
        f64=options.dtype is torch.float64, metric=_C.METRICS[options.known_metric], regularized=options.regularized,
        reg=options.reg, max_iter=options.max_iter, tol=options.tol, relax=options.accelerate == "relax",
        grad=_C.GRADS[options.grad], rho_a=options.rho[0], rho_b=options.rho[1], shifted=options.shifted,
    )  # fmt: skip


def _own_products(x: Tensor, y: Tensor, metric: str | None) -> bool:
    return x.numel() * y.shape[0] <= OWN_PRODUCTS or metric in SUMMED


def loss(p: Problem, options: Options, needs: Needs, told: Convergence | None) -> tuple[Tensor, Kept]:
    """As `Door.loss`."""
    x, y = p.features
    if p.class_cost is None and not (needs.a or needs.b) and _own_products(x, y, options.metric):
        return _small(p, options, needs, told)
    return make(p, options, needs, told)


def _small(p: Problem, options: Options, needs: Needs, told: Convergence | None) -> tuple[Tensor, Kept]:
    """The loss, and along with it its gradients of x (N, D) and y (M, D), in the cost's dtype: one native call."""
    x, y = p.features
    x, y = converted(x, options.dtype), converted(y, options.dtype)
    value = x.new_empty(())
    dx = torch.empty_like(x) if needs.x else None
    dy = torch.empty_like(y) if needs.y else None
    error = n_iter = None
    if told is not None or options.tol > 0:
        error, n_iter = _to_fill_in(x, told)
    a = b = init_f = init_g = 0
    if not (p.a is p.b is p.init_f is None):
        a, b, init_f, init_g = address(p.a), address(p.b), address(p.init_f), address(p.init_g)
    (n, d), m = x.shape, y.shape[0]
    said = _C.loss_and_gradient(
        _settings(options), n=n, m=m, d=d, x=x.data_ptr(), y=y.data_ptr(), a=a, b=b, init_f=init_f, init_g=init_g,
        loss=value.data_ptr(), marginal_error=address(error), n_iter=address(n_iter), grad_x=address(dx),
        grad_y=address(dy),
    )  # fmt: skip
    if said is not None:
        if isinstance(said, str):
            raise _refused(said, p, options.dtype)
        if told is None:
            not_converged.remark(said, error, value, p.a, options)
        elif not said[0]:
            not_converged.warn_of_gradient()
    return value, Kept(grad_x=dx, grad_y=dy)


def _to_fill_in(like: Tensor, told: Convergence | None) -> tuple[Tensor, Tensor | None]:
    """Where the marginal error and, if somebody wants them, the iterations go."""
    error, n_iter = like.new_empty(()), None
    if told is not None:
        n_iter = torch.empty((), dtype=torch.int64)
        told.take(error, n_iter)
    return error, n_iter


def _refused(refused: str, p: Problem, dtype: torch.dtype) -> ValueError:
    x, y = p.features
    check_scales(refused, converted(x, dtype), converted(y, dtype))
    return ValueError(explained(refused, a=p.a, b=p.b, class_cost=p.class_cost, y_labels=p.labels))


class _Block(NamedTuple):
    """The memory of a problem between forward and backward."""

    all: Tensor
    n: int
    m: int

    @classmethod
    def new(cls, like: Tensor, n: int, m: int, options: Options, history: bool) -> _Block:
        head = sinkhorn.padded(n * m + n + m)
        size = head + sinkhorn.saved_size(torch.Size((n, m)), options, history)
        return cls(like.new_empty(size, dtype=options.dtype), n, m)

    @property
    def cost(self) -> Tensor:
        """(N, M)."""
        return self.all[: self.n * self.m].view(self.n, self.m)

    @property
    def scale(self) -> Tensor:
        """(N + M,) of the features."""
        begin = self.n * self.m
        return self.all[begin : begin + self.n + self.m]

    @property
    def saved(self) -> int:
        """Address of what the solver keeps."""
        n, m = self.n, self.m
        return self.all.data_ptr() + self.all.element_size() * sinkhorn.padded(n * m + n + m)


def _problem(
    p: Problem, block: _Block, options: Options, history: bool, classes: Classes | None
) -> tuple[_C.Problem, Features]:
    """The native problem, and its features: their scales are, or will be, in the block."""
    features = with_known_scales(*p.features, block.scale, options.known_metric, options.dtype)
    given = features.native(classes=classes)
    problem = sinkhorn.native(p, options, (block.n, block.m), block.all, block.saved, history, given)
    return problem, features


def make(p: Problem, options: Options, needs: Needs, told: Convergence | None) -> tuple[Tensor, Kept]:
    """The loss, the potentials where its gradient needs them, and what the backward needs."""
    x, y = p.features
    n, m, save = x.shape[0], y.shape[0], any(needs)
    history = save and options.grad == "unrolled"
    block = _Block.new(x, n, m, options, history)
    value = block.all.new_empty(())
    classes = None
    if p.classes is not None:
        apart = save and options.metric in BY_DIFFERENCE
        classes = Classes(*p.classes, block.all.new_empty(n, m) if apart else None)
    problem, features = _problem(p, block, options, history, classes)
    own = _own_products(x, y, options.metric)
    if not own:  # out=: autocast leaves it alone
        torch.mm(features.x, features.y.t(), out=block.cost)
    dual = f = g = None
    if options.regularized:
        dual = value.new_empty(())
        if save and (p.a is not None or p.b is not None or options.unbalanced is not None):
            f, g = value.new_empty(n), value.new_empty(m)
    error = n_iter = None
    if told is not None or options.tol > 0:
        error, n_iter = _to_fill_in(value, told)
    refused = _C.loss_forward(
        problem, own_products=own, save_plan=save, f=address(f), g=address(g), value=value.data_ptr(),
        dual=address(dual), marginal_error=address(error), n_iter=address(n_iter),
    )  # fmt: skip
    if refused is not None:
        raise _refused(refused, p, options.dtype)
    if told is None:
        not_converged.look(error, value, p.a, options, options.metric if classes is None else None)
    kept = Kept(block.all, f, g, distance=None if classes is None else classes.distance)
    return (value if dual is None else dual), kept


class _Back(NamedTuple):
    """What the two ways of a backward share."""

    problem: _C.Problem
    features: Features
    upstream: _C.Upstream
    masses: dict[str, int]


def loss_backward(p: Problem, kept: Kept, up: Tensor, options: Options, needs: Needs) -> Gradients:
    """As `Door.loss_backward`."""
    assert kept.block is not None
    x, y = p.features
    block = _Block(kept.block, x.shape[0], y.shape[0])
    classes = None
    if p.classes is not None:
        grad = torch.empty_like(p.classes[0]) if needs.class_cost else None
        classes = Classes(*p.classes, kept.distance, grad)
    problem, features = _problem(p, block, options, options.grad == "unrolled", classes)
    arriving = _dual.of_loss(up, p, kept, options, (block.n, block.m))
    grad_a = None if p.a is None else torch.empty_like(p.a)
    grad_b = None if p.b is None else torch.empty_like(p.b)
    masses = {"grad_a": address(grad_a), "grad_b": address(grad_b)}
    back = _Back(problem, features, sinkhorn.native_upstream(arriving), masses)
    if _own_products(x, y, options.metric):
        dx = torch.empty_like(features.x) if needs.x else None
        dy = torch.empty_like(features.y) if needs.y else None
        if not _C.loss_backward(
            problem,
            back.upstream,
            grad=_C.GRADS[options.grad],
            grad_x=address(dx),
            grad_y=address(dy),
            **masses,
        ):
            not_converged.warn_of_gradient()
    else:
        dx, dy = _large(back, block, classes, options, (needs.x, needs.y))
    d_classes = None if classes is None else classes.grad
    if p.a is None and p.b is None:
        return Gradients(x=dx, y=dy, class_cost=d_classes)
    solved = p._replace(cost=block.cost) if options.grad == "envelope" else p
    grad_a, grad_b = _dual.mass_gradients(solved, kept, arriving, (grad_a, grad_b), options, True)
    return Gradients(x=dx, y=dy, a=grad_a, b=grad_b, class_cost=d_classes)


def _large(
    back: _Back, block: _Block, classes: Classes | None, options: Options, need: tuple[bool, bool]
) -> Pair:
    """Gradients of x and y with torch's matrix products."""
    problem, features, upstream, masses = back
    n, m = block.n, block.m
    distance = block.cost if classes is None else classes.distance
    sums = block.all.new_empty(n + m)
    rows, columns = two(sums, n)
    product = None
    if options.grad == "unrolled":
        left, right, depths = sinkhorn.adjoint(problem, upstream, block.all, (n, m), options.max_iter, masses)
        product = left, right
        if not len(left):  # the log domain makes all rows at once
            weights = block.all.new_empty(n, m)
            _C.sinkhorn_adjoint_finish(
                problem, upstream, depth=depths.data_ptr(), grad_cost=weights.data_ptr(), row_sums=rows,
                column_sums=columns, **masses,
            )  # fmt: skip
            return backward(features, distance, weights, sums, need)
    elif options.grad == "implicit":
        if not _C.sinkhorn_implicit(
            problem, upstream, grad_cost=0, row_sums=rows, column_sums=columns, **masses
        ):
            not_converged.warn_of_gradient()
    return _in_blocks(back, distance, sums, product, options.grad, need)


#: Bytes of a block of rows of the cost's gradient: it stays in the cache from the pass that makes it to the products
#: that read it.
BLOCK = 2 << 20


def _in_blocks(
    back: _Back, distance: Tensor | None, sums: Tensor, product: tuple[Tensor, Tensor] | None, grad: str,
    need: tuple[bool, bool],
) -> Pair:  # fmt: skip
    """Gradients of x and y; that of the cost exists for a block of rows at a time.

    It comes from ``product`` (left, right), or from ``sums`` (N + M,).
    """
    features = back.features
    n, m = len(features.x), len(features.y)
    grads = begin_gradients(features, need)
    block = min(n, max(16, BLOCK // (m * sums.element_size())))
    buffer, of_rows, of_columns = sums.new_empty(block, m), sums.new_empty(n), sums.new_zeros(m)
    part = torch.empty_like(of_columns)
    row_sum, col_sum = (0, 0) if product else two(sums, n)
    for begin in range(0, n, block):
        rows = slice(begin, min(n, begin + block))
        weights = buffer[: rows.stop - begin]
        if product:  # out=: autocast leaves it alone
            torch.mm(product[0][:, rows].t(), product[1], out=weights)
        _C.sinkhorn_gradient_rows(
            back.problem, back.upstream, grad=_C.GRADS[grad], begin=begin, end=rows.stop, row_sum=row_sum,
            col_sum=col_sum, grad_cost=weights.data_ptr(), row_sums=of_rows[rows].data_ptr(),
            column_sums=part.data_ptr(),
        )  # fmt: skip
        of_columns += part
        add_products(features, rows, None if distance is None else distance[rows], weights, grads)
    finish_gradients(features, of_rows, of_columns, grads)
    return grads
