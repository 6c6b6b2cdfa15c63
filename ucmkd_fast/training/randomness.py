"""The state of every random generator that a run draws from, as tensors."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

_WORDS = 624  # of the Mersenne twister behind both random and numpy.random


def capture() -> dict[str, Tensor]:
    """The states of torch, its accelerator, random and numpy.random; all of fixed sizes."""
    states = {
        "torch": torch.get_rng_state(),
        "python": _pack_python(random.getstate()),
        "numpy": _pack_numpy(np.random.get_state()),
    }
    if torch.accelerator.is_available():
        states["device"] = torch.get_device_module().get_rng_state()
    return states


def restore(states: dict[str, Tensor]) -> None:
    """Set every generator to what `capture` returned."""
    torch.set_rng_state(states["torch"].clone())  # of a view, torch reads the wrong bytes
    random.setstate(_unpack_python(states["python"].tolist()))
    np.random.set_state(_unpack_numpy(states["numpy"].tolist()))
    if "device" in states and torch.accelerator.is_available():
        torch.get_device_module().set_rng_state(states["device"].clone())


def _bits(value: float | None) -> list[int]:
    """A float, or none, as two integers: whether it is there, and its 64 bits."""
    return [int(value is not None), struct.unpack("<q", struct.pack("<d", value or 0.0))[0]]


def _float(there: int, bits: int) -> float | None:
    return struct.unpack("<d", struct.pack("<q", bits))[0] if there else None


def _pack_python(state: tuple) -> Tensor:
    version, words, gauss = state
    return torch.tensor([version, *words, *_bits(gauss)], dtype=torch.int64)


def _unpack_python(values: list[int]) -> tuple:
    return values[0], tuple(values[1:-2]), _float(*values[-2:])


def _pack_numpy(state: Any) -> Tensor:
    _, words, position, has_gauss, gauss = state
    return torch.tensor([*words.tolist(), position, *_bits(gauss if has_gauss else None)], dtype=torch.int64)


def _unpack_numpy(values: list[int]) -> tuple:
    gauss = _float(*values[-2:])
    words = np.array(values[:_WORDS], dtype=np.uint32)
    return "MT19937", words, values[_WORDS], int(gauss is not None), gauss or 0.0
