"""Costs made panel by panel on a CPU: what one sweep over the rows does (`Sweeps` of `_panels`).

A sweep is one native call (csrc/sinkhorn/panel.h): its threads make the cost of the rows that they are at. Vectors over
columns are padded, by columns without mass. Forward, scalings go from one iteration to the next by plain sums, and
columns that plain sums do not reach are done again in the log domain; back it is the one or the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..._native import _C
from .._addresses import address, addresses
from .._classes import Classes, bad_values, by_label
from .._control import Flag, Relaxation
from .._held import Held
from .._pieces import converted
from .._problem import Needs, Options, Problem, Solution
from ..cost import BY_DIFFERENCE, SUMMED
from ..refusals import explained
from ..sharded import Alone, Spread
from . import costs
from .panels_back import FixedPoint, LogDomain, Plain
from .sinkhorn import padded


class Sweeps:
    """As `Sweeps` of `_panels`, which says what the methods do."""

    HOST = True

    def __init__(self, p: Problem, options: Options, spread: Spread, history: bool):
        assert p.a is not None and p.b is not None
        self._features = _features(p, options, spread.over)
        self._classes = None if p.classes is None else Classes(*p.classes)
        self._spread, self._over, self._history = spread, spread.over, history
        x, y = self._features.x, self._features.y
        self.reg, self.m, f64 = options.reg, len(y), x.dtype == torch.float64
        self.a, self.b = p.a, torch.nn.functional.pad(p.b, (0, padded(self.m) - self.m))
        self.held = Held(options, self.a, self.b, spread.over)
        self._rules = _C.rules(f64)
        self.n_iter = torch.zeros(1, dtype=torch.int64)
        self.f = self.g = self.sums = self.alpha = self.centred = self.grad_a = x.new_empty(0)
        self.grad_b = torch.zeros_like(self.b)  # what shifts give it
        self.hist_f: list[Tensor] = []  # f_0, f_1, ...
        self.hist_g: list[Tensor] = []  # g_1, ...
        self._reached = x.new_empty(0)
        self._back: Plain | LogDomain | FixedPoint | None = None  # None: the plan is a constant
        self._packed = self._kept = None
        self._made = False  # whether the cost is kept by now
        if options.metric not in SUMMED:
            self._packed = x.new_empty(_C.panels_packed_size(*y.shape))
            _C.panels_pack(f64=f64, m=self.m, d=y.shape[1], y=y.data_ptr(), packed=self._packed.data_ptr())
        if spread.keep:
            self._kept = x.new_empty(len(x), _C.panels_columns(self.m))

    def _panels(self, rows: slice, grad_class: Tensor | None = None) -> _C.Panels:
        classes = None if self._classes is None else self._classes._replace(grad=grad_class).rows(rows)
        kept = None if self._kept is None else self._kept[rows]
        return _C.Panels(
            features=self._features.native(rows, classes), reg=self.reg, room=max(self._spread.rows, 1),
            packed=address(self._packed), kept=address(kept), made=self._made,
        )  # fmt: skip

    @property
    def _last(self) -> dict[str, int]:
        """Where the last iteration lies."""
        return addresses(f=self.f, g=self.g)

    def _every_row(self) -> _C.Panels:
        panels = self._panels(costs.ALL)
        self._made = self._kept is not None
        return panels

    # Forward

    def refuse(self, flags: Tensor, sums: tuple[Tensor, Tensor]) -> None:
        """On every process where one has reason to."""
        self._over.refuse(self._about_masses(int(flags), sums))
        if self._classes is not None:
            w, labels, *_ = self._classes
            self._over.refuse(bad_values(w, self._over.mine(labels)))

    def _about_masses(self, flags: int, sums: tuple[Tensor, Tensor]) -> str | None:
        if flags & _C.FLAGS["bad_mass"]:
            return explained(_C.REFUSALS["bad_mass"], a=self.a, b=self.b)
        if flags & _C.FLAGS["no_mass"]:
            return _C.REFUSALS["no_mass"]
        head = _C.REFUSALS["sums"].rpartition(", got ")[0]
        return f"{head}, got {float(sums[0]):.6g} and {float(sums[1]):.6g}" if flags else None

    def flag(self) -> Flag:
        return Flag(self.a)

    def start(self, f: Tensor) -> None:
        self.f = f
        self.g = self._columns()
        self.hist_f, self.hist_g = [f], []

    def iterate(self, t: int, relaxation: Relaxation, stop: Flag | None) -> None:
        relaxed = bool(relaxation.relaxed)
        if t > 1:
            self.held.between()
            self.g = self._next_columns(relaxed)
        self.f, sums, mass = self.f.clone(), torch.zeros_like(self.b), self.held.masses[0]
        vectors = addresses(mass=mass, g=self.g, f=self.f, sums=sums)
        _C.panel_iterate(self._every_row(), relaxed=relaxed, damping=self.held.damping[0], **vectors)
        self._reached = self._over.add(sums)
        self.held.record(self.f, self.g, self._history)
        if t == 1:
            self._refuse_forbidden()
        if self._history:
            self.hist_f.append(self.f)
            self.hist_g.append(self.g)

    def column_sums(self) -> Tensor:
        return self._reached

    def plan(self) -> Tensor:
        self.alpha, row_value = torch.empty_like(self.a), torch.empty_like(self.a)
        self.centred = torch.zeros_like(self.b)
        sums = addresses(alpha=self.alpha, row_value=row_value, first=self.centred)
        _C.panel_plan(self._every_row(), damping=self.held.damping[0], **self._last, **sums)
        self._over.add(self.centred)
        return row_value

    def outcome(self, solution: Solution) -> Solution:
        return solution

    def _columns(self) -> Tensor:
        """G (M,) = reg (log b - damping LSE_i((f_i - C_ij) / reg)), in the log domain."""
        moved = self.reg * self.held.masses[1].log() + self.held.damping[1] * self.free_columns()
        return torch.where(self.b > 0, moved, -torch.inf)

    def free_columns(self) -> Tensor:
        top, total = torch.empty_like(self.b), torch.empty_like(self.b)
        good = _C.panel_columns(self._every_row(), **addresses(f=self.f, top=top, total=total))
        self._over.refuse(None if good else _C.REFUSALS["overflow"])
        highest = self._over.greatest(top.clone())
        total *= torch.where(top > -torch.inf, ((top - highest) / self.reg).exp(), 0)
        self._over.add(total)
        return -self.reg * total.log() - highest

    def free_rows(self) -> Tensor:
        f, ones, sums = torch.where(self.a > 0, self.f, 0), torch.ones_like(self.a), torch.zeros_like(self.b)
        vectors = addresses(mass=ones, g=self.g, f=f, sums=sums)
        _C.panel_iterate(self._every_row(), relaxed=False, damping=1.0, **vectors)
        return f

    def _next_columns(self, relaxed: bool) -> Tensor:
        """G (M,) of f, from the column sums of the plan of f and the last g; relaxed, half as far again."""
        held, safe = self.held, math.exp(self._rules.safe_log)
        ratio = torch.where(self.b > 0, held.columns / self._reached, 1)
        if not ((ratio >= 1 / safe) & (ratio <= safe)).all():
            return self._columns()
        if not held.exact:
            if (self._reached[self.b > 0] < self._rules.least_mass).any():  # some of it underflowed
                return self._columns()
            moved = held.damping[1] * (self.g - self.reg * self._reached.log())
            return torch.where(self.b > 0, moved + self.reg * held.masses[1].log(), -torch.inf)
        step = self.reg * ratio.log()
        return torch.where(self.b > 0, self.g + (1.5 * step if relaxed else step), -torch.inf)

    def _refuse_forbidden(self) -> None:
        """A class may be forbidden; a row or column all of whose pairs are has nowhere to send its mass."""
        if self._classes is None:
            return
        stuck = ((self.a > 0) & ~self.f.isfinite()).any() | ((self.b > 0) & ~self.g.isfinite()).any()
        self._over.refuse(_C.REFUSALS["forbidden"] if stuck else None)

    # Backward

    def begin_back(self, weight: Tensor, dual: Tensor, first: Tensor) -> None:
        self._back = (Plain if self._in_range() else LogDomain)(self, weight, dual)

    def _in_range(self) -> bool:
        """Whether every scaling, over the last one, is inside the range of plain sums."""
        far = [
            torch.where(mass > 0, (one - last).abs(), 0).max() if len(mass) else mass.new_zeros(())
            for history, last, mass in ((self.hist_f, self.f, self.a), (self.hist_g, self.g, self.b))
            for one in history
        ]
        return bool(self._over.greatest(torch.stack(far).max()) <= self._rules.range_limit * self.reg)

    def back(self, t: int, runs: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self._back, Plain | LogDomain)
        return self._back.to(t)

    def begin_fixed_point(self, weight: Tensor, dual: Tensor, shares: Tensor) -> Tensor:
        self._back = FixedPoint(self, weight, dual, shares)
        return self.sums

    def settle(self, change: Tensor) -> Tensor:
        assert isinstance(self._back, FixedPoint)
        return self._back.settle(change)

    def fixed_point(self, share: Tensor, stop: Flag) -> Tensor:
        assert isinstance(self._back, FixedPoint)
        return self._back.again(share)

    def adjoint(self, sigma: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """D = P sigma (N,), and -P' (d factor) (M,)."""
        d, sums = torch.empty_like(self.a), torch.zeros_like(sigma)
        _C.panel_adjoint(
            self._every_row(), **self._last, **addresses(sigma=sigma, factor=factor, d=d, sums=sums)
        )
        return d, self._over.add(sums)

    def adjoint_log(self, t: int, share: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """As `adjoint`, from g_t to f_(t-1) and on to g_(t-1), with their softmaxes in the place of the plan."""
        fbar, sums = torch.empty_like(self.a), torch.zeros_like(self.b)
        at = addresses(f=self.hist_f[t - 1], g=self.hist_g[t - 1], g_before=self.hist_g[t - 2])
        vectors = addresses(share=share, inverse=inverse, fbar=fbar, sums=sums)
        _C.panel_adjoint_log(self._every_row(), **at, **vectors)
        return fbar, self._over.add(sums)

    # The gradient

    def begin_gradient(self, weight: Tensor, needs: Needs) -> _Into:
        x, y, classes = self._features.x, self._features.y, self._classes
        dx, dy = costs.begin_gradients(self._features, (needs.x, needs.y))
        weights = x.new_empty(min(max(self._spread.rows, 1), max(len(x), 1)), len(y))
        return _Into(
            float(weight), dx, dy, torch.empty_like(classes.cost) if classes and needs.class_cost else None,
            torch.empty_like(self.a), torch.zeros_like(self.b), weights,
            torch.empty_like(weights) if self._features.metric in BY_DIFFERENCE else None,
        )  # fmt: skip

    def add_gradient(self, into: _Into, rows: slice) -> None:
        weights = into.weights[: rows.stop - rows.start]
        distance = None if into.distance is None else into.distance[: len(weights)]
        alpha, z = None, {}
        if self._back is not None:
            alpha, z = self.alpha[rows], self._back.of_rows(rows, weights)
        _C.panel_gradient(
            self._panels(rows, into.class_cost), weight=into.weight, **z,
            **addresses(f=self.f[rows], g=self.g, alpha=alpha, out=weights, distance=distance,
                        row_sums=into.row_sums[rows], column_sums=into.column_sums),
        )  # fmt: skip
        costs.add_products(self._features, rows, distance, weights, (into.x, into.y))

    def end_gradient(self, into: _Into) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        costs.finish_gradients(self._features, into.row_sums, into.column_sums, (into.x, into.y))
        self._back = None
        return into.x, into.y, into.class_cost


class _Into(NamedTuple):
    """Where the gradient goes."""

    weight: float  # of <P, C>
    x: Tensor | None  # (N, D)
    y: Tensor | None  # (M, D)
    class_cost: Tensor | None  # (N, K)
    row_sums: Tensor  # (N,) of the weights
    column_sums: Tensor  # (M,)
    weights: Tensor  # (R, M) of a panel
    distance: Tensor | None  # (R, M)


def _features(p: Problem, options: Options, over: Alone) -> costs.Features:
    """Refused on all processes where one has bad ones."""
    refused = None
    x, y = (converted(z, options.dtype) for z in p.features)
    try:
        features = costs.scaled(x, y, options.known_metric)
    except ValueError as error:
        refused = str(error)
    over.refuse(refused)
    return features


def cost_panels(p: Problem, options: Options, spread: Spread) -> Iterator[Tensor]:
    """The costs (R, M) of a panel at a time; the first looks at the input of every process."""
    _features(p, options, spread.over)
    if p.classes is not None:
        spread.over.refuse(bad_values(p.classes[0], spread.over.mine(p.classes[1])))
    x, y = p.features
    for rows in spread.panels(len(x)):
        matrix = costs.matrix(x[rows], y, options.known_metric, options.dtype)
        yield matrix if p.classes is None else matrix + by_label(p.classes[0][rows], p.classes[1])
