"""NumPy or torch in, the same out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Give = Callable[[Tensor], Any]  # a tensor as the caller's kind of array


def _is_missing(value: Any) -> bool:
    """None or an empty list or array: POT's ways to say "uniform"."""
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def _from_numpy(name: str, value: Any) -> Tensor:
    """Shares memory where torch can; integers become float64."""
    array = np.asarray(value)
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def unify(**arrays: Any) -> tuple[dict[str, Tensor | None], Give]:
    """Every given array as a tensor of one dtype, None where it is missing, and the way back.

    Raises:
        TypeError: NumPy with torch, another array library, or something that holds no real numbers.
    """
    given = {name: value for name, value in arrays.items() if not _is_missing(value)}
    in_torch = [name for name, value in given.items() if isinstance(value, Tensor)]
    for name, value in given.items():
        if not isinstance(value, (Tensor, np.ndarray, np.generic, list, tuple)):
            raise TypeError(
                f"{name} must be a NumPy array, a torch tensor or a list, got {type(value).__name__}"
            )
        if in_torch and isinstance(value, np.ndarray):
            raise TypeError(f"{in_torch[0]} is a torch tensor and {name} a NumPy array: give all of one kind")
    if in_torch:
        like = given[in_torch[0]]
        tensors = {k: v if isinstance(v, Tensor) else like.new_tensor(v) for k, v in given.items()}
        give: Give = lambda tensor: tensor  # noqa: E731
    else:
        tensors = {name: _from_numpy(name, value) for name, value in given.items()}
        give = lambda tensor: tensor.numpy()[()]  # noqa: E731  ([()]: numbers, not 0-d arrays)
    dtypes = [t.dtype for t in tensors.values()]
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = torch.promote_types(common, dtype)
    return {name: tensors[name].to(common) if name in tensors else None for name in arrays}, give
