"""What steers the host's loop over sweeps by numbers that only the device knows; the host never waits for them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._native import _C
from ._solve import Options
from .panel_sweeps import Alone

_LOOK_EVERY = 8  # sweeps, between two looks at a flag that all processes must answer alike


class Flag:
    """An int32 on the device that ends a loop of the host, which never waits for it."""

    def __init__(self, like: Tensor, over: Alone):
        self.raised = torch.zeros(1, dtype=torch.int32, device=like.device)
        self._over, self._looks = over, 0
        self._copy: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def seen(self) -> bool:
        """Whether it is known here that the flag is up; the same on every process of a group."""
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
    """`Relaxation` of csrc/sinkhorn/relaxation.h on the device, which alone knows the errors."""

    def __init__(self, like: Tensor, options: Options):
        self._tol, self._last = options.tol, options.max_iter
        self.wanted = options.accelerate == "relax"
        self.relaxed, self._pauses, self._given_up = like.new_zeros(3, 1, dtype=torch.int32)
        self._best = like.new_full((), torch.inf)

    def begin(self, t: int) -> None:
        """Iteration t comes."""
        if self.wanted and _C.SinkhornRelaxation.plain_first < t < self._last:
            torch.sub(1, self._pauses, out=self.relaxed)
        else:
            self.relaxed.zero_()

    def half_step(self, g: Tensor, before: Tensor) -> Tensor:
        """G (M,), which goes half as far again where the iteration is over-relaxed."""
        if not self.wanted:
            return g
        return torch.where((self.relaxed > 0) & (g > -torch.inf), g + (g - before) / 2, g)

    def watch(self, error: Tensor) -> None:
        """The marginal error () behind the iteration."""
        if self.wanted:
            self._given_up |= self.relaxed * (error > 100 * self._best)
            self._pauses.copy_(self._given_up | (error <= self._tol))
            self._best.copy_(torch.fmin(self._best, error))
