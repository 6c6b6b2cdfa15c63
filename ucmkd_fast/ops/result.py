"""What a Sinkhorn call hands back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from . import _draws, _projections, transforms
from ._plan_rows import GivenCosts, MadeCosts, Plans, exponents, log_column_sums, log_row_sums, of_list
from ._problem import Convergence as Convergence
from ._problem import Options, Problem, Solution
from .refusals import refusal
from .sharded import Spread


class SinkhornResult:
    """What a call computed. Nothing here synchronises until it is read.

    Attributes:
        value: () or (B,), ``<P, C>``; differentiable.
        value_regularized: () or (B,), the dual value of ``<P, C> + reg KL(P | a b')``, equal to it at
            convergence and of second order in the error before; differentiable. Unbalanced, with
            ``rho_a KL(P1 | a) + rho_b KL(P'1 | b)``.
        marginal_error: () or (B,), ``sum_j |(P'1)_j - b_j|``; the rows of P are exact. Unbalanced, b times
            exp(-g / rho_b), with a g that has no log b in it, is what the columns are to sum to.
        n_iter: () or (B,) int64, iterations that ran; negative where the kernels of a GPU refused the input (its
            results are NaN, `check` says why).
        reg: regularisation in units of cost, a number; with ``reg_scale`` reg times the mean cost, as a tensor (), (B,)
            where it was not read.
    """

    _formed = True  # the cost is one tensor, with its graph

    def __init__(
        self,
        cost: Tensor,
        solution: Solution,
        options: Options,
        classes: tuple[Tensor, int] | None = None,  # y_labels (M,) and K
        scale: Tensor | None = None,  # () or (B,), in whose units the options' reg is
    ):
        self.value, self.value_regularized, self._f, self._g, error, self.n_iter = solution
        self.marginal_error = error.detach()
        self._cost, self._options, self._classes = cost, options, classes
        self.reg: float | Tensor = options.reg if scale is None else options.reg * scale

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        """F (N,), g (M,) in units of cost, log a and log b inside them; -inf where a mass is 0."""
        return self._f, self._g

    def plan(self) -> Tensor:
        """P (N, M) = exp((f + g - C) / reg); differentiable."""
        return self._log_plan().exp()

    def _log_plan(self) -> Tensor:
        reg = self.reg[..., None, None] if isinstance(self.reg, Tensor) else self.reg
        return exponents(self._f[..., :, None], self._g[..., None, :], self._cost, reg)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """P1 (N,) and P'1 (M,), of a batch (B, N) and (B, M), flat if it is ragged: the sums of the plan itself.

        Unbalanced they differ from a and b, by what was created or left out. Differentiable where the plan is. With
        ``group`` of this process's rows, and of its columns over the rows of all; all processes call alike.
        """
        if self._formed and (
            transforms.recorded(self._f, self._g, self._cost)
            or not transforms.direct(self._f, self._g, self._cost)
        ):
            logs = self._log_plan()
            return logs.logsumexp(-1).exp(), logs.logsumexp(-2).exp()
        rows, columns = [], []
        for plans in self._plans():
            rows.append(log_row_sums(plans).exp())
            columns.append(self._own_columns(log_column_sums(plans).exp()))
        return self._joined(rows), self._joined(columns)

    def _own_columns(self, sums: Tensor) -> Tensor:
        return sums

    @property
    def mass(self) -> Tensor:
        """Sum of P, () or (B,): that of a and b, and what is moved where the transport is unbalanced."""
        return self._summed(self.marginals()[0])

    def _summed(self, rows: Tensor) -> Tensor:
        """Of vectors over rows, problem by problem."""
        return rows.sum(-1)

    def plan_by_class(self) -> Tensor:
        """P summed over the columns of each label (B?, N, K); differentiable. A row over its mass is a soft label.

        Raises:
            ValueError: the call had no ``y_labels``.
        """
        labels, classes = self._class_labels()
        return _summed_by_label(self.plan(), labels, classes)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw pairs from the plan, with replacement: (i, j) with probability P_ij / sum(P).

        A row is drawn by the plan's row sums, then a column of it. The plan is not formed: it is gone through once in
        blocks of rows for the sums, and the rows that were drawn once more; of a cost that did not fit its rows are
        made. A pair without mass is never drawn. The same generator gives the same pairs; a seed's pairs may differ
        between devices and releases. Waits for a GPU.

        Args:
            n: pairs to draw, for each problem of a batch.
            generator: of the cost's device or of the CPU; by default torch's own of the cost's device.

        Returns:
            Rows and columns, int64, (n,) each; of a batch (B, n), each problem's counted from its own first row, -1
            where a problem of a ragged batch has no rows on one side. With ``group`` the n pairs are those of the plan
            of all processes, and each returns the ones whose row it holds, (k,) with k adding up to n: i counts this
            process's rows of x, j the rows of y of all processes in the order of ranks. All processes call alike, with
            generators of one seed and state, and draw what one process would.

        Raises:
            TypeError: n or generator are none.
            ValueError: n below 1, a plan without mass, or processes that do not draw alike.
            NotImplementedError: the call is under a transform of torch.func.
        """
        n = _draws.check(n, generator, self._f, self._g, self._cost)
        self.check()
        several = self.value.dim() == 1
        i, j = _draws.pairs(self._plans(), len(self.value) if several else 1, n, generator)
        return (i, j) if several else (i[0], j[0])

    def argmax(self, dim: int = -1) -> Tensor:
        """Where the largest entry of each row or column of the plan is, without forming it.

        Args:
            dim: as of ``plan().argmax(dim)``: -1 for each row its column, -2 for each column its row.

        Returns:
            int64, (N,) or (M,), of a batch (B, N) or (B, M), of a ragged one flat, counted in each problem from 0. The
            first of equal entries, and -1 for a row or column without mass. With ``group`` of this process's rows, or
            columns, counted among those of all processes in the order of ranks.

        Raises:
            ValueError: another dim.
        """
        rows = _projections.of_rows(dim, 3 if self._f.dim() == 2 else 2)
        if self._formed and not transforms.direct(self._f, self._g, self._cost):
            return _projections.largest(self._log_plan(), -1 if rows else -2)
        find = _projections.largest_of_rows if rows else _projections.largest_of_columns
        return self._joined([find(plans) for plans in self._plans()])

    def barycentric_projection(self, points: Tensor, side: str = "x") -> Tensor:
        """The mean of the points that each sample is sent to: T(x_i) = sum_j P_ij y_j / sum_j P_ij.

        As POT's and OTT's barycentric map (Ferradans et al. 2014, "Regularized Discrete Optimal Transport"); 0, as in
        POT, for a sample without mass. Differentiable in the points, and through a plan whose gradient is asked for:
        that then is formed. Else blocks of rows are gone through; batches of features and costs that did not fit are
        constants.

        Args:
            points: (M, D) for side "x", (N, D) for side "y": what the other side's samples stand for, any D; of a batch
                (B, M, D), or (M, D) for all; of a ragged one flat. Computed in the cost's dtype.
            side: ``"x"`` projects the rows of the plan, ``"y"`` its columns.

        Returns:
            (N, D) or (M, D), of a batch (B, N, D) or (B, M, D), of a ragged one flat. With ``group`` points and
            projections are those of this process's rows; all processes call forward and backward alike.

        Raises:
            TypeError: points are no tensor of floats.
            ValueError: an unknown side, or a shape or device that does not fit.
        """
        points = _projections.checked_points(points, side, self._f, self._g)
        own = self._f, self._g, self._cost
        if self._formed and (transforms.recorded(*own) or not transforms.direct(*own, points)):
            return _projections.projected(self._log_plan(), points, side)
        flat = points.reshape(-1, points.shape[-1])
        return self._joined(_projections.by_blocks(self._plans(), flat, side))

    def _plans(self) -> Iterable[Plans]:
        """The plans, a part of the batch at a time."""
        alone = self._f.dim() == 1
        cost, f, g = (z[None] if alone else z for z in (self._cost, self._f, self._g))
        return [Plans(GivenCosts(cost), f, g, self.reg)]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """What was found for every problem (B', ...) of every part."""
        return parts[0] if self._f.dim() == 2 else parts[0][0]

    def _class_labels(self) -> tuple[Tensor, int]:
        if self._classes is None:
            raise ValueError("plan_by_class needs a call with class_cost and y_labels, this one had none")
        return self._classes

    @property
    def converged(self) -> Tensor:
        """Whether marginal_error is at most ``tol``, or the square root of the dtype's rounding where tol is 0."""
        limit = self._options.tol if self._options.tol > 0 else torch.finfo(self._cost.dtype).eps ** 0.5
        return self.marginal_error <= limit

    def check(self) -> None:
        """Raise ValueError for input that was refused: on a GPU that is found without waiting, and this waits."""
        if refused := refusal(self.n_iter):
            raise ValueError(refused)

    def __repr__(self) -> str:
        self.check()
        return (
            f"SinkhornResult(value={self.value.tolist()}, value_regularized={self.value_regularized.tolist()}, "
            f"n_iter={self.n_iter.tolist()}, marginal_error={self.marginal_error.tolist()})"
        )


class BatchResult(SinkhornResult):
    """What a batch of problems between features computed: as `SinkhornResult`, all but the plans (B,) or flat.

    Attributes:
        value, value_regularized, marginal_error, n_iter: (B,).
        potentials: (B, N), (B, M); of a ragged batch flat, (sum N_k,), (sum M_k,), as x and y are.
    """

    _formed = False

    def __init__(
        self,
        costs: list[Tensor],
        solution: Solution,
        options: Options,
        ragged: bool,
        classes: tuple[Tensor, int] | None = None,  # y_labels (sum M_k,) and K
        scale: Tensor | None = None,  # (B,)
    ):
        super().__init__(solution.value, solution, options, classes, scale)
        self._costs, self._ragged = costs, ragged

    def plan(self) -> Tensor:
        """P (B, N, M), constant: take gradients from the values. Ragged batches have `plans`."""
        if self._ragged:
            raise TypeError("the plans of a ragged batch are no one tensor: use plans()")
        return torch.stack(self.plans())

    def plans(self) -> list[Tensor]:
        """P_k (N_k, M_k) of every problem, constant."""
        fs, gs = self._potentials()
        regs = self.reg if isinstance(self.reg, Tensor) else [self.reg] * len(fs)
        return [
            exponents(f[:, None], g, cost, reg).exp()
            for f, g, cost, reg in zip(fs, gs, self._costs, regs, strict=True)
        ]

    def _potentials(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of every problem (N_k,) and (M_k,), constant."""
        f, g = (z.detach().reshape(-1) for z in (self._f, self._g))
        sizes = zip(*(cost.shape for cost in self._costs), strict=True)
        fs, gs = (list(z.split(list(size))) for z, size in zip((f, g), sizes, strict=True))
        return fs, gs

    def _plans(self) -> Iterator[Plans]:
        return of_list(self._costs, *self._potentials(), self.reg)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([part.flatten(0, 1) for part in parts] if self._ragged else parts)

    def _summed(self, rows: Tensor) -> Tensor:
        if not self._ragged:
            return rows.sum(-1)
        return torch.stack([part.sum() for part in rows.split([len(cost) for cost in self._costs])])

    def plan_by_class(self) -> Tensor:
        """P_k summed over the columns of each label, (B, N, K) or flat (sum N_k, K), constant.

        Raises:
            ValueError: the call had no ``y_labels``.
        """
        labels, classes = self._class_labels()
        plans = self.plans()
        parts = labels.split([plan.shape[1] for plan in plans])
        sums = [_summed_by_label(plan, part, classes) for plan, part in zip(plans, parts, strict=True)]
        return torch.cat(sums) if self._ragged else torch.stack(sums)


class PanelResult(SinkhornResult):
    """As `SinkhornResult`, of a cost that was never formed: value and value_regularized are differentiable."""

    _formed = False

    def __init__(
        self,
        p: Problem,  # in units of cost
        solution: Solution,
        options: Options,
        spread: Spread,
        scale: Tensor | None = None,
    ):
        super().__init__(solution.value, solution, options, None, scale)
        self._problem = Problem(x=p.x, y=p.y, class_cost=p.class_cost, labels=p.labels).detached()
        self._spread = spread
        self._gathered: list[Plans] = []

    def _plans(self) -> list[Plans]:
        """Of the columns of all processes, which are gathered once."""
        if not self._gathered:
            p, over = self._problem, self._spread.over
            g = over.gather(self._g.detach())
            labels = None if p.labels is None else over.gather(p.labels)
            p = p._replace(y=over.gather(p.features[1]), labels=labels)
            costs = MadeCosts(p, self._options, self._spread.rows)
            self._gathered.append(Plans(costs, self._f[None], g[None], self.reg, over))
        return self._gathered

    def _own_columns(self, sums: Tensor) -> Tensor:
        return self._spread.over.mine(sums[0])[None]

    def _summed(self, rows: Tensor) -> Tensor:
        return self._spread.over.add(rows.sum(-1))

    def plan(self) -> Tensor:
        """Refused: the plan is as large as the cost that did not fit."""
        raise MemoryError(
            "the plan (N, M) was asked for, but its cost did not fit memory_budget: use sample, argmax or "
            "barycentric_projection, or take rows of it from the potentials, exp((f_i + g - C_i) / reg)"
        )

    def plan_by_class(self) -> Tensor:
        """Refused, as `plan`; under ``grad="envelope"`` a gradient is the same."""
        raise MemoryError(
            "the plan (N, M) was asked for, but its cost did not fit memory_budget: with grad='envelope' its sums by "
            "class are the gradient of value_regularized with respect to class_cost"
        )


def _summed_by_label(plan: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Columns of P (B?, N, M) added by their labels (B?, M): (B?, N, K)."""
    sums = plan.new_zeros(*plan.shape[:-1], classes)
    return sums.scatter_add(-1, labels[..., None, :].expand(plan.shape), plan)
