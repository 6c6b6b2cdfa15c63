"""NumPy or torch in, the same out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops import checks

Give = Callable[[Tensor], Any]  # a tensor as the caller's kind of array


def _is_missing(value: Any) -> bool:
    """None or an empty list or array: POT's ways to say "uniform"."""
    if value is None:
        return True
    return hasattr(value, "__len__") and getattr(value, "shape", None) != () and len(value) == 0


def _from_numpy(name: str, value: Any) -> Tensor:
    """Shares memory where torch can; integers become float64."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must have rows of equal length, got a ragged list") from error
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if array.dtype.itemsize > 8:
        raise TypeError(f"{name} must be of dtype float32 or float64, got {array.dtype}: cast it")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _as_it_is(tensor: Tensor) -> Any:
    return tensor


def _to_numpy(tensor: Tensor) -> Any:
    return tensor.numpy()[()]  # [()]: numbers, not 0-d arrays


def unify(required: dict[str, Any], **optional: Any) -> tuple[dict[str, Tensor | None], Give]:
    """Every array as a tensor of one dtype and the way back; None where an optional one is missing or empty.

    Raises:
        TypeError: NumPy with torch, another array library, or something that holds no real numbers.
        ValueError: tensors on several devices, or a ragged list.
    """
    given = required | {name: value for name, value in optional.items() if not _is_missing(value)}
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
        tensors = {k: v if isinstance(v, Tensor) else _list_like(k, v, like) for k, v in given.items()}
        checks.same_device(**tensors)
    else:
        tensors = {name: _from_numpy(name, value) for name, value in given.items()}
    dtypes = [t.dtype for t in tensors.values()]
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = torch.promote_types(common, dtype)
    names = [*required, *optional]
    unified = {name: tensors[name].to(common) if name in tensors else None for name in names}
    return unified, _as_it_is if in_torch else _to_numpy


def _list_like(name: str, value: Any, like: Tensor) -> Tensor:
    try:
        return like.new_tensor(value)
    except ValueError as error:
        raise ValueError(f"{name} must have rows of equal length, got a ragged list") from error


def matrix(name: str, value: Tensor | None, shape: str) -> Tensor:
    """A dense matrix of floats with at least one row and one column."""
    checks.tensor(name, value, shape, 2)
    assert value is not None
    if 0 in value.shape:
        raise ValueError(f"{name} must have at least one row and one column, got shape {tuple(value.shape)}")
    return value
