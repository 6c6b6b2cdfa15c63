"""Balanced assignments on a CPU: one pass of the kernels over the scores for each iteration, and one that writes.

A pass goes through the rows in chunks where they lie in a file: pages that it has gone over are given back. Nothing of
size n x K is allocated.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._native import _C
from .. import _mapped
from .._addresses import address
from .._assign import Assignment
from ..refusals import spelled
from ..sharded import ANOTHER_REFUSED

_ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/core/element.h
#: Of a pass over a file, or over columns that are not contiguous.
CHUNK_BYTES = 32 << 20
#: Logarithm of the largest ratio of two scales. Exponentials below e^-87 are 0 in float32: times such a ratio they are
#: below rounding.
_SPREAD = 40.0
_COUNTED = 5  # what the first sum over processes has beside the columns


def assignments(p: Assignment) -> Tensor:
    """`Assignment` with its values checked, into ``p.out``.

    Raises:
        ValueError: NaN or +inf, a row of -inf, masses that are none; on every process of a group where one has them.
    """
    problem = _bad_mass("a", p.a) or _bad_mass("b", p.b)
    if p.over.alone and problem:
        raise ValueError(problem)
    passes = _Passes(p)
    sums = torch.zeros(p.scores.shape[1], dtype=torch.float64)
    level = torch.full_like(sums, -math.inf, dtype=p.dtype)
    problem = problem or passes.columns(level, sums)
    potentials = _Potentials(p, level, sums, problem)
    for _ in range(p.n_iter - 1):
        # The last element tells the others of a problem.
        vector = torch.zeros(len(sums) + 1, dtype=torch.float64)
        problem = passes.sweep(potentials, vector[:-1])
        vector[-1] = problem is not None
        if p.over.add(vector)[-1]:
            raise ValueError(problem or ANOTHER_REFUSED)
        potentials.update(vector[:-1])
    problem = passes.sweep(potentials, None)
    if not bool(potentials.active.all()):  # every process knows that; else there is no such problem
        p.over.refuse(problem)
    return p.out


class _Passes:
    """Passes over the scores."""

    def __init__(self, p: Assignment):
        self._p = p
        n = len(p.scores)
        maps = {"scores": _mapped.mapping(p.scores), "out": _mapped.mapping(p.out)}
        if (into := maps["out"]) is not None and not into.writable:
            raise ValueError("out must be memory that can be written to, got a file mapped read-only")
        self._drops = [getattr(p, name) for name, found in maps.items() if found is not None and found.shared]
        self._in_file = any(found is not None for found in maps.values())
        direct = p.scores.stride(1) == p.out.stride(1) == 1 or p.scores.shape[1] == 1
        self._chunks = list(p.chunks(CHUNK_BYTES if self._in_file or not direct else max(1, p.scores.nbytes)))
        # Exponentials stay in `out` from one pass to the next where it has room for them as they are.
        self._keeps = (
            direct
            and not self._in_file
            and p.out.dtype == p.dtype
            and p.out.data_ptr() != p.scores.data_ptr()
        )
        self._kept_of: Any = None  # the level of those that lie there
        self._weight, self._mass = None, 1.0  # of samples, at most 1, and what they are to be multiplied by
        if p.a is not None and n and (most := float(p.a.max())) > 0:
            self._weight, self._mass = (p.a.double() / most).to(p.dtype), most
        elif p.a is not None:
            self._weight = torch.zeros(n, dtype=p.dtype)

    def columns(self, level: Tensor, sums: Tensor) -> str | None:
        """The log-sums of the columns, as levels (K,) and sums (K,) relative to them; or what is wrong with a row."""
        p = self._p
        for rows, scores in self._rows():
            call = self._call(scores, rows)
            bad, empty = _C.assign_columns(call, level=level.data_ptr(), sum=sums.data_ptr())
            if bad >= 0:
                row = scores[bad]
                j = int((row.isnan() | (row == torch.inf)).nonzero()[0])
                return (
                    "scores must be finite, or -inf for a pair that is forbidden, got "
                    f"{spelled(row[j].item())} in row {rows.start + bad}, prototype {j}"
                )
            if empty >= 0:
                return f"scores must leave every sample a prototype, got nothing but -inf in row {rows.start + empty}"
            self._drop(rows, p.scores)
        sums.mul_(self._mass)
        return None

    def sweep(self, potentials: _Potentials, sums: Tensor | None) -> str | None:
        """Add the columns of the assignments to ``sums`` (K,), or write the assignments; or what is wrong."""
        p, scale = self._p, potentials.scale.to(self._p.dtype)
        made = self._keeps and self._kept_of is potentials.level
        for rows, scores in self._rows(read=not made):
            out = p.out[rows]
            as_it_is = sums is not None or out.stride(1) == 1 or out.shape[1] == 1
            into = out if as_it_is else torch.empty(out.shape, dtype=out.dtype)
            lost = _C.assign_sweep(
                self._call(scores, rows), level=potentials.level.data_ptr(), scale=scale.data_ptr(),
                kept=into.data_ptr() if self._keeps else 0, kept_stride=into.stride(0), made=made, sum=address(sums),
                out=into.data_ptr() if sums is None else 0, out_type=_ELEMENTS[out.dtype], out_stride=into.stride(0),
            )  # fmt: skip
            if lost >= 0:
                return (
                    f"every sample needs a prototype that has a share and that a sample of weight may use, got row "
                    f"{rows.start + lost} with none"
                )
            if not as_it_is:
                out.copy_(into)
            self._drop(rows, p.scores, *([p.out] if sums is None else []))
        if self._keeps:
            self._kept_of = potentials.level
        if sums is not None:
            sums.mul_(self._mass)
        return None

    def _rows(self, read: bool = True) -> Iterator[tuple[slice, Tensor]]:
        """The chunks, with scores whose columns are contiguous."""
        for rows in self._chunks:
            scores = self._p.scores[rows]
            if read and scores.stride(1) != 1 and scores.shape[1] > 1:
                scores = scores.contiguous()
            yield rows, scores

    def _call(self, scores: Tensor, rows: slice) -> Any:
        weight = None if self._weight is None else self._weight[rows]
        return _C.AssignRows(
            f64=self._p.dtype == torch.float64, n=scores.shape[0], k=scores.shape[1], scores=scores.data_ptr(),
            score_type=_ELEMENTS[scores.dtype], score_stride=scores.stride(0), weight=address(weight),
            rate=self._p.rate,
        )  # fmt: skip

    def _drop(self, rows: slice, *tensors: Tensor) -> None:
        for z in tensors:
            if any(z is one for one in self._drops):
                _mapped.drop(z[rows])


class _Settings(NamedTuple):
    """What all processes of a group must have alike."""

    temperature: float
    n_iter: int
    prototypes: int
    dtype: torch.dtype
    weighted: bool
    b: int | None  # a check sum

    def code(self) -> int:
        """Of twenty bits: sums of its square over processes stay exact in float64."""
        return zlib.crc32(repr(self).encode()) & 0xFFFFF


class _Potentials:
    """Column potentials exp(-rate level) scale, the same bits on every process: levels in halves of scores.

    Levels are 0 where the scales of all columns stay in range so: rows are then read relative to their own largest
    score, in which little is lost. Else they are the largest scores of the columns, and take up later what scales do
    not hold.
    """

    def __init__(self, p: Assignment, level: Tensor, sums: Tensor, problem: str | None):
        """From the log-sums of this process's columns, or its problem. One sum over processes, or three."""
        self._p, self._rate = p, p.rate
        share = torch.ones_like(sums) if p.b is None else p.b.double()
        self._share = share / share.sum() if problem is None else share
        found = self._of_raw_scores(level, sums, problem)
        if found is None:
            found = self._of_largest(level.double(), sums)
        columns, base = found
        self.active = (columns > 0) & (self._share > 0)
        self.level = torch.where(self.active, base, math.inf).to(p.dtype)  # (K,) inf: takes no part
        self.scale = torch.where(self.active, self._share / columns, 0)  # (K,) at most 1
        self._balance()

    def update(self, columns: Tensor) -> None:
        """Give every prototype its share, where its assignments (K,) are now ``columns``.

        Sums that underflow, of which the share asked for is beyond the range of their samples, are moved by e^40.
        """
        ratio = self._share / (columns / columns.sum())
        self.scale = torch.where(
            self.active, self.scale * ratio.clamp(math.exp(-_SPREAD), math.exp(_SPREAD)), 0
        )
        self._balance()

    def _balance(self) -> None:
        self.scale /= self.scale.max()
        if float(torch.where(self.active, self.scale, 1).min()) >= math.exp(-_SPREAD):
            return
        log = torch.where(self.active, self.scale, 1).log()
        before = torch.where(self.active, self.level, 0).double()
        level = (before - log / self._rate).to(self._p.dtype)
        rest = log + (level.double() - before) * self._rate  # what rounding has left of it
        self.level = torch.where(self.active, level, math.inf)
        self.scale = torch.where(self.active, rest.clamp(-_SPREAD / 2, _SPREAD / 2).exp(), 0)

    def _of_raw_scores(
        self, level: Tensor, sums: Tensor, problem: str | None
    ) -> tuple[Tensor, Tensor] | None:
        """Sums of exp(score / temperature) over all samples, level 0; None where they or the scales leave the range."""
        p = self._p
        raw = sums * torch.exp(level.double() * self._rate)
        counted = torch.where(sums > 0, raw, 1)
        in_range = bool((counted > 1e-250).all() & (counted < 1e250).all())
        checksum = None if p.b is None else zlib.crc32(p.b.double().contiguous().numpy().tobytes())
        code = _Settings(p.temperature, p.n_iter, len(sums), p.dtype, p.a is not None, checksum).code()
        mine = [not in_range, problem is not None, len(p.scores), code, code * code]
        vector = p.over.add(torch.cat([raw, torch.tensor(mine, dtype=torch.float64)]))
        raw, (out_of_range, refused, rows, codes, squares) = vector[:-_COUNTED], vector[-_COUNTED:].tolist()
        if refused:
            raise ValueError(problem or ANOTHER_REFUSED)
        if not p.over.alone and int(codes) ** 2 != int(squares) * p.over.size():
            raise ValueError(
                "every process of the group must call assign alike (temperature, n_iter, K, b, a given or not, and the "
                f"dtype it is computed in), this one has temperature={p.temperature}, n_iter={p.n_iter}, K={len(sums)}"
            )
        if not rows:
            raise ValueError("scores must have at least one row in some process of the group, got none")
        if not out_of_range and not bool((raw > 0).any()):
            raise ValueError("a must not be all 0: some sample must have a weight")
        if out_of_range:
            return None
        scale = (self._share / raw)[(raw > 0) & (self._share > 0)]
        if len(scale) and float(scale.max() / scale.min()) > math.exp(_SPREAD):
            return None
        return raw, torch.zeros_like(raw)

    def _of_largest(self, level: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Sums relative to the largest score of each column."""
        top = self._p.over.greatest(level.clone())
        rescaled = torch.where(sums > 0, sums * torch.exp((level - top) * self._rate), 0)
        return self._p.over.add(rescaled), top


def _bad_mass(name: str, mass: Tensor | None) -> str | None:
    if mass is None or not mass.numel():
        return None
    bad = ~((mass >= 0) & (mass < torch.inf))
    if bad.any():
        k = int(bad.nonzero()[0])
        return f"{name} must be finite and >= 0, got {spelled(mass[k].item())} at {name}[{k}]"
    if not float(mass.double().sum()) < 1e300:
        return f"{name} must have a finite sum, got masses that are too large"
    if name == "b" and not mass.any():
        return "b must not be all 0: some prototype must have a share"
    return None
