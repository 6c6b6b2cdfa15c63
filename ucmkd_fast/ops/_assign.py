"""What `assign` hands to the doors of devices, and what torch's own operations compute of it anywhere."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import transforms
from ._mapped import span
from .refusals import spelled
from .sharded import Alone

#: Of scores that are converted at a time.
CHUNK_BYTES = 256 << 20
#: Temperatures outside are computed in float64: 2 / temperature and its products with scores leave float32.
_FLOAT32_TEMPERATURES = 1e-36, 1e36
#: Logarithm of the largest ratio of two scales. Exponentials below e^-87 are 0 in float32: times such a ratio they are
#: below rounding.
_SPREAD = 40.0
_MOST = 1e300  # of 2 / temperature: a finite number, so that 0 times it is 0


class Assignment(NamedTuple):
    """A call of `assign`, once checked; masses are checked by their values later."""

    scores: Tensor  # (n, K)
    temperature: float
    n_iter: int
    a: Tensor | None  # (n,)
    b: Tensor | None  # (K,)
    out: Tensor  # (n, K)
    over: Alone  # the processes that have rows

    @property
    def dtype(self) -> torch.dtype:
        """In which it is computed."""
        low, high = _FLOAT32_TEMPERATURES
        wide = self.scores.dtype == torch.float64 or not low <= self.temperature <= high
        return torch.float64 if wide else torch.float32

    @property
    def rate(self) -> float:
        """What differences of halved scores are multiplied by: halved, since those of two scores may overflow."""
        return min(2 / self.temperature, _MOST) if self.temperature > 2 / _MOST else _MOST

    def chunks(self, most: int) -> Iterator[slice]:
        """Rows of at most so many bytes of scores, one at least."""
        n, k = self.scores.shape
        rows = max(1, most // (k * self.scores.element_size()))
        for start in range(0, n, rows):
            yield slice(start, min(start + rows, n))


class Settings(NamedTuple):
    """What all processes of a group must have alike."""

    temperature: float
    n_iter: int
    prototypes: int
    dtype: torch.dtype
    weighted: bool
    b: int | None

    def code(self) -> int:
        """Of twenty bits: sums of its square over processes stay exact in float64."""
        return zlib.crc32(repr(self).encode()) & 0xFFFFF


def check_sum(mass: Tensor | None) -> int | None:
    """Of the values of a CPU tensor."""
    return None if mass is None else zlib.crc32(mass.detach().double().contiguous().numpy().tobytes())


def bad_mass(name: str, mass: Tensor | None) -> str | None:
    """What is wrong with weights or shares on the CPU."""
    if mass is None or not mass.numel():
        return None
    bad = ~((mass >= 0) & (mass < torch.inf))
    if bad.any():
        k = int(bad.nonzero()[0])
        return f"{name} must be finite and >= 0, got {spelled(mass[k].item())} at {name}[{k}]"
    total = float(mass.double().sum())
    if not (total == 0 or 1e-290 < total < 1e290):
        return f"{name} must have a sum between 1e-290 and 1e290, got {total:g}"
    if name == "b" and not mass.any():
        return "b must not be all 0: some prototype must have a share"
    return None


class Potentials:
    """Column potentials scale exp(-rate level), the same bits on every process; levels are in halves of scores.

    Levels are 0 where the scales of all columns stay in range so: rows are then read relative to their own largest
    score, in which least is lost. Else they start as the largest scores of the columns, and take up what scales do not
    hold.
    """

    def __init__(self, p: Assignment, share: Tensor, level: Tensor, columns: Tensor):
        """From the sums (K,) of all samples in the columns, relative to levels (K,)."""
        self._dtype, self._rate = p.dtype, p.rate
        self._share = share / share.sum()
        self.active = (columns > 0) & (share > 0)
        self.all_active = bool(self.active.all())
        self.level = self._of_active(level, math.inf).to(p.dtype)  # (K,) inf: takes no part
        self.scale = self._of_active(self._share / columns, 0)  # (K,)

    def in_range(self) -> bool:
        """Whether the scales of the prototypes that take part are near enough to each other."""
        if not self.all_active and not bool(self.active.any()):
            return False
        least, most = torch.aminmax(self.scale if self.all_active else self.scale[self.active])
        return bool(least > 0) and float(most) <= math.exp(_SPREAD) * float(least)

    def update(self, columns: Tensor) -> None:
        """Give every prototype its share, where its assignments (K,) are now ``columns``.

        A share beyond the range of the sums, or of a sum that underflows, is neared by a factor of e^40.
        """
        ratio = (self._share / columns).mul_(columns.sum()).clamp_(math.exp(-_SPREAD), math.exp(_SPREAD))
        self.scale = self._of_active(ratio.mul_(self.scale), 0)
        self.balance()

    def balance(self) -> None:
        """Scales of at most 1 and near enough to each other; what is beyond them goes into the levels."""
        if not self.all_active and not bool(self.active.any()):
            return  # the next sweep tells of a row that has none
        self.scale = self.scale / self.scale.max()
        if self.in_range():
            return
        log, before = self._of_active(self.scale, 1).log(), self._of_active(self.level, 0).double()
        level = (before - log / self._rate).to(self._dtype)
        rest = log + (level.double() - before) * self._rate  # what rounding has left of it
        self.level = self._of_active(level, math.inf)
        self.scale = self._of_active(rest.clamp(-_SPREAD / 2, _SPREAD / 2).exp(), 0)

    def _of_active(self, z: Tensor, other: float) -> Tensor:
        """(K,) ``z``, and ``other`` where a prototype takes no part."""
        return z if self.all_active else torch.where(self.active, z, other)


def by_torch(p: Assignment, sums: torch.dtype) -> Tensor:
    """In the log domain, chunk by chunk; nothing is read back. Input that the CPU refuses gives NaN.

    Args:
        p: The call.
        sums: Dtype of the sums over samples, and of potentials.
    """
    dtype, rate, over = p.dtype, p.rate, p.over
    sums = torch.promote_types(sums, dtype)
    k = p.scores.shape[1]
    chunks = list(p.chunks(CHUNK_BYTES // 4))
    share = p.scores.new_ones(k, dtype=sums) if p.b is None else p.b.to(sums)
    weight = None if p.a is None else p.a.to(sums)[:, None]

    def halves(rows: slice) -> Tensor:
        return p.scores[rows].to(dtype) * 0.5

    # Levels: the largest score of each column.
    level = p.scores.new_full((k,), -math.inf, dtype=dtype)
    for rows in chunks:
        half = halves(rows)
        if weight is not None:
            half = torch.where(weight[rows] > 0, half, -math.inf)
        level = torch.maximum(level, half.amax(0))
    level = over.greatest(level)
    active = ~((level == -math.inf) | (share == 0))
    level = torch.where(active, level, math.inf)
    columns = p.scores.new_zeros(k, dtype=sums)
    for rows in chunks:
        e = torch.exp((halves(rows) - level) * rate)
        e = e if weight is None else torch.where(weight[rows] > 0, e, 0) * weight[rows]
        columns = columns + e.sum(0, dtype=sums)
    columns = over.add(columns)
    tiny = torch.finfo(dtype).tiny

    def potentials(before: Tensor | float) -> Tensor:
        return torch.where(active, before + share.log() - columns.clamp_min(tiny).log(), 0)

    def assigned(rows: slice) -> Tensor:
        z = halves(rows) - level
        return torch.softmax((z - z.amax(1, keepdim=True)) * rate + log_scale.to(dtype), 1)

    log_scale = potentials(0.0)
    for _ in range(p.n_iter - 1):
        columns = torch.zeros_like(columns)
        for rows in chunks:
            q = assigned(rows)
            columns = columns + (q if weight is None else q * weight[rows]).sum(0, dtype=sums)
        columns = over.add(columns)
        log_scale = potentials(log_scale)
    for rows in chunks:
        p.out[rows] = assigned(rows).to(p.out.dtype)
    return p.out


def overlap(scores: Tensor, out: Tensor) -> None:
    """Raise ValueError where ``out`` lies over the scores in another way than as the scores themselves, or over itself.

    Fake tensors, which have no memory, are let through.
    """
    if torch.compiler.is_compiling() or transforms.active():
        return
    steps = sorted((step, size) for step, size in zip(out.stride(), out.shape, strict=True) if size > 1)
    if any(step < reach for (step, _), reach in zip(steps, _reaches(steps), strict=True)):
        raise ValueError("out must have a place for every element, got one whose elements share memory")
    starts = [z.data_ptr() for z in (scores, out)]
    ends = [start + span(z) for start, z in zip(starts, (scores, out), strict=True)]
    alike = scores.stride() == out.stride() and scores.dtype == out.dtype
    if alike and (starts[0] == starts[1] or _beside(starts[1] - starts[0], out)):
        return
    if max(starts) < min(ends) and scores.device == out.device:
        raise ValueError(
            "out must be the scores themselves or memory of its own, got one that overlaps them otherwise"
        )


def _beside(distance: int, out: Tensor) -> bool:
    """Whether rows like those of ``out``, so many bytes before, end before its rows start, and the other way round."""
    (step, of_column), size = out.stride(), out.element_size()
    return of_column == 1 and out.shape[1] <= distance // size % max(step, 1) <= step - out.shape[1]


def _reaches(steps: list[tuple[int, int]]) -> Iterator[int]:
    """Elements that each dimension has to step over at least, from the one of the smallest step."""
    reach = 1
    for step, size in steps:
        yield reach
        reach = step * size
