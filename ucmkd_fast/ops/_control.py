"""Early stopping and over-relaxation of loops over sweeps, decided where the numbers are.

The loop runs on the host. Of a CPU it reads the numbers at once; for a GPU it never waits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._native import _C
from ._problem import Options
from .sharded import Alone

_LOOK_EVERY = 8  # sweeps, between two looks at a flag that all processes must answer alike


class Flag:
    """An int32 where the numbers are, that ends a loop of the host."""

    def __init__(self, like: Tensor, over: Alone, host: bool):
        """``host``: to read it waits for nothing, and all processes find the same numbers by themselves."""
        self.raised = torch.zeros(1, dtype=torch.int32, device=like.device)
        self._over, self._host, self._looks = over, host, 0
        self._copy: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def seen(self) -> bool:
        """Whether it is known here that the flag is up; the same on every process of a group."""
        if self._host:
            return bool(self.raised)
        self._looks += 1
        if not self._over.alone:  # a process that stops alone would leave the others waiting
            return self._looks % _LOOK_EVERY == 0 and bool(self.raised)
        if not self.raised.is_cuda:
            return bool(self.raised)
        if torch.cuda.is_current_stream_capturing():
            return False
        if self._event is None:
            if self._copy is None:
                self._copy = torch.zeros(1, dtype=torch.int32, pin_memory=True)
            self._copy.copy_(self.raised, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(self.raised.device))
        elif self._event.query():
            self._event = None
            return bool(self._copy)
        return False


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
