"""Transport class by class: no mass leaves its class."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import _lists, relative_reg, transforms
from ._devices import door
from ._problem import Offsets, Problem
from .arguments import Asked, checked, rho_pair
from .cost import dtype_of_cost
from .sinkhorn import sinkhorn_loss


class ClassMasses(NamedTuple):
    """Masses under which every class sends what it receives."""

    a: Tensor  # (N,) equal for every x whose class y has as well, 0 for others; sum 1
    b: Tensor  # (M,) those of y, scaled class by class to the sums of x
    left_out_x: Tensor  # () int64, rows of x of classes that y lacks
    left_out_y: Tensor  # () int64


def class_masses(x_labels: Tensor, y_labels: Tensor, classes: int, dtype: torch.dtype) -> ClassMasses:
    """Masses for labels x (N,) and y (M,), int64 from 0 to ``classes`` - 1; nothing is read by the host."""
    counts = [
        torch.zeros(classes, dtype=dtype, device=k.device).index_add(
            0, k, torch.ones(len(k), dtype=dtype, device=k.device)
        )
        for k in (x_labels, y_labels)
    ]
    common = (counts[0] > 0) & (counts[1] > 0)
    share = torch.where(common, counts[0], 0)
    share = share / share.sum()
    a, b = ((share / count.clamp_min(1))[k] for k, count in zip((x_labels, y_labels), counts, strict=True))
    return ClassMasses(a, b, (~common)[x_labels].sum(), (~common)[y_labels].sum())


def class_conditional_loss(
    x: Tensor,
    y: Tensor,
    x_labels: Tensor,
    y_labels: Tensor,
    *,
    classes: int,
    beta: float = float("inf"),
    **options: Any,
) -> Tensor:
    """Entropic transport between features, with a price on moving mass to another class.

    C_ij = d(x_i, y_j) + beta [k_j != label_i]. At beta = inf it is one problem per class: the masses of y
    are scaled class by class to those of x, and samples of a class that the other side lacks have none. On the CPU
    these run as a ragged batch, each to ``tol`` by itself; with ``return_result``, masses, ``init``, ``memory_budget``
    or ``group``, and on other devices, as one problem whose cost is +inf between classes.

    Args:
        x: (N, D) features.
        y: (M, D) features.
        x_labels: (N,) int64, from 0 to ``classes`` - 1.
        y_labels: (M,) int64.
        classes: K.
        beta: >= 0, in units of the cost; inf forbids.
        **options: of `sinkhorn_loss`: ``metric``, ``reg``, ``max_iter``, ``return_result``, ... ``reg_scale="mean"`` is
            the mean over all pairs of finite cost: at beta = inf, those within the classes. ``unbalanced`` holds the
            masses that are said above: what a class sends may then be less.

    Returns:
        As `sinkhorn_loss`.

    Raises:
        TypeError: as `sinkhorn_loss`; labels that are not int64.
        ValueError: as `sinkhorn_loss`; labels out of range, no common class, beta < 0 or NaN.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be a number >= 0 or inf, got {beta}")
    for name, labels, z in (("x_labels", x_labels, x), ("y_labels", y_labels, y)):
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != z.shape[:1]:
            found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels)
            raise TypeError(f"{name} must be int64 of shape ({len(z)},), got {found}")
        if door(labels).HOST and len(labels) and not transforms.active():
            low, high = (int(v) for v in torch.aminmax(labels))
            if low < 0 or high >= classes:
                raise ValueError(f"{name} must be from 0 to {classes - 1}, got {low if low < 0 else high}")
    dtype = dtype_of_cost(x.dtype)
    one_call = beta == float("inf") and not _ONE_PROBLEM & {
        k for k, given in options.items() if given is not None
    }
    if one_call and door(x).HOST and transforms.direct(x, y):
        return _class_by_class(x, y, (x_labels, y_labels), classes, options)
    other = torch.arange(classes, device=x.device) != x_labels[:, None]
    class_cost = torch.zeros((), dtype=dtype, device=x.device).masked_fill(other, beta)
    if beta == float("inf"):
        masses = class_masses(x_labels, y_labels, classes, dtype)
        options = {"a": masses.a, "b": masses.b, **options}
    return cast("Tensor", sinkhorn_loss(x, y, class_cost=class_cost, y_labels=y_labels, **options))


#: Options whose meaning is that of the problem as a whole.
_ONE_PROBLEM = {"a", "b", "init", "memory_budget", "group", "offsets", "return_result"}


def _class_by_class(
    x: Tensor, y: Tensor, labels: tuple[Tensor, Tensor], classes: int, options: dict[str, Any]
) -> Tensor:
    """The sum over classes of a class's share times its own loss, from one ragged call.

    A plan s P_k, of a class that sends the share s, has KL(s P_k | s a, s b) = s KL(P_k | a, b) - s log s. Where
    ``unbalanced`` leaves it open how much a class sends, that term moves the plan too: then classes have the masses of
    the problem as a whole, and start where it starts.
    """
    dtype = dtype_of_cost(x.dtype)
    counts = [torch.bincount(k, minlength=classes) for k in labels]
    share = torch.where((counts[0] > 0) & (counts[1] > 0), counts[0], 0).to(dtype)
    if not share.sum() > 0:
        raise ValueError("x and y must have a class in common, got none")
    share = share / share.sum()
    order = [torch.argsort(k, stable=True) for k in labels]
    starts = [torch.nn.functional.pad(count.cumsum(0), (1, 0)) for count in counts]
    told, options = options.get("convergence"), {**options, "offsets": (starts[0], starts[1])}
    x, y = x[order[0]], y[order[1]]
    if options.get("reg_scale") is not None:
        options |= _in_units_of_cost(Problem(x=x, y=y), Offsets(*starts), options)
    regularized = options.get("objective") == "regularized"
    weight, of_masses = share, -torch.xlogy(share, share).sum()
    if rho_pair(options.get("unbalanced"), 0.0) is not None:
        masses = class_masses(*labels, classes, dtype)
        options |= {"a": masses.a[order[0]], "b": masses.b[order[1]]}
        start = -float(options.get("reg", 0.1)) * math.log(len(x))
        options["init"] = x.new_full((len(x),), start, dtype=dtype), x.new_zeros(len(y), dtype=dtype)
        # As one problem it has the mass of a b' that is between classes as well.
        weight, of_masses = torch.ones_like(share), 1 - share.square().sum()
    losses = cast("Tensor", sinkhorn_loss(x, y, **options))
    if told is not None:  # of the plan as a whole: the classes' columns are apart
        told.take((weight * told.marginal_error).sum(), told.n_iter.max())
    loss = (weight * losses).sum()
    return loss + float(options.get("reg", 0.1)) * of_masses if regularized else loss


def _in_units_of_cost(p: Problem, offsets: Offsets, given: dict[str, Any]) -> dict[str, Any]:
    """Reg and rho times the mean cost over the pairs of all classes: one number, as in one problem."""
    dtype = dtype_of_cost(p.features[0].dtype)
    metric, reg, rho = given.get("metric", "cosine"), given.get("reg", 0.1), given.get("unbalanced")
    scale = given.pop("reg_scale")
    options = checked(Asked(reg, 1, 0.0, "unrolled", None, scale, dtype, metric, unbalanced=rho))
    total, count = _lists.cost_sums(p, offsets, options)
    settled = relative_reg.settle(p, relative_reg.ratio(total.sum(), count.sum()), options, True)[1]
    return {"reg": settled.reg, "unbalanced": settled.unbalanced}
