"""A term of the cost by class: C_ij = d(x_i, y_j) + W[i, k_j].

Kernels add it where a row of distances is finished, and make its gradient, dC summed over the columns of each label,
where dC is (csrc/cost/row.h). Here are its record, its checks, and the same in torch's operations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import _C
from .refusals import explained


class Classes(NamedTuple):
    """As the kernels take it (csrc/cost/features.h)."""

    cost: Tensor  # W (N, K) contiguous
    labels: Tensor  # (M,) int64 contiguous
    distance: Tensor | None = None  # (N, M): d, where the gradient divides by it
    grad: Tensor | None = None  # (N, K), written by the backward

    def rows(self, rows: slice) -> Classes:
        """Those of some rows of W."""
        cost, labels, distance, grad = self
        return Classes(
            cost[rows],
            labels,
            None if distance is None else distance[rows],
            None if grad is None else grad[rows],
        )


def check(class_cost: Any, y_labels: Any, x: Tensor, y: Tensor, dtype: torch.dtype) -> None:
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


def bad_values(class_cost: Tensor, labels: Tensor) -> str | None:
    """A sentence about the values of W (..., N, K) or labels (..., M), as the kernels', or None."""
    text = None
    if bool(_outside(class_cost, labels).any()):
        text = _C.REFUSALS["labels"]
    elif bool(_no_cost(class_cost)):
        text = _C.REFUSALS["class_cost"]
    return None if text is None else explained(text, class_cost=class_cost, y_labels=labels)


def has_bad_values(class_cost: Tensor, labels: Tensor) -> Tensor:
    """Whether `bad_values` has anything to say, () bool, without reading it."""
    return _outside(class_cost, labels).any() | _no_cost(class_cost)


def poisoned(class_cost: Tensor, labels: Tensor) -> Tensor:
    """NaN everywhere where `bad_values` has anything to say, also of a class that does not occur."""
    return torch.where(has_bad_values(class_cost, labels), torch.nan, class_cost)


def _outside(class_cost: Tensor, labels: Tensor) -> Tensor:
    return (labels < 0) | (labels >= class_cost.shape[-1])


def _no_cost(class_cost: Tensor) -> Tensor:
    return ((class_cost != class_cost) | (class_cost == -torch.inf)).any()


def by_label(class_cost: Tensor, labels: Tensor) -> Tensor:
    """W[i, k_j] (..., N, M); NaN for a label that is none, which on a GPU would end the process."""
    columns = torch.where(_outside(class_cost, labels), class_cost.shape[-1], labels)
    known = torch.nn.functional.pad(class_cost, (0, 1), value=torch.nan)
    if class_cost.dim() == 2:
        return known.index_select(1, columns)
    return known.gather(2, columns[:, None, :].expand(-1, class_cost.shape[1], -1))


def added(matrix: Tensor, class_cost: Tensor, labels: Tensor, host: bool) -> Tensor:
    """Distances (..., N, M) with their term by class; ``host``: bad values are looked for, else they give NaN.

    Raises:
        ValueError: they were found.
    """
    if not host:
        class_cost = poisoned(class_cost, labels)
    elif refused := bad_values(class_cost, labels):
        raise ValueError(refused)
    return matrix + by_label(class_cost, labels)
