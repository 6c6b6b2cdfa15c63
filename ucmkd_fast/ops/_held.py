"""Marginals that may give way, over sweeps whose potentials are vectors here: panels, and rows spread over processes.

What csrc/sinkhorn/unbalanced.h and adjoint_parts.h are to kernels that hold a whole problem. Shifts between iterations
stay apart from the potentials, whose sum does not see them: (f - shift, g + shift) is what the sweeps work with, and a
shift is a factor of the masses to them.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .._native import _C
from . import _dual
from ._problem import Options
from .sharded import Alone


class Left(NamedTuple):
    """What an iteration left of the masses, and all shifts until it."""

    rows: Tensor  # (N,)
    columns: Tensor  # (M,)
    shift: Tensor  # () double


class Held:
    """The masses of one problem, and what the half-steps leave of them.

    A device that the host does not wait for gives what has ``ended`` (): nothing changes where it has.
    """

    def __init__(self, options: Options, a: Tensor, b: Tensor, over: Alone):
        """``a`` (N,) of this process's rows, ``b`` (M,) of all columns."""
        self.options, self.a, self.b, self._over = options, a, b, over
        self.exact = options.unbalanced is None
        self.damping = options.damping
        self.shift = torch.zeros((), dtype=torch.float64, device=a.device)
        self.rows, self.columns = a, b  # what the last iteration left
        self._history: list[Left] = []  # of every iteration, of unbalanced ones

    @property
    def masses(self) -> tuple[Tensor, Tensor]:
        """Those that the next half-steps lean towards."""
        if self.exact:
            return self.a, self.b
        rho_a, rho_b = self.options.rho
        factor_a, factor_b = (
            (sign * self.shift / (rho + self.options.reg)).exp().to(self.a.dtype)
            for sign, rho in ((-1, rho_a), (1, rho_b))
        )
        return self.a * factor_a, self.b * factor_b

    def between(self, ended: Tensor | None = None) -> None:
        """The shift between two iterations."""
        if not self.options.shifted:
            return
        kept_a = self._over.add(self.rows.double().sum())
        ratio = kept_a / self.columns.double().sum()
        moves = (ratio > 0) & (ratio < torch.inf)  # anything at all is moved
        step = _both(self.options) * torch.where(moves, ratio, 1).log()
        self.shift = _unless(ended, self.shift + step, self.shift)

    def record(self, f: Tensor, g: Tensor, keep: bool, ended: Tensor | None = None) -> None:
        """Behind an iteration; ``keep`` it for the way back."""
        if self.exact:
            return
        rows = _dual.kept(self.rows_of(f), self.a, self.options, 0)
        columns = _dual.kept(self.columns_of(g), self.b, self.options, 1)
        self.rows, self.columns = _unless(ended, rows, self.rows), _unless(ended, columns, self.columns)
        if keep:
            self._history.append(Left(self.rows, self.columns, self.shift))

    def at(self, t: int) -> Left:
        """Of iteration t; the last one where the host left the loop before."""
        if not self._history:
            return Left(self.rows, self.columns, self.shift)
        return self._history[min(t, len(self._history)) - 1]

    def rows_of(self, f: Tensor) -> Tensor:
        """The potentials of the rows, with the shift."""
        return f if self.exact else f + self.shift.to(f.dtype)

    def columns_of(self, g: Tensor) -> Tensor:
        """The potentials of the columns, with the shift."""
        return g if self.exact else g - self.shift.to(g.dtype)

    def inverses(self, t: int | None = None) -> tuple[Tensor, Tensor]:
        """What adjoints are handed on over: 1 / mass, or damping / what iteration t left (None: the last)."""
        if self.exact:
            return self.inverse_masses
        rows, columns = (self.rows, self.columns) if t is None else self.at(t)[:2]
        least = _C.rules(self.a.dtype == torch.float64).least_mass
        return tuple(  # type: ignore[return-value]
            torch.where(kept > least, damping / kept, 0)
            for kept, damping in zip((rows, columns), self.damping, strict=True)
        )

    @cached_property
    def inverse_masses(self) -> tuple[Tensor, Tensor]:
        """1 / mass."""
        return _inverse(self.a), _inverse(self.b)


def _both(options: Options) -> float:
    rho_a, rho_b = options.rho
    return min(options.rho) if math.inf in options.rho else rho_a * rho_b / (rho_a + rho_b)


def _inverse(mass: Tensor) -> Tensor:
    """1 over masses, 0 where there is none."""
    return torch.where(mass > 0, 1 / mass, 0)


def _unless(ended: Tensor | None, new: Tensor, old: Tensor | float) -> Tensor:
    return new if ended is None else torch.where(ended, old, new)


def _over(part: Tensor, total: Tensor) -> Tensor:
    """Part / total, 0 where nothing was kept at all."""
    return torch.where(total > 0, part / total, 0)


class Shifted(NamedTuple):
    """What the adjoints lose and gain by a shift: reg df_i loses rows kept_i, reg dg_j gains columns kept_j."""

    rows: Tensor  # ()
    columns: Tensor  # ()
    grad_a: Tensor  # (N,)
    grad_b: Tensor  # (M,)


class HeldBack:
    """The first adjoints, and what they sum to on the way back."""

    def __init__(self, held: Held, weight: Tensor, dual: Tensor, alpha: Tensor):
        """Of ``weight`` <P, C> + ``dual`` dual value, with the mean cost ``alpha`` (N,) of each row of P."""
        self._held, options = held, held.options
        self._inverse_a, self._inverse_b = held.inverse_masses
        rows, of_alpha, damping = held.rows, weight * alpha, held.damping[0]
        if held.exact:
            self.first_rows = options.reg * dual * held.a
            self.first_mass = of_alpha
            return
        self.first_rows = options.reg * rows * (dual / damping - of_alpha / options.rho[0]).to(rows.dtype)
        self.first_mass = (of_alpha * rows * self._inverse_a / damping).to(rows.dtype)
        into_columns = damping * held._over.add(self.first_rows.double().sum())
        #: The sum of reg dg: known, as every half-step hands on its damping's part.
        self.charge = options.reg * dual * held.columns.double().sum() - into_columns

    def settle(self, dg: Tensor, kept: Tensor) -> Tensor:
        """Reg dg (M,) without what rounding added to its sum."""
        if self._held.exact:
            return dg
        excess = _over(dg.double().sum() - self.charge, kept.double().sum())
        return dg - excess.to(dg.dtype) * kept

    def shift(self, rows: Tensor, columns: Tensor, ended: Tensor | None = None) -> Shifted | None:
        """From one iteration to the one before, which left ``rows`` and ``columns``; None where nothing is shifted."""
        held, (damping_a, damping_b) = self._held, self._held.damping
        if held.exact:
            return None
        pulled = -damping_b * self.charge
        if not held.options.shifted:
            self.charge = _unless(ended, -damping_a * pulled, self.charge)
            return None
        sums = held._over.add(rows.double().sum()), columns.double().sum()
        both, (rho_a, rho_b) = _both(held.options), held.options.rho
        over_rows, over_columns = (
            _over(pulled * both / rho, total) for rho, total in zip((rho_a, rho_b), sums, strict=True)
        )
        charge = -damping_a * (pulled - over_rows * sums[0]) + over_columns * sums[1]
        self.charge = _unless(ended, charge, self.charge)
        over_rows, over_columns, pulled = (_unless(ended, z, 0) for z in (over_rows, over_columns, pulled))
        each = pulled * both / held.options.reg
        grad_a = _over(each, sums[0] * damping_a).to(rows.dtype) * rows * self._inverse_a
        grad_b = _over(-each, sums[1] * damping_b).to(rows.dtype) * columns * self._inverse_b
        return Shifted(over_rows.to(rows.dtype), over_columns.to(rows.dtype), grad_a, grad_b)

    def of_masses(self, du: Tensor | None, dg: Tensor | None) -> Tensor:
        """What reg times an adjoint gives the masses of its side."""
        if du is not None:
            return du * self._inverse_a
        assert dg is not None
        return dg * self._inverse_b
