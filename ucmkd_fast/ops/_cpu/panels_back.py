"""The ways back through the iterations of a cost that is made panel by panel on a CPU: one vector step per sweep.

All leave what the gradient of a panel of rows is made from (`of_rows`, csrc/sinkhorn/panel.h).
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from .._addresses import addresses
from .._held import Held, HeldBack


class Sweeps(Protocol):
    """What is used here of `panels.Sweeps`."""

    a: Tensor  # (N,)
    b: Tensor  # (M,)
    m: int
    reg: float
    held: Held
    f: Tensor  # (N,) of the last iteration
    g: Tensor  # (M,)
    hist_f: list[Tensor]  # f_0, f_1, ...
    hist_g: list[Tensor]  # g_1, ...
    alpha: Tensor  # (N,)
    centred: Tensor  # (M,)
    sums: Tensor  # (M,)
    grad_a: Tensor  # (N,) added to here
    grad_b: Tensor  # (M,) likewise, by shifts

    def adjoint(self, sigma: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """D = P sigma (N,), and -P' (d factor) (M,)."""

    def adjoint_log(self, t: int, share: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """As `adjoint`, from g_t to f_(t-1) and on to g_(t-1), with their softmaxes in the place of the plan."""


class Plain:
    """Back by plain sums over the plan, with scalings u_t, v_t relative to the last: Z = left' right."""

    def __init__(self, sweeps: Sweeps, weight: Tensor, dual: Tensor):
        s = self._sweeps = sweeps
        self._held = HeldBack(s.held, weight, dual, s.alpha)
        self._du, self._rho = _first_of_rows(s, self._held, dual)
        self._dv = weight * s.centred + s.reg * dual * (s.held.columns - s.sums)
        self._ut = (s.a > 0).to(s.a.dtype)
        self._left: list[Tensor] = []
        self._right: list[Tensor] = []
        s.grad_a = self._held.first_mass

    def to(self, t: int) -> tuple[Tensor, Tensor]:
        """As `Sweeps.back`."""
        s, held = self._sweeps, self._held
        of_a, of_b = s.held.inverses(t)
        vt = torch.where(s.b > 0, ((s.hist_g[t - 1] - s.g) / s.reg).exp(), 0)
        if self._left:
            factor = self._ut * self._ut * of_a
            self._du, self._dv = s.adjoint(self._right[-1], factor)
            self._shift(t, vt)
            self._rho = -self._du * factor
        moved = self._dv * vt
        if not s.held.exact:
            moved = held.settle(moved, s.held.at(t).columns)
        change = moved * of_b
        s.grad_a += held.of_masses(self._du * self._ut, None)
        self._ut = torch.where(s.a > 0, ((s.hist_f[t - 1] - s.f) / s.reg).exp(), 0)
        self._left += [self._rho, self._ut]
        self._right += [vt, -change * vt]
        return change, change if s.held.exact else held.of_masses(None, moved)

    def _shift(self, t: int, vt: Tensor) -> None:
        """From iteration t + 1 to t, whose scaling of the columns is ``vt``."""
        s = self._sweeps
        if s.held.exact or (shifted := self._held.shift(*s.held.at(t)[:2])) is None:
            return
        rows, columns, _ = s.held.at(t)
        s.grad_a += shifted.grad_a
        s.grad_b = s.grad_b + shifted.grad_b
        self._du = self._du - torch.where(self._ut > 0, shifted.rows * rows / self._ut, 0)
        of_rows = shifted.rows * s.held.damping[0] * s.held.at(t + 1).columns / self._right[-2]
        self._dv = self._dv + torch.where(s.b > 0, of_rows + shifted.columns * columns / vt, 0)

    @cached_property
    def _product(self) -> tuple[Tensor, Tensor]:
        return torch.stack(self._left), torch.stack(self._right)[:, : self._sweeps.m].contiguous()

    def of_rows(self, rows: slice, weights: Tensor) -> dict[str, int]:
        """What `panel_gradient` takes for Z of these rows."""
        left, right = self._product
        torch.mm(left[:, rows].t(), right, out=weights)
        return {}


class LogDomain:
    """Back with the softmaxes of each iteration in the place of plan times scalings: nothing overflows."""

    def __init__(self, sweeps: Sweeps, weight: Tensor, dual: Tensor):
        s = self._sweeps = sweeps
        self._held = HeldBack(s.held, weight, dual, s.alpha)
        self._fbar = dual * s.a if s.held.exact else self._held.first_rows / s.reg
        self._gbar = weight / s.reg * s.centred + dual * (s.held.columns - s.sums)
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []  # f_(t-1), f_t, its share
        self._columns: list[tuple[Tensor, Tensor]] = []  # g_t, its share
        s.grad_a = self._held.first_mass

    def to(self, t: int) -> tuple[Tensor, Tensor]:
        """As `Sweeps.back`."""
        s, held = self._sweeps, self._held
        of_a, of_b = s.held.inverses(t)
        if self._columns:
            self._fbar, self._gbar = s.adjoint_log(t + 1, self._columns[-1][1], of_a)
            self._shift(t)
        if not s.held.exact:
            self._gbar = held.settle(s.reg * self._gbar, s.held.at(t).columns) / s.reg
        s.grad_a += held.of_masses(s.reg * self._fbar, None)
        self._rows.append((s.hist_f[t - 1], s.hist_f[t], self._fbar * of_a))
        self._columns.append((s.hist_g[t - 1], self._gbar * of_b))
        return s.reg * self._gbar * of_b, held.of_masses(None, s.reg * self._gbar)

    def _shift(self, t: int) -> None:
        """From iteration t + 1 to t."""
        s = self._sweeps
        if s.held.exact or (shifted := self._held.shift(*s.held.at(t)[:2])) is None:
            return
        rows, columns, _ = s.held.at(t)
        s.grad_a += shifted.grad_a
        s.grad_b = s.grad_b + shifted.grad_b
        self._fbar = self._fbar - shifted.rows / s.reg * rows
        # The column sums that iteration t + 1 began with, from those that it left: either may be out of range alone.
        sums = (s.held.at(t + 1).columns.log() + (s.hist_g[t - 1] - s.hist_g[t]) / s.reg).exp()
        of_rows = shifted.rows * s.held.damping[0] * sums
        self._gbar = self._gbar + torch.where(s.b > 0, of_rows + shifted.columns * columns, 0) / s.reg

    @cached_property
    def _histories(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(T, N) and (T, M), T iterations that count."""
        rows, columns = (map(torch.stack, zip(*z, strict=True)) for z in (self._rows, self._columns))
        over_rows = dict(zip(("hist_before", "hist_f", "share_f"), rows, strict=True))
        return over_rows, dict(zip(("hist_g", "share_g"), columns, strict=True))

    def of_rows(self, rows: slice, weights: Tensor) -> dict[str, int]:
        """What `panel_gradient` takes for Z of these rows."""
        over_rows, over_columns = self._histories
        here = addresses(**{name: z[:, rows] for name, z in over_rows.items()}, **over_columns)
        return {"depth": len(self._rows), "stride": len(self._sweeps.a), **here}


class FixedPoint:
    """Back with u = v = 1, again and again: Z = row_sums + column_sums."""

    def __init__(self, sweeps: Sweeps, weight: Tensor, dual: Tensor, shares: Tensor):
        s = self._sweeps = sweeps
        self._held, self._shares = HeldBack(s.held, weight, dual, s.alpha), shares
        self._of_a = s.held.inverses()[0]
        du, self._row_sums = _first_of_rows(s, self._held, dual)
        s.grad_a = self._held.first_mass + self._held.of_masses(du, None)

    def settle(self, change: Tensor) -> Tensor:
        """As `Sweeps.settle`."""
        return self._held.settle(change, self._sweeps.sums)

    def again(self, share: Tensor) -> Tensor:
        """As `Sweeps.fixed_point`."""
        s = self._sweeps
        du, change = s.adjoint(-share, self._of_a)
        rho = -du * self._of_a
        shifted = None if s.held.exact else self._held.shift(s.held.rows, s.held.columns)
        if shifted is not None:
            du = du - shifted.rows * s.held.rows
            rho = torch.where(self._of_a > 0, rho + shifted.rows * s.held.damping[0], 0)
            change = change + shifted.rows * s.held.damping[0] * s.sums + shifted.columns * s.held.columns
            s.grad_a += shifted.grad_a
            s.grad_b = s.grad_b + shifted.grad_b
        s.grad_a += self._held.of_masses(du, None)
        self._row_sums += rho
        return change

    @cached_property
    def _column_sums(self) -> Tensor:
        return -self._shares

    def of_rows(self, rows: slice, weights: Tensor) -> dict[str, int]:
        """What `panel_gradient` takes for Z of these rows."""
        return addresses(row_sum=self._row_sums[rows], col_sum=self._column_sums)


def _first_of_rows(s: Sweeps, held: HeldBack, dual: Tensor) -> tuple[Tensor, Tensor]:
    """The first adjoint du (N,) of log u_T, and rho (N,), which is -du handed on."""
    if s.held.exact:
        return held.first_rows, torch.where(s.a > 0, (-s.reg * dual).to(s.a.dtype), 0)
    return held.first_rows, -held.first_rows * s.held.inverses()[0]
