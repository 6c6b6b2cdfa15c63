"""The ways back through the iterations of a cost that is made panel by panel on a GPU: one sweep per step.

The adjoints df, dg of every half-step are kept, times the damping of unbalanced ones (csrc/sinkhorn/unbalanced.cuh):
the gradient of a panel is made from them (csrc/sinkhorn/gradient.cu). A step outside of the iterations that ran, or
behind the end of the loop, is launched all the same and leaves everything as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .._control import Flag
from .._held import Held, HeldBack, Left
from .._problem import Options
from . import _device as device


class Sweeps(Protocol):
    """What is used here of `panels.Sweeps`."""

    a: Tensor  # (N,)
    b: Tensor  # (M,)
    options: Options
    held: Held
    n_iter: Tensor  # (1,)
    alpha: Tensor  # (N,)
    centred: Tensor  # (M,)
    sums: Tensor  # (M,)
    grad_a: Tensor  # (N,) added to by the kernels, and here
    grad_b: Tensor  # (M,) by shifts

    def step_back(self, t: int, left: Left, lost: Tensor) -> Tensor:
        """From dg_t to df_(t-1), which loses ``lost`` () times what rows kept, and on to the columns (M,)."""

    def fixed_point_step(self, share: Tensor, stop: Flag, lost: Tensor) -> Tensor:
        """From dg over the masses (M,) to df, which is summed, and on to the columns (M,)."""


class _Back:
    """The adjoints, and what a shift takes from the rows and gives to the columns."""

    df: Tensor  # (T, N), or (1, N) their sum
    dg: Tensor  # (T, M), or (1, M) what it is made from

    def __init__(self, sweeps: Sweeps, weight: Tensor, dual: Tensor):
        s = self._sweeps = sweeps
        self._reg, self._damping = s.options.reg, s.held.damping
        self._held = HeldBack(s.held, weight, dual, s.alpha)
        self._nothing = torch.zeros((), dtype=s.a.dtype, device=s.a.device)
        first = self._damping[0] / self._reg * self._held.first_rows
        self._first = torch.where(s.held.inverses()[0] > 0, first, 0)
        s.grad_a = self._held.first_mass + self._held.of_masses(self._held.first_rows, None)

    def _over_shift(self, left: Left, ended: Tensor | None, sweep: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``sweep`` leaves of what rows lose (), and what columns gain: (M,), by the shift behind ``left``."""
        s = self._sweeps
        shifted = self._held.shift(left.rows, left.columns, ended)
        if shifted is None:
            return sweep(self._nothing)
        s.grad_a += shifted.grad_a
        s.grad_b = s.grad_b + shifted.grad_b
        return sweep(shifted.rows / self._reg) + shifted.columns / self._reg * left.columns


class Unrolled(_Back):
    """Through the iterations that ran, ``first`` (1,) of which is the first that counts."""

    def __init__(self, sweeps: Sweeps, weight: Tensor, dual: Tensor, first: Tensor):
        super().__init__(sweeps, weight, dual)
        s, steps = sweeps, sweeps.options.max_iter
        self.df, self.dg = device.empty(s.a, steps, len(s.a)), device.empty(s.a, steps, len(s.b))
        self.df.index_copy_(0, s.n_iter - 1, self._first[None])
        self.first: Tensor | None = first
        self._last = weight / self._reg * s.centred + dual * (s.held.columns - s.sums)
        self._gathered = torch.zeros_like(s.b)

    def to(self, t: int, runs: Tensor) -> tuple[Tensor, Tensor]:
        """As `Sweeps.back` of `_panels`."""
        s, left = self._sweeps, self._sweeps.held.at(t)
        if t < s.options.max_iter:
            ended = None if s.held.exact else ~(runs & (t < s.n_iter))[0]
            self._gathered = self._over_shift(left, ended, lambda lost: s.step_back(t + 1, left, lost))
        over_kept = s.held.inverses(t)[1]
        mine = torch.where(s.n_iter == t, self._last, self._gathered)
        if not s.held.exact:
            mine = self._held.settle(self._reg * mine, left.columns) / self._reg
        mine = torch.where(runs & (over_kept > 0), mine, 0)
        self.dg[t - 1] = mine if s.held.exact else self._damping[1] * mine
        change = self._reg * (mine * over_kept)
        return change, change if s.held.exact else self._held.of_masses(None, self._reg * mine)


class FixedPoint(_Back):
    """At the fixed point again and again: df is summed by the kernels, the loop sums what dg is made from."""

    first: Tensor | None = None

    def __init__(self, sweeps: Sweeps, weight: Tensor, dual: Tensor, shares: Tensor):
        super().__init__(sweeps, weight, dual)
        self.df, self._shares = self._first[None], shares
        self._left = sweeps.held.at(sweeps.options.max_iter)

    @property
    def dg(self) -> Tensor:  # type: ignore[override]
        """(1, M)."""
        return (self._shares * self._left.columns / self._reg)[None]

    def settle(self, change: Tensor) -> Tensor:
        """As `Sweeps.settle` of `_panels`."""
        return self._held.settle(change, self._sweeps.sums)

    def again(self, share: Tensor, stop: Flag) -> Tensor:
        """As `Sweeps.fixed_point` of `_panels`."""
        s, share = self._sweeps, share / self._reg
        ended = None if s.held.exact else stop.raised[0] > 0
        return self._reg * self._over_shift(
            self._left, ended, lambda lost: s.fixed_point_step(share, stop, lost)
        )
