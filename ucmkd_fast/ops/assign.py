"""Balanced soft assignments of samples to prototypes: the targets of SwAV, DINO and CAPI."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _devices, checks, transforms
from ._assign import Assignment, by_torch, overlap
from .sharded import Alone, Ranks, check_group


@torch.no_grad()
def assign(
    scores: Tensor,
    temperature: float,
    n_iter: int = 3,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    group: Any = None,
    out: Tensor | None = None,
) -> Tensor:
    """Balanced soft assignments of n samples to K prototypes, rows that sum to one (Caron et al. 2020, SwAV).

    ``n_iter`` iterations of Sinkhorn and Knopp on exp(scores / temperature): the columns are scaled to the shares of
    the prototypes, then the rows to one. What SwAV computes, without its overflow: no finite score and no temperature
    gives NaN. Targets are constants there, and here as well: nothing is recorded, the result requires no gradient.

    Where a column underflows, since no sample scores its prototype by far, it is scaled in the log domain and has its
    share all the same. A prototype with nothing to scale takes no part, its column is 0: one that no sample of weight
    may use, or whose share in ``b`` is 0.

    Args:
        scores: (n, K); float32, float64, or half precision, which is read as it is and computed in float32. -inf
            forbids a pair. May be a file mapped into memory (``torch.from_file`` with ``shared=True``, ``np.memmap``):
            each pass gives the pages behind it back (Linux).
        temperature: > 0, in units of the scores; .05 in SwAV.
        n_iter: iterations, >= 1; each reads the scores once, and a last pass once more.
        a: (n,) weights of the samples in the sums over columns, >= 0, of any scale; by default all 1. Rows sum to one
            whatever their weight.
        b: (K,) shares of the prototypes, >= 0, of any scale; by default all the same.
        group: a torch.distributed group over whose ranks the rows are spread, any number on each: the assignments
            are those of all rows together. One all-reduce of about K numbers an iteration; two more in the first where
            exp(scores / temperature) leaves the range of float64 or its columns differ by a factor of e^40 and more
            (on a GPU one more, always). K, ``b``, temperature and ``n_iter`` must be alike everywhere.
        out: (n, K) where the result goes, of any of these dtypes, ``scores`` itself included. By default a new tensor
            of the scores' dtype.

    Returns:
        The assignments (n, K): ``out``, or a new tensor of the scores' dtype. On a GPU NaN for values that are refused
        on the CPU, since nothing waits for the device.

    Raises:
        TypeError: not tensors, dtypes that are none of these, a temperature or n_iter that is no number.
        ValueError: shapes or devices that do not fit, NaN or +inf in the scores, a row of -inf, no rows,
            temperature <= 0, n_iter < 1, weights or shares that are negative, not finite or all 0, an ``out`` that
            overlaps the scores otherwise, settings that differ between the ranks.
    """
    checks.tensor("scores", scores, "(n, K)", 2, half=True)
    n, k = scores.shape
    if not k or not (n or group is not None):
        raise ValueError(
            f"scores must have at least one row and one prototype, got shape {tuple(scores.shape)}"
        )
    temperature = checks.positive_number("temperature", temperature)
    n_iter = checks.count_at_least_one("n_iter", n_iter)
    for name, mass, size in (("a", a, n), ("b", b, k)):
        if mass is not None:
            checks.tensor(name, mass, f"({size},)", 1, half=True)
            if mass.shape[0] != size:
                raise ValueError(f"{name} must have shape ({size},), got {tuple(mass.shape)}")
    checks.same_device(scores=scores, a=a, b=b, out=_checked_out(out, scores))
    if group is not None:
        check_group(group)
    into = torch.empty_like(scores, memory_format=torch.contiguous_format) if out is None else out
    call = Assignment(scores, temperature, n_iter, a, b, into, Alone() if group is None else Ranks(group))
    if transforms.direct(scores, a, b, out):
        assigned: Tensor = _devices.door(scores).assignments(call)
        return assigned
    return by_torch(call, _devices.dtype_of_sums(scores.device))


def _checked_out(out: Any, scores: Tensor) -> Tensor | None:
    if out is None:
        return None
    checks.tensor("out", out, "(n, K)", 2, half=True)
    if out.shape != scores.shape:
        raise ValueError(f"out must have the shape of scores {tuple(scores.shape)}, got {tuple(out.shape)}")
    if out.requires_grad:
        raise ValueError("out must not require a gradient: assignments are constants")
    overlap(scores, out)
    checked: Tensor = out
    return checked
