"""What a Sinkhorn call hands back."""

from __future__ import annotations

import torch
from torch import Tensor

from ._problem import Convergence as Convergence
from ._problem import Options, Solution
from .refusals import refusal


class SinkhornResult:
    """What a call computed. Nothing here synchronises until it is read.

    Attributes:
        value: () or (B,), ``<P, C>``; differentiable.
        value_regularized: () or (B,), the dual value of ``<P, C> + reg KL(P | a b')``, equal to it at
            convergence and of second order in the error before; differentiable.
        marginal_error: () or (B,), ``sum_j |(P'1)_j - b_j|``; the rows of P are exact.
        n_iter: () or (B,) int64, iterations that ran; negative where the kernels of a GPU refused the input (its
            results are NaN, `check` says why).
        reg: regularisation in units of cost, a number; with ``reg_scale`` reg times the mean cost, as a tensor (), (B,)
            where it was not read.
    """

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
        reg = self.reg[..., None, None] if isinstance(self.reg, Tensor) else self.reg
        return ((self._f[..., :, None] + self._g[..., None, :] - self._cost) / reg).exp()

    def plan_by_class(self) -> Tensor:
        """P summed over the columns of each label (B?, N, K); differentiable. A row over its mass is a soft label.

        Raises:
            ValueError: the call had no ``y_labels``.
        """
        labels, classes = self._class_labels()
        return _summed_by_label(self.plan(), labels, classes)

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
        f, g = (z.detach().reshape(-1) for z in (self._f, self._g))
        fs, gs = f.split([len(c) for c in self._costs]), g.split([c.shape[1] for c in self._costs])
        regs = self.reg if isinstance(self.reg, Tensor) else [self.reg] * len(fs)
        return [
            ((f[:, None] + g - cost) / reg).exp()
            for f, g, cost, reg in zip(fs, gs, self._costs, regs, strict=True)
        ]

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

    def __init__(self, solution: Solution, options: Options, scale: Tensor | None = None):
        super().__init__(solution.value, solution, options, None, scale)

    def plan(self) -> Tensor:
        """Refused: the plan is as large as the cost that did not fit."""
        raise MemoryError(
            "the plan (N, M) was asked for, but its cost did not fit memory_budget: take rows of it from the "
            "potentials, exp((f_i + g - C_i) / reg)"
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
