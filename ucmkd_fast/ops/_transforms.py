"""What the ops share under torch.func's transforms: a dimension of ``vmap`` becomes the batch of a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def front(info: Any, tensor: Tensor, in_dim: int | None) -> Tensor:
    """(V, ...): the mapped dimension in front, made where a tensor has none."""
    if in_dim is None:
        return tensor.expand(info.batch_size, *tensor.shape)
    return tensor.movedim(in_dim, 0)


def fold(info: Any, in_dims: Sequence[int | None], *tensors: Tensor) -> list[Tensor]:
    """Tensors (B, ...) with a mapped dimension each: (V * B, ...)."""
    return [front(info, t, d).flatten(0, 1) for t, d in zip(tensors, in_dims, strict=True)]
