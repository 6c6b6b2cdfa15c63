"""Sinkhorn on features without the cost matrix: a few rows of it are made and dropped at a time, in every sweep.

    memory: the histories, O(T (N + M)), y once more, and two panels (R, M)

One sweep is one native call (csrc/sinkhorn/panel.h): its threads make the cost of the rows that they are at. What a
sweep leaves are sums over the columns, (M,): so the same code serves rows that are spread over processes, with one
sum over the processes behind each sweep (`sharded.Shards`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import _C, METRIC_CODES
from . import _not_converged, cost
from ._loss import Classes
from ._solve import Options, _address, _padded

_RANGE = {torch.float32: 30.0, torch.float64: 300.0}  # largest |log u_t|, |log v_t| for plain sums
_SAFE = {torch.float32: 20.0, torch.float64: 200.0}  # log of how far a column sum may be from its mass


class Alone:
    """All rows are here."""

    alone = True

    def total_rows(self, rows: int) -> int:
        """Rows of x in all processes; ``rows`` are here."""
        return rows

    def total_columns(self, columns: int) -> int:
        """Rows of y in all processes; ``columns`` are here."""
        return columns

    def add(self, vector: Tensor) -> Tensor:
        """The sum over processes, in place."""
        return vector

    def greatest(self, vector: Tensor) -> Tensor:
        """The maximum over processes, in place."""
        return vector

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of y of all processes."""
        return rows

    def mine(self, rows: Tensor) -> Tensor:
        """This process's share of what `gather` returned."""
        return rows

    def wants_y(self, needed: bool) -> bool:
        """Whether any process needs the gradient of y; this one where ``needed``."""
        return needed

    def refuse(self, problem: str | None) -> None:
        """Raise ValueError on every process where one has a problem."""
        if problem:
            raise ValueError(problem)


class Panels:
    """The cost of x (N, D) against y (M, D): made in every sweep, at most R rows at a time; or made once and kept."""

    def __init__(
        self, features: cost.Features, reg: float, rows: int, keep: bool, classes: Classes | None = None
    ):
        self.features, self.reg, self.rows, self.classes = features, reg, max(rows, 1), classes
        x, y = features.x, features.y
        self.n, self.m = len(x), len(y)
        self._packed, self._kept, self._made = None, None, False
        if features.metric != "l1":
            self._packed = x.new_empty(_C.panels_packed_size(*y.shape))
            _C.panels_pack(x.dtype == torch.float64, *y.shape, y.data_ptr(), self._packed.data_ptr())
        if keep:
            self._kept = x.new_empty(self.n, _C.panels_columns(self.m))

    def all(self) -> Any:
        """Every row, for one sweep."""
        made, self._made = self._made, self._kept is not None
        return self._native(slice(0, self.n), made, None)

    def parts(self, grad_classes: Tensor | None = None) -> Iterator[tuple[slice, Any]]:
        """R rows at a time, after a sweep over all; the gradient of W (N, K) is written where it is asked for."""
        for start in range(0, self.n, self.rows):
            rows = slice(start, min(start + self.rows, self.n))
            yield rows, self._native(rows, self._made, grad_classes)

    def _native(self, rows: slice, made: bool, grad_classes: Tensor | None) -> Any:
        x, y, scale, metric, given_x, given_y = self.features
        kept = None if self._kept is None else self._kept[rows]
        panels = _C.SinkhornPanels(
            x.dtype == torch.float64, self.reg, self.rows, METRIC_CODES[metric], rows.stop - rows.start, *y.shape,
            *map(_address, (x[rows], y, scale[rows], scale[self.n :], self._packed, kept)), made,
        )  # fmt: skip
        if given_x is not x:
            panels.set_given(given_x[rows].data_ptr(), given_y.data_ptr())
        if self.classes is not None:
            grad = None if grad_classes is None else grad_classes[rows]
            w, labels = self.classes[:2]
            panels.set_classes(w.shape[1], w[rows].data_ptr(), labels.data_ptr(), 0, _address(grad))
        return panels


class Solved(NamedTuple):
    """What the iterations leave; vectors over columns are padded (csrc/sinkhorn/panel.h)."""

    value: Tensor  # () <P, C> of all rows
    dual: Tensor  # ()
    f: Tensor  # (N,)
    g: Tensor  # (padded M,)
    marginal_error: Tensor  # ()
    n_iter: int
    sums: Tensor  # (padded M,) column sums of the plan
    alpha: Tensor  # (N,)
    first: Tensor  # (padded M,) sum_i P_ij (C_ij - alpha_i)
    hist_f: Tensor  # (T + 1, N), or empty
    hist_g: Tensor  # (T, padded M)


class Vectors:
    """Masses and options of a problem, and what is made from vectors alone, on any device."""

    def __init__(self, a: Tensor, b: Tensor, options: Options, over: Alone):
        self.a, self.b, self.options, self.over = a, b, options, over
        self.reg = options.reg

    def first_potential(self, init_f: Tensor | None) -> Tensor:
        """F (N,) before the first iteration."""
        if init_f is None:
            init_f = torch.full_like(self.a, -self.reg * math.log(self.over.total_rows(len(self.a))))
        return torch.where(self.a > 0, init_f, -torch.inf)

    def of_values(self, f: Tensor, g: Tensor, row_value: Tensor) -> tuple[Tensor, Tensor]:
        """<P, C>, and the dual value of <P, C> + reg KL(P | a b'), in double."""
        wide = [z.double() for z in (self.a, self.b, f, g)]
        a, b, f, g = wide
        free_f, free_g = (torch.where(m > 0, z - self.reg * m.log(), 0) for m, z in ((a, f), (b, g)))
        here = self.over.add(torch.stack([row_value.double().sum(), (free_f * a).sum(), a.sum()]))
        value, dual_f, sum_a = here
        dual = dual_f + (free_g * b).sum() - self.reg * (sum_a - sum_a * b.sum())
        return value.to(self.a.dtype), dual.to(self.a.dtype)

    def direct(self, s: Any, dual: float | Tensor) -> tuple[Tensor, Tensor]:
        """What the dual value gives the masses at constant potentials."""
        sum_a = self.over.add(self.a.double().sum()).to(self.a.dtype)
        sum_b = self.b.double().sum().to(self.a.dtype)
        reg = self.reg
        on_a = torch.where(self.a > 0, s.f - reg * self.a.log() - 2 * reg + reg * sum_b, 0)
        on_b = torch.where(self.b > 0, s.g - reg * self.b.log() - reg + reg * sum_a, 0)
        return dual * on_a, dual * on_b

    def envelope_masses(self, s: Any, dual: float | Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the dual value where the plan is a constant: the potentials without the masses."""
        sides = zip((self.a, self.b), (s.f, s.g), self.without_mass(s), strict=True)
        free = (torch.where(m > 0, z - self.reg * m.log(), z_0) for m, z, z_0 in sides)
        return tuple(dual * z for z in free)  # type: ignore[return-value]

    def without_mass(self, s: Any) -> tuple[Tensor, Tensor]:
        """Potentials (N,), (M,) of a sample without mass, from those of the others: each side's by one sweep."""
        raise NotImplementedError


class Problem(Vectors):
    """This process's rows against all columns, with the sweeps over them."""

    def __init__(
        self, features: cost.Features, a: Tensor, b: Tensor, panels: Panels, options: Options, over: Alone
    ):
        self.features, self.panels, self.options, self.over = features, panels, options, over
        self.a, self.b = a, torch.nn.functional.pad(b, (0, _padded(len(b)) - len(b)))
        self.reg = options.reg

    # Sweeps

    def columns(self, f: Tensor) -> Tensor:
        """G (padded M,) = reg (log b - LSE_i((f_i - C_ij) / reg)), in the log domain."""
        return torch.where(self.b > 0, self.reg * self.b.log() + self.free_columns(f), -torch.inf)

    def free_columns(self, f: Tensor) -> Tensor:
        """The same without the masses b, of every column."""
        top, total = torch.empty_like(self.b), torch.empty_like(self.b)
        good = _C.panel_columns(self.panels.all(), *map(_address, (f, top, total)))
        self.over.refuse(
            None if good else "the distances between x and y must stay in range, got one that overflows"
        )
        highest = self.over.greatest(top.clone())
        total *= torch.where(top > -torch.inf, ((top - highest) / self.reg).exp(), 0)
        self.over.add(total)
        return -self.reg * total.log() - highest

    def without_mass(self, s: Solved) -> tuple[Tensor, Tensor]:
        """As of `Vectors`; where all have mass, nothing is made."""
        f, g = torch.zeros_like(self.a), torch.zeros_like(self.b)
        if (self.a == 0).any():
            f, ones, sums = torch.where(self.a > 0, s.f, 0), torch.ones_like(f), torch.zeros_like(g)
            _C.panel_iterate(self.panels.all(), False, *map(_address, (ones, s.g, f, sums)))
        if (self.b == 0)[: len(self.features.y)].any():
            g = self.free_columns(s.f)
        return f, g

    def iterate(self, f: Tensor, g: Tensor, relaxed: bool) -> tuple[Tensor, Tensor]:
        """F (N,) of g, and the column sums of the plan of both."""
        f, sums = f.clone(), torch.zeros_like(g)
        _C.panel_iterate(self.panels.all(), relaxed, *map(_address, (self.a, g, f, sums)))
        return f, self.over.add(sums)

    def adjoint(self, s: Solved, sigma: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """D = P sigma (N,), and -P' (d factor) (padded M,)."""
        d, sums = torch.empty_like(self.a), torch.zeros_like(sigma)
        _C.panel_adjoint(self.panels.all(), *map(_address, (s.f, s.g, sigma, factor, d, sums)))
        return d, self.over.add(sums)

    def adjoint_log(self, f, g, share, g_before, inverse) -> tuple[Tensor, Tensor]:
        """As `adjoint`, with the softmaxes of (f, g) and (f, g_before) in the place of the plan."""
        fbar, sums = torch.empty_like(self.a), torch.zeros_like(g)
        vectors = (f, g, share, g_before, inverse, fbar, sums)
        _C.panel_adjoint_log(self.panels.all(), *map(_address, vectors))
        return fbar, self.over.add(sums)

    # Forward

    def solve(self, init_f: Tensor | None, history: bool) -> Solved:
        """The iterations of `sinkhorn`, and the first sweep back."""
        a, b, options = self.a, self.b, self.options
        f = self.first_potential(init_f)
        g = sums = self.columns(f)
        hist_f, hist_g = [f], []
        relaxation = _C.SinkhornRelaxation(options.accelerate == "relax", options.tol, options.max_iter)
        for n_iter in range(1, options.max_iter + 1):
            relaxed = relaxation.begin(n_iter)
            if n_iter > 1:
                g = self._next_columns(f, g, sums, relaxed)
            f, sums = self.iterate(f, g, relaxed)
            if n_iter == 1:
                self._refuse_forbidden(f, g)
            if history:
                hist_f.append(f)
                hist_g.append(g)
            error = (sums - b).abs().sum()
            if n_iter == options.max_iter or (0 < options.tol >= error and not relaxed):
                break
            relaxation.watch(float(error))
        alpha, row_value, first = torch.empty_like(a), torch.empty_like(a), torch.zeros_like(g)
        _C.panel_plan(self.panels.all(), *map(_address, (f, g, alpha, row_value, first)))
        self.over.add(first)
        value, dual = self.of_values(f, g, row_value)
        empty = a.new_empty(0)
        stacks = (torch.stack(hist_f), torch.stack(hist_g)) if history else (empty, empty)
        return Solved(value, dual, f, g, error, n_iter, sums, alpha, first, *stacks)

    def _next_columns(self, f: Tensor, g: Tensor, sums: Tensor, relaxed: bool) -> Tensor:
        """G (padded M,) of f, from the column sums of the plan of f and g; relaxed, half as far again."""
        safe = math.exp(_SAFE[g.dtype])
        ratio = torch.where(self.b > 0, self.b / sums, 1)
        if not ((ratio >= 1 / safe) & (ratio <= safe)).all():
            return self.columns(f)
        step = self.reg * ratio.log()
        return torch.where(self.b > 0, g + (1.5 * step if relaxed else step), -torch.inf)

    def _refuse_forbidden(self, f: Tensor, g: Tensor) -> None:
        """A class may be forbidden; a row or column all of whose pairs are has nowhere to send its mass."""
        if self.panels.classes is None:
            return
        stuck = ((self.a > 0) & ~f.isfinite()).any() | ((self.b > 0) & ~g.isfinite()).any()
        self.over.refuse(
            "every row and column with mass needs a pair of finite cost with mass, got one that has none"
            if stuck
            else None
        )

    # Backward

    def gradient(
        self, s: Solved, up_value: Tensor | None, up_dual: Tensor | None, need: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of ``up_value`` <P, C> + ``up_dual`` dual value: of x, y, W (where needed), a (N,), b (M,)."""
        weight, dual = (0.0 if up is None else float(up) for up in (up_value, up_dual))
        m = len(self.features.y)
        if self.options.grad == "envelope":
            grad_a, grad_b = self.envelope_masses(s, dual)
            return *self._features(s, weight + dual, need, alpha=False), grad_a, grad_b[:m]
        if self.options.grad == "implicit":
            parts = self._implicit(s, weight, dual)
        elif self._in_range(s):
            parts = self._plain(s, weight, dual)
        else:
            parts = self._log_domain(s, weight, dual)
        grad_a, grad_b, z = parts
        direct_a, direct_b = self.direct(s, dual)
        return *self._features(s, weight, need, **z), grad_a + direct_a, (grad_b + direct_b)[:m]

    def _inverse_masses(self) -> tuple[Tensor, Tensor]:
        return tuple(torch.where(m > 0, 1 / m, 0) for m in (self.a, self.b))  # type: ignore[return-value]

    def _least(self, weight: float, dual: float) -> float:
        """What remains may be this large, see ``least_that_matters`` in csrc/sinkhorn/adjoint.cpp."""
        rounding = torch.finfo(self.a.dtype).eps / 8
        return max(self.options.tol * 0.1, rounding) * self.reg * (abs(weight) + 2 * abs(dual))

    def _in_range(self, s: Solved) -> bool:
        limit = _RANGE[self.a.dtype] * self.reg
        far = [
            torch.where(mass > 0, (one - last).abs(), 0).max() if len(mass) else mass.new_zeros(())
            for history, last, mass in ((s.hist_f, s.f, self.a), (s.hist_g, s.g, self.b))
            for one in history
        ]
        return bool(self.over.greatest(torch.stack(far).max()) <= limit)

    def _first(self, s: Solved, weight: float, dual: float) -> tuple[Tensor, Tensor, Tensor]:
        """Du (N,), rho (N,), dv (padded M,) of the last iteration: the dual value pulls f by a and g by b."""
        du = self.reg * dual * self.a
        rho = torch.where(self.a > 0, self.a.new_full((), -self.reg * dual), 0)
        return du, rho, weight * s.first + self.reg * dual * (self.b - s.sums)

    def _plain(self, s: Solved, weight: float, dual: float):
        """Plain sums; Z = left' right."""
        ia, ib = self._inverse_masses()
        du, rho, dv = self._first(s, weight, dual)
        least = self._least(weight, dual)
        grad_a, grad_b, ut = weight * s.alpha, torch.zeros_like(dv), (self.a > 0).to(du.dtype)
        left, right = [], []
        for t in range(s.n_iter, 0, -1):
            vt = torch.where(self.b > 0, ((s.hist_g[t - 1] - s.g) / self.reg).exp(), 0)
            change = dv * vt * ib
            grad_b, grad_a, sigma = grad_b + change, grad_a + du * ut * ia, -change * vt
            ut = torch.where(self.a > 0, ((s.hist_f[t - 1] - s.f) / self.reg).exp(), 0)
            left += [rho, ut]
            right += [vt, sigma]
            if t == 1 or 2 * t * float(change.abs().max()) <= least:
                break
            factor = ut * ut * ia
            du, dv = self.adjoint(s, sigma, factor)
            rho = -du * factor
        m = len(self.features.y)
        return grad_a, grad_b, {"product": (torch.stack(left), torch.stack(right)[:, :m].contiguous())}

    def _implicit(self, s: Solved, weight: float, dual: float):
        """The sweep with u = v = 1 until it has converged; Z = row_sum + col_sum."""
        ia, _ = self._inverse_masses()
        du, rho, dv = self._first(s, weight, dual)
        least = self._least(weight, dual)
        row_sum, col_sum = rho.clone(), torch.zeros_like(dv)
        grad_a, grad_b = weight * s.alpha + du * ia, torch.zeros_like(dv)
        before = 0.0
        for _ in range(max(1000, 10 * self.options.max_iter)):
            # (f + c, g - c) is the same plan: adjoints must sum to zero, and drift would never decay.
            dv = dv - (dv.double().sum() / s.sums.double().sum()).to(dv.dtype) * s.sums
            sigma = torch.where(s.sums > 0, -dv / s.sums, 0)
            col_sum, grad_b = col_sum + sigma, grad_b - sigma
            size = float(sigma.abs().max())
            rate = size / before if before > 0 and size < before else 0.999
            before = size
            if 2 * size / (1 - rate) <= least:
                break
            du, dv = self.adjoint(s, sigma, ia)
            row_sum, grad_a = row_sum - du * ia, grad_a + du * ia
        else:
            _not_converged.warn_of_gradient()
        return grad_a, grad_b, {"sums": (row_sum, col_sum)}

    def _log_domain(self, s: Solved, weight: float, dual: float):
        """Softmaxes of each iteration in the place of plan times scalings: nothing overflows."""
        ia, ib = self._inverse_masses()
        least = self._least(weight, dual)
        fbar = dual * self.a
        gbar = weight / self.reg * s.first + dual * (self.b - s.sums)
        grad_a, grad_b = weight * s.alpha, torch.zeros_like(gbar)
        before, at_f, share_f, share_g = [], [], [], []
        for t in range(s.n_iter, 0, -1):
            grad_a, grad_b = grad_a + self.reg * fbar * ia, grad_b + self.reg * gbar * ib
            share = gbar * ib
            before.append(s.hist_f[t - 1])
            at_f.append(s.hist_f[t])
            share_f.append(fbar * ia)
            share_g.append(share)
            if t == 1 or 2 * t * self.reg * float(share.abs().max()) <= least:
                break
            fbar, gbar = self.adjoint_log(s.hist_f[t - 1], s.hist_g[t - 1], share, s.hist_g[t - 2], ia)
        depth = len(before)
        g = s.hist_g[s.n_iter - depth : s.n_iter].flip(0)
        stacks = [torch.stack(z) for z in (before, at_f, share_f, share_g)]
        return grad_a, grad_b, {"history": (*stacks[:3], g.contiguous(), stacks[3])}

    def _features(
        self, s: Solved, weight: float, need: tuple[bool, bool, bool], *, alpha: bool = True,
        product=None, sums=None, history=None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """DC panel by panel, and from it the gradients of x, y and W; Z comes as one of the last three."""
        x, y, _, metric, *_ = self.features
        grads = cost.begin_gradients(self.features, need[:2])
        d_classes = torch.empty_like(self.panels.classes.cost) if self.panels.classes and need[2] else None
        row_sums, col_sums = torch.empty_like(self.a), torch.zeros_like(self.b)
        buffer = x.new_empty(min(self.panels.rows, max(len(x), 1)), len(y))
        distances = torch.empty_like(buffer) if metric in cost.BY_DIFFERENCE else None
        depth, stride = (len(history[0]), len(self.a)) if history else (0, 0)
        for rows, panel in self.panels.parts(d_classes):
            weights = buffer[: rows.stop - rows.start]
            distance = None if distances is None else distances[: len(weights)]
            if product:
                torch.mm(product[0][:, rows].t(), product[1], out=weights)
            row_sum, col_sum = (sums[0][rows], sums[1]) if sums else (None, None)
            over_rows = [z[:, rows] for z in history[:3]] if history else [None] * 3
            over_columns = history[3:] if history else [None] * 2
            _C.panel_gradient(
                panel, s.f[rows].data_ptr(), s.g.data_ptr(), s.alpha[rows].data_ptr() if alpha else 0, weight,
                _address(row_sum), _address(col_sum), depth, stride, *map(_address, over_rows),
                *map(_address, over_columns), weights.data_ptr(), row_sums[rows].data_ptr(), col_sums.data_ptr(),
                _address(distance),
            )  # fmt: skip
            cost.add_products(self.features, rows, distance, weights, grads)
        cost.finish_gradients(self.features, row_sums, col_sums, grads)
        dx, dy = grads
        return dx, None if dy is None else self.over.add(dy), d_classes
