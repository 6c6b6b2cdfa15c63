"""Early stopping and over-relaxation of loops over sweeps, decided where the numbers are.

The loop runs on the host, which reads a CPU's numbers at once and never waits for those of a GPU (`_cuda.panels`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._native import _C
from ._problem import Options


class Flag:
    """An int32 where the numbers are, that ends a loop of the host; to read it waits for nothing."""

    def __init__(self, like: Tensor):
        self.raised = torch.zeros(1, dtype=torch.int32, device=like.device)

    def seen(self) -> bool:
        """Whether it is known here that the flag is up; the same on every process of a group."""
        return bool(self.raised)


class Relaxation:
    """`Relaxation` of csrc/sinkhorn/relaxation.h where the errors are."""

    def __init__(self, like: Tensor, options: Options):
        self._tol, self._last = options.tol, options.max_iter
        self.wanted = options.accelerate == "relax"
        self.relaxed, self._pauses, self._given_up = torch.zeros(3, 1, dtype=torch.int32, device=like.device)
        self._best = torch.full((), torch.inf, dtype=like.dtype, device=like.device)

    def begin(self, t: int) -> None:
        """Iteration t comes."""
        if self.wanted and _C.Relaxation.plain_first < t < self._last:
            torch.sub(1, self._pauses, out=self.relaxed)
        else:
            self.relaxed.zero_()

    def watch(self, error: Tensor) -> None:
        """The marginal error () behind the iteration."""
        if self.wanted:
            self._given_up |= self.relaxed * (error > 100 * self._best)
            self._pauses.copy_(self._given_up | (error <= self._tol))
            self._best.copy_(torch.fmin(self._best, error))
