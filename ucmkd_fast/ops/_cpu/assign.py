"""Balanced assignments on a CPU: one pass of the kernels over the scores for each iteration, and one that writes.

A pass goes through the rows in chunks where they lie in a file: pages that it has gone over are given back. Nothing of
size n x K is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..._native import _C
from .. import _mapped
from .._addresses import address
from .._assign import Assignment, Potentials, Settings, bad_mass, check_sum
from ..refusals import spelled
from ..sharded import ANOTHER_REFUSED

_ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/core/element.h
#: Of a pass over a file, or over columns that are not contiguous.
CHUNK_BYTES = 32 << 20
_MOST_LOG = 60.0  # of exp(score / temperature), so that sums of many stay in float32


def assignments(p: Assignment) -> Tensor:
    """`Assignment` with its values checked, into ``p.out``.

    Raises:
        ValueError: NaN or +inf, a row of -inf, masses that are none; on every process of a group where one has them.
    """
    problem = bad_mass("a", p.a) or bad_mass("b", p.b)
    if p.over.alone and problem:
        raise ValueError(problem)
    passes, sums = _Passes(p), torch.zeros(p.scores.shape[1] + 1, dtype=torch.float64)
    potentials = _started(p, passes, problem)
    for _ in range(p.n_iter - 1):
        problem = passes.sweep(potentials, sums.zero_()[:-1])
        sums[-1] = problem is not None  # tells the others
        if p.over.add(sums)[-1]:
            raise ValueError(problem or ANOTHER_REFUSED)
        potentials.update(sums[:-1])
    problem = passes.sweep(potentials, None)
    if not potentials.all_active:  # every process knows that; else there is no such problem
        p.over.refuse(problem)
    return p.out


def _started(p: Assignment, passes: _Passes, problem: str | None) -> Potentials:
    """What the first half-step leads to: one sum over processes, or three where the range needs levels."""
    k = p.scores.shape[1]
    raw = torch.zeros(k, dtype=torch.float64)
    wrong, in_range = passes.first(raw)
    problem = problem or wrong
    code = 0
    if not p.over.alone:
        code = Settings(p.temperature, p.n_iter, k, p.dtype, p.a is not None, check_sum(p.b)).code()
    mine = [not in_range, problem is not None, len(p.scores), code, code**2]
    vector = p.over.add(torch.cat([raw, torch.tensor(mine, dtype=torch.float64)]))
    raw, (out_of_range, refused, rows, codes, squares) = vector[:k], vector[k:].tolist()
    if refused:
        raise ValueError(problem or ANOTHER_REFUSED)
    if int(codes) ** 2 != int(squares) * p.over.size():
        raise ValueError(
            "every process of the group must call assign alike (temperature, n_iter, K, b, a given or not, and the "
            f"dtype it is computed in), this one has temperature={p.temperature}, n_iter={p.n_iter}, K={k}"
        )
    if not rows:
        raise ValueError("scores must have at least one row in some process of the group, got none")
    share = torch.ones_like(raw) if p.b is None else p.b.double()
    found = None if out_of_range else Potentials(p, share, torch.zeros_like(raw), raw)
    if found is None or not found.in_range():
        level, sums = passes.columns()
        top = p.over.greatest(level.clone())
        if not bool((top > -math.inf).any()):
            raise ValueError("a must not be all 0: some sample must have a weight")
        moved = torch.where(sums > 0, sums * torch.exp((level - top) * p.rate), 0)
        found = Potentials(p, share, top, p.over.add(moved))
    passes.keep_for(found)
    found.balance()
    return found


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
        self._kept_of: Tensor | None = None  # the level of those that lie there
        self._weight, self._mass = None, 1.0  # of samples, at most 1, and what they are to be multiplied by
        if p.a is not None and n and (most := float(p.a.max())) > 0:
            self._weight, self._mass = (p.a.double() / most).to(p.dtype), most
        elif p.a is not None:
            self._weight = torch.zeros(n, dtype=p.dtype)

    def first(self, sums: Tensor) -> tuple[str | None, bool]:
        """Add exp(score / temperature) over the samples to ``sums`` (K,); what is wrong, and whether they hold.

        They do where what underflows of a sample, below e^-87 of its largest, is nothing beside the sum of a column.
        """
        p, n, k = self._p, *self._p.scores.shape
        top = -math.inf
        one, nothing = torch.ones(k, dtype=p.dtype), torch.zeros(k, dtype=p.dtype)
        for rows, scores in self._rows():
            bad, empty, largest = self._sweep(rows, scores, nothing, one, sums, first=True)
            if bad >= 0:
                row = scores[bad]
                j = int((row.isnan() | (row == torch.inf)).nonzero()[0])
                return (
                    "scores must be finite, or -inf for a pair that is forbidden, got "
                    f"{spelled(row[j].item())} in row {rows.start + bad}, prototype {j}"
                ), False
            if empty >= 0:
                return (
                    f"scores must leave every sample a prototype, got nothing but -inf in row {rows.start + empty}"
                ), False
            top = max(top, largest)
        least = float(sums.min()) if n else 1.0
        in_range = (
            top <= _MOST_LOG and least > 0 and math.log(least) >= math.log(max(n, 1)) + max(top, 0) - 70
        )
        sums.mul_(self._mass)
        return None, in_range or not n

    def columns(self) -> tuple[Tensor, Tensor]:
        """The log-sums of the columns, as levels (K,) and sums (K,) relative to them; level -inf: of no sample."""
        k = self._p.scores.shape[1]
        level, sums = torch.full((k,), -math.inf, dtype=self._p.dtype), torch.zeros(k, dtype=torch.float64)
        for rows, scores in self._rows():
            _C.assign_columns(self._call(scores, rows), level=level.data_ptr(), sum=sums.data_ptr())
            self._drop(rows, self._p.scores)
        return level.double(), sums.mul_(self._mass)

    def keep_for(self, potentials: Potentials) -> None:
        """Keep the exponentials of the `first` pass, where these potentials have its levels, which are 0."""
        if self._keeps and not bool(potentials.level.any()):
            self._kept_of = potentials.level

    def sweep(self, potentials: Potentials, sums: Tensor | None) -> str | None:
        """Add the columns of the assignments to ``sums`` (K,), or write the assignments; or what is wrong."""
        scale = potentials.scale.to(self._p.dtype)
        made = self._kept_of is potentials.level
        for rows, scores in self._rows(read=not made):
            _, lost, _ = self._sweep(rows, scores, potentials.level, scale, sums, made=made)
            if lost >= 0:
                return (
                    f"every sample needs a prototype that has a share and that a sample of weight may use, got row "
                    f"{rows.start + lost} with none"
                )
        if self._keeps:
            self._kept_of = potentials.level
        if sums is not None:
            sums.mul_(self._mass)
        return None

    def _sweep(
        self,
        rows: slice,
        scores: Tensor,
        level: Tensor,
        scale: Tensor,
        sums: Tensor | None,
        *,
        made: bool = False,
        first: bool = False,
    ) -> tuple[int, int, float]:
        """Of a chunk; without sums its assignments are written."""
        out = self._p.out[rows]
        as_it_is = sums is not None or out.stride(1) == 1 or out.shape[1] == 1
        into = out if as_it_is else torch.empty(out.shape, dtype=out.dtype)
        found = _C.assign_sweep(
            self._call(scores, rows), level=level.data_ptr(), scale=scale.data_ptr(),
            kept=into.data_ptr() if self._keeps else 0, kept_stride=into.stride(0), made=made,
            first=first, sum=address(sums), out=into.data_ptr() if sums is None else 0,
            out_type=_ELEMENTS[out.dtype], out_stride=into.stride(0),
        )  # fmt: skip
        if not as_it_is:
            out.copy_(into)
        self._drop(rows, self._p.scores, *([self._p.out] if sums is None else []))
        return found

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
