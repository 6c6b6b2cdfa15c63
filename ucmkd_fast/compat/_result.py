"""What `compat.pot.solve` returns: the fields of POT's result object."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_CITATION = """Entropic optimal transport by Sinkhorn's iterations:

M. Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013.

@inproceedings{cuturi2013sinkhorn,
  author    = {Marco Cuturi},
  title     = {Sinkhorn Distances: Lightspeed Computation of Optimal Transport},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {26},
  year      = {2013}
}

The interface is that of POT:

R. Flamary et al., "POT: Python Optimal Transport", JMLR 22(78):1-8, 2021.

@article{flamary2021pot,
  author  = {R{\'e}mi Flamary and Nicolas Courty and Alexandre Gramfort and others},
  title   = {{POT}: {Python} Optimal Transport},
  journal = {Journal of Machine Learning Research},
  volume  = {22},
  number  = {78},
  pages   = {1--8},
  year    = {2021}
}
"""


class OTResult:
    """Fields by the names that POT gives them, in the caller's kind of array; None where they are not known.

    Made by `solve` and `solve_sample`; the arguments are those of POT's class, for code that makes its own.

    Attributes:
        potentials: (N,) and (M,), log of the scalings: f / reg and g / reg with P = exp(u + v - M / reg).
        value: () value with its regularisation.
        value_linear: () ``<P, M>``.
        value_quad: None from `solve`; it belongs to other problems.
        log: None from `solve`, or the three results of a debiased problem by name.
        lazy_plan: None from `solve`, whose plan is dense.
        status: None, as POT gives for entropic problems.
        citation: what to cite, in plain text and BibTeX.
    """

    citation = _CITATION

    def __init__(
        self,
        potentials: tuple[Any, Any] | None = None,
        value: Any = None,
        value_linear: Any = None,
        value_quad: Any = None,
        plan: Any = None,
        log: dict[str, Any] | None = None,
        backend: Any = None,
        sparse_plan: Any = None,
        lazy_plan: Any = None,
        status: Any = None,
        batch_size: int = 100,
    ):
        self.potentials, self.log, self.status = potentials, log, status
        self.value, self.value_linear, self.value_quad = value, value_linear, value_quad
        self._plan, self._sparse_plan, self.lazy_plan = plan, sparse_plan, lazy_plan
        self._given_backend, self._batch_size = backend, batch_size

    @property
    def plan(self) -> Any:
        """(N, M) transport plan P."""
        if self._plan is None and self._sparse_plan is not None:
            sparse = self._sparse_plan
            return sparse.to_dense() if isinstance(sparse, torch.Tensor) else sparse.toarray()
        return self._plan

    @property
    def sparse_plan(self) -> Any:
        """The plan as scipy's or torch's CSR matrix."""
        if self._sparse_plan is None and self._plan is not None:
            if isinstance(self._plan, torch.Tensor):
                self._sparse_plan = self._plan.to_sparse_csr()
            else:
                from scipy.sparse import csr_matrix

                self._sparse_plan = csr_matrix(self._plan)
        return self._sparse_plan

    @property
    def potential_a(self) -> Any:
        """(N,) the first of ``potentials``."""
        return None if self.potentials is None else self.potentials[0]

    @property
    def potential_b(self) -> Any:
        """(M,) the second of ``potentials``."""
        return None if self.potentials is None else self.potentials[1]

    @property
    def marginal_a(self) -> Any:
        """(N,) sums of the plan's rows."""
        return None if self.marginals is None else self.marginals[0]

    @property
    def marginal_b(self) -> Any:
        """(M,) sums of the plan's columns."""
        return None if self.marginals is None else self.marginals[1]

    @property
    def marginals(self) -> tuple[Any, Any] | None:
        """Both sums of the plan."""
        if self.plan is not None:
            return self.plan.sum(1), self.plan.sum(0)
        if self.lazy_plan is None:
            return None
        step = self._batch_size
        blocks = [self.lazy_plan[k : k + step] for k in range(0, self.lazy_plan.shape[0], step)]
        join = torch.cat if isinstance(blocks[0], torch.Tensor) else np.concatenate
        return join([block.sum(1) for block in blocks]), sum(block.sum(0) for block in blocks)

    @property
    def _backend(self) -> Any:
        """POT's backend for these arrays, which its own tools read from a result; None where POT is not installed."""
        known = [z for z in (self._plan, self.value) if z is not None]
        if self._given_backend is not None or not known:
            return self._given_backend
        try:
            from ot.backend import get_backend
        except ImportError:
            return None
        return get_backend(known[0])

    @property
    def a_to_b(self) -> Any:
        """Not there, as in POT."""
        raise NotImplementedError(
            "a_to_b is not built, here as in POT: use plan @ X_b / marginal_a[:, None] - X_a"
        )

    @property
    def b_to_a(self) -> Any:
        """Not there, as in POT."""
        raise NotImplementedError(
            "b_to_a is not built, here as in POT: use plan.T @ X_a / marginal_b[:, None] - X_b"
        )

    def debiased(self, within_a: OTResult, within_b: OTResult) -> OTResult:
        """The Sinkhorn divergence: minus half of both problems of a measure with itself; the plan stays."""
        value = self.value - (within_a.value + within_b.value) / 2
        linear = self.value_linear - (within_a.value_linear + within_b.value_linear) / 2
        log = {"res_aa": within_a, "res_bb": within_b, "res_ab": self}
        return OTResult(self.potentials, value, linear, plan=self.plan, log=log)

    def __repr__(self) -> str:
        fields = {"value": self.value, "value_linear": self.value_linear}
        parts = [f"{name}={value}" for name, value in fields.items() if value is not None]
        for name, plan in (("plan", self._plan), ("lazy_plan", self.lazy_plan)):
            if plan is not None:
                parts.append(f"{name}={type(plan).__name__}(shape={tuple(plan.shape)})")
        return f"OTResult({', '.join(parts)})"


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
