"""Elementwise torch ops of small calls, in pieces that torch leaves to the calling thread.

Torch splits an op on more than 32,768 elements over its threads and waits for all of them: a few microseconds of work
take several time slices where others hold the processors.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: GRAIN_SIZE of ATen: up to so many elements an op runs in the calling thread.
PIECE = 32768
#: Elements from which torch's threads are worth their wait: a call on so many is no small one.
LARGE = 1 << 20


def in_pieces(z: Tensor) -> bool:
    """Whether an op on ``z`` is made in pieces."""
    return PIECE < z.numel() <= LARGE and z.is_cpu and torch._C._functorch.peek_interpreter_stack() is None


def pieces(z: Tensor) -> tuple[Tensor, ...]:
    """Views of ``z`` that together cover it."""
    views: tuple[Tensor, ...] = z.split(max(1, PIECE * len(z) // z.numel()))
    return views


def converted(z: Tensor, dtype: torch.dtype) -> Tensor:
    """``z`` as kernels read it, contiguous and of this dtype: itself where it is that already. Nothing is recorded."""
    if z.dtype == dtype and z.is_contiguous():
        return z
    if not in_pieces(z):
        return z.to(dtype).contiguous()
    out = torch.empty(z.shape, dtype=dtype)
    for part, into in zip(pieces(z), pieces(out), strict=True):
        into.copy_(part)
    return out


def times(z: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``z`` times a number (), in this dtype. Nothing is recorded."""
    if not in_pieces(z):
        product = z * factor
        return product if product.dtype is dtype else product.to(dtype)
    out = torch.empty_like(z, dtype=dtype)
    for part, into in zip(pieces(z), pieces(out), strict=True):
        torch.mul(part, factor, out=into)
    return out


def scale_(z: Tensor, factor: Tensor) -> Tensor:
    """``z`` times a number () or one number per row (N, 1), in place."""
    if not in_pieces(z):
        return z.mul_(factor)
    factors = pieces(factor.expand_as(z)) if factor.dim() else None
    for k, part in enumerate(pieces(z)):
        part.mul_(factors[k] if factors else factor)
    return z
