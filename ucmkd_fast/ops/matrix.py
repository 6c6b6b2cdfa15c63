"""The cost between features as a matrix, differentiable as often as the tensors around it ask."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _classes, _reference, _registered, transforms
from ._devices import door
from ._problem import Problem


def cost_matrix(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """The cost (B?, N, M) as one op: never (N, M, D) where kernels take such features."""
    at = door(x)
    if at.KERNELS and (at.BATCHED or x.dim() == 2) and not transforms.by_torch():
        return _registered.cost(x, y, metric)
    return _reference.cost(x, y, metric, dtype)


def with_classes(matrix: Tensor, p: Problem) -> Tensor:
    """Distances (B?, N, M) with the problem's term by class, where it has one."""
    if p.classes is None:
        return matrix
    host = door(matrix).HOST and not torch.compiler.is_compiling() and not transforms.active()
    return _classes.added(matrix, *p.classes, host)
