"""Argument checks that the ops share: what was expected, and what came."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..names import did_you_mean

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)


def choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``; names the nearest."""
    if value in allowed:
        return
    hint = did_you_mean(value, allowed)
    raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{hint}")


def positive_number(name: str, value: Any) -> float:
    """A finite number > 0."""
    if type(value) is float and 0 < value < math.inf:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number > 0, got {type(value).__name__}")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value}")
    return number


def number_at_least_zero(name: str, value: Any) -> float:
    """A finite number >= 0."""
    if type(value) is float and 0 <= value < math.inf:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number >= 0, got {type(value).__name__}")
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return number


def count_at_least_one(name: str, value: Any) -> int:
    """An integer >= 1."""
    if type(value) is int and value >= 1:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer >= 1, got {value!r}")
    count = int(value)
    if count < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value}")
    return count


def tensor(name: str, value: Any, shape: str, *dims: int, half: bool = False) -> Tensor:
    """A dense floating tensor with one of the given numbers of dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape {shape}, got {type(value).__name__}")
    if value.dtype not in FLOATS and not (half and value.dtype in HALVES):
        allowed = "float32 or float64" + (", float16 or bfloat16" if half else "")
        raise TypeError(f"{name} must be of dtype {allowed}, got {str(value.dtype).removeprefix('torch.')}")
    if value.dim() not in dims:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")
    return value


def alike(x: Any, y: Any) -> bool:
    """Two dense matrices with rows, on one device, of one dtype, float32 or float64, and of one width: in few steps."""
    return (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and (dtype := x.dtype) is y.dtype
        and dtype in FLOATS
        and len(of_x := x.shape) == len(of_y := y.shape) == 2
        and of_x[1] == of_y[1]
        and 0 not in of_x
        and of_y[0] > 0
        and x.layout is y.layout is torch.strided
        and x.device == y.device
    )


def same_device(**tensors: Tensor | None) -> None:
    """All given tensors live on one device."""
    if len({t.device for t in tensors.values() if t is not None}) > 1:
        raise ValueError(
            "all tensors must be on one device, got "
            + ", ".join(f"{name} on {t.device}" for name, t in tensors.items() if t is not None)
        )


def common_dtype(**tensors: Tensor | None) -> torch.dtype:
    """float64 or float32 of the given tensors; half precision counts as float32."""
    kinds = {torch.float32 if t.dtype in HALVES else t.dtype for t in tensors.values() if t is not None}
    if len(kinds) > 1:
        raise TypeError(
            "float64 and float32 do not mix, got "
            + ", ".join(f"{name} of {str(t.dtype).removeprefix('torch.')}"
                        for name, t in tensors.items() if t is not None)
        )  # fmt: skip
    return kinds.pop()
