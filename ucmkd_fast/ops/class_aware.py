"""Transport whose cost knows classes: C_ij = d(x_i, y_j) + W[i, k_j], in the same kernels.

The term is added where a row of distances is finished, and its gradient, dC summed over the columns
of each label, is made where dC is (csrc/cost/row.h).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import sinkhorn as reference
from . import _autograd, _loss, _solve_cuda, _transforms, cost
from .refusals import explained

# Their gradient divides by the distance, which the cost no longer shows.
READS_DISTANCE = cost.BY_DIFFERENCE


def check_class_cost(class_cost: Any, y_labels: Any, x: Tensor, y: Tensor, dtype: torch.dtype) -> None:
    """Shapes, dtypes and devices of W (..., N, K) and labels (..., M); their values are checked where they are read.

    Raises:
        TypeError: one without the other, not tensors, or dtypes that do not fit.
        ValueError: shapes or devices that do not fit.
    """
    if class_cost is None or y_labels is None:
        lacking, given = ("y_labels", "class_cost") if y_labels is None else ("class_cost", "y_labels")
        raise TypeError(f"class_cost and y_labels belong together: got {given} without {lacking}")
    if not isinstance(class_cost, Tensor) or not isinstance(y_labels, Tensor):
        raise TypeError(
            "class_cost and y_labels must be tensors (N, K) and (M,), got "
            f"{type(class_cost).__name__} and {type(y_labels).__name__}"
        )
    if class_cost.dtype != dtype:
        raise TypeError(f"class_cost must have the cost's dtype {dtype}, got {class_cost.dtype}")
    if y_labels.dtype != torch.int64:
        raise TypeError(f"y_labels must be int64, got {y_labels.dtype}")
    if class_cost.shape[:-1] != x.shape[:-1] or class_cost.dim() != x.dim() or not class_cost.shape[-1]:
        wanted = ", ".join(map(str, x.shape[:-1]))
        raise ValueError(f"class_cost must have shape ({wanted}, K), got {tuple(class_cost.shape)}")
    if y_labels.shape != y.shape[:-1]:
        raise ValueError(f"y_labels must have shape {tuple(y.shape[:-1])}, got {tuple(y_labels.shape)}")
    if class_cost.device != x.device or y_labels.device != x.device:
        raise ValueError(
            f"all tensors must be on one device, got x on {x.device}, class_cost on {class_cost.device} "
            f"and y_labels on {y_labels.device}"
        )


def bad_values(class_cost: Tensor, y_labels: Tensor) -> str | None:
    """A sentence about the values of W (..., N, K) or labels (..., M), as the kernels', or None."""
    text = None
    if bool(_outside(class_cost, y_labels).any()):
        text = "y_labels must be columns of class_cost, from 0 to K - 1, got one outside"
    elif bool(_no_cost(class_cost)):
        text = "class_cost must be a number or +inf (a forbidden class) everywhere, got NaN or -inf"
    return None if text is None else explained(text, class_cost=class_cost, y_labels=y_labels)


def has_bad_values(class_cost: Tensor, y_labels: Tensor) -> Tensor:
    """Whether `bad_values` has anything to say, () bool, without reading it."""
    return _outside(class_cost, y_labels).any() | _no_cost(class_cost)


def poisoned(class_cost: Tensor, y_labels: Tensor) -> Tensor:
    """NaN everywhere where `bad_values` has anything to say, also of a class that does not occur."""
    return torch.where(has_bad_values(class_cost, y_labels), torch.nan, class_cost)


def _outside(class_cost: Tensor, y_labels: Tensor) -> Tensor:
    return (y_labels < 0) | (y_labels >= class_cost.shape[-1])


def _no_cost(class_cost: Tensor) -> Tensor:
    return ((class_cost != class_cost) | (class_cost == -torch.inf)).any()


def cost_by_class(matrix: Tensor, class_cost: Tensor, y_labels: Tensor) -> Tensor:
    """Distances (..., N, M) and their term by class, as a composite: for compilers, transforms and results."""
    transformed = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
    if transformed or not matrix.is_cpu or _solve_cuda.runs_on(matrix):  # on a GPU the look would wait for it
        class_cost = poisoned(class_cost, y_labels)
    elif refused := bad_values(class_cost, y_labels):
        raise ValueError(refused)
    return matrix + by_label(class_cost, y_labels)


def by_label(class_cost: Tensor, y_labels: Tensor) -> Tensor:
    """W[i, k_j] (..., N, M); NaN for a label that is none, which on a GPU would end the process."""
    columns = torch.where(_outside(class_cost, y_labels), class_cost.shape[-1], y_labels)
    known = torch.nn.functional.pad(class_cost, (0, 1), value=torch.nan)
    if class_cost.dim() == 2:
        return known.index_select(1, columns)
    return known.gather(2, columns[:, None, :].expand(-1, class_cost.shape[1], -1))


class ClassAwareLoss(torch.autograd.Function):
    """From x (N, D), y (M, D), W (N, K) and labels (M,): the value, or the dual value where ``regularized``."""

    @staticmethod
    def forward(ctx: Any, x, y, class_cost, a, b, y_labels, init_f, init_g, options):  # noqa: D102
        needs = any(ctx.needs_input_grad)
        distance = None
        if needs and options.metric in READS_DISTANCE:
            distance = class_cost.new_empty(len(x), len(y))
        looked_at = poisoned(class_cost, y_labels) if _solve_cuda.runs_on(x) else class_cost
        classes = _loss.Classes(looked_at, y_labels, distance)
        loss, f, g, kept = _loss.forward(x, y, a, b, init_f, init_g, options, needs, classes)
        if needs:
            ctx.save_for_backward(x, y, class_cost, a, b, y_labels, init_f, init_g, f, g, kept, distance)
            ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, upstream):  # noqa: D102
        x, y, class_cost, a, b, y_labels, init_f, init_g, f, g, kept, distance = ctx.saved_tensors
        options, needs, none = ctx.options, ctx.needs_input_grad, [None] * 4
        if torch.is_grad_enabled():
            _transforms.refuse_second_order(options.solver.grad)

            def again(x, y, class_cost, a, b):
                matrix = reference.cost(x.to(kept.dtype), y.to(kept.dtype), options.metric)
                matrix = matrix + class_cost.index_select(1, y_labels)
                outputs = _autograd.reference_outputs(matrix, a, b, init_f, init_g, options.solver)
                return (outputs[int(options.regularized)],)

            return *_autograd.differentiate(again, (x, y, class_cost, a, b), (upstream,)), *none
        grad = torch.empty_like(class_cost) if needs[2] else None
        dx, dy, d_a, d_b = _loss.backward(
            x, y, a, b, init_f, init_g, f, g, kept, upstream, options, (*needs[:2], *needs[3:5]),
            _loss.Classes(class_cost, y_labels, distance, grad),
        )  # fmt: skip
        dx, dy = (d if d is None else d.to(z.dtype) for d, z in ((dx, x), (dy, y)))
        return dx, dy, grad, d_a if needs[3] else None, d_b if needs[4] else None, *none
