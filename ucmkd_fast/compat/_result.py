"""What `compat.pot.solve` returns: the fields of POT's result object."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._arrays import Give


class OTResult:
    """Fields by the names that POT gives them, in the caller's kind of array.

    Attributes:
        value: () value with its regularisation.
        value_linear: () ``<P, M>``.
        plan: (N, M) transport plan P.
        potentials: (N,) and (M,), log of the scalings: f / reg and g / reg with P = exp(u + v - M / reg).
        log: None, or the three results of a debiased problem by name.
        status: None, as POT gives for entropic problems.
        value_quad: None; it belongs to other problems.
        lazy_plan: None; the plan is dense.
    """

    status = None
    value_quad = None
    lazy_plan = None

    def __init__(
        self,
        potentials: tuple[Tensor, Tensor],
        value: Tensor,
        value_linear: Tensor,
        plan: Tensor,
        give: Give,
        log: dict[str, OTResult] | None = None,
    ):
        self._plan, self._give, self.log = plan, give, log
        self._value, self._value_linear = value, value_linear
        self.potentials = give(potentials[0]), give(potentials[1])
        self.value, self.value_linear, self.plan = give(value), give(value_linear), give(plan)

    @property
    def potential_a(self) -> Any:
        """(N,) the first of ``potentials``."""
        return self.potentials[0]

    @property
    def potential_b(self) -> Any:
        """(M,) the second of ``potentials``."""
        return self.potentials[1]

    @property
    def marginal_a(self) -> Any:
        """(N,) sums of the plan's rows."""
        return self.plan.sum(1)

    @property
    def marginal_b(self) -> Any:
        """(M,) sums of the plan's columns."""
        return self.plan.sum(0)

    @property
    def marginals(self) -> tuple[Any, Any]:
        """Both sums of the plan."""
        return self.marginal_a, self.marginal_b

    @cached_property
    def sparse_plan(self) -> Any:
        """The plan as scipy's or torch's CSR matrix."""
        if isinstance(self.plan, np.ndarray):
            from scipy.sparse import csr_matrix

            return csr_matrix(self.plan)
        return self.plan.to_sparse_csr()

    def debiased(self, within_a: OTResult, within_b: OTResult) -> OTResult:
        """The Sinkhorn divergence: minus half of both problems of a measure with itself; the plan stays."""
        value = self._value - (within_a._value + within_b._value) / 2
        linear = self._value_linear - (within_a._value_linear + within_b._value_linear) / 2
        log = {"res_aa": within_a, "res_bb": within_b, "res_ab": self}
        result = OTResult.__new__(OTResult)
        result.__dict__.update(self.__dict__)
        result._value, result._value_linear, result.log = value, linear, log
        result.value, result.value_linear = self._give(value), self._give(linear)
        return result

    def __repr__(self) -> str:
        kind = type(self.plan).__name__
        return (
            f"OTResult(value={self.value}, value_linear={self.value_linear}, "
            f"plan={kind}(shape={tuple(self.plan.shape)}))"
        )


class WithGradients(torch.autograd.Function):
    """A value whose gradients are given: ``WithGradients.apply(value, gradients, *inputs)``."""

    @staticmethod
    def forward(ctx: Any, value, gradients, *inputs):  # noqa: D102
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad):  # noqa: D102
        return None, None, *(grad * g for g in ctx.saved_tensors)
