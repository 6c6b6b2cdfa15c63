"""How tensors cross to the compiled module."""

from __future__ import annotations

from torch import Tensor


def address(tensor: Tensor | None) -> int:
    """Of a tensor's first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def addresses(**tensors: Tensor | None) -> dict[str, int]:
    """The same of several, by name."""
    return {name: address(tensor) for name, tensor in tensors.items()}
