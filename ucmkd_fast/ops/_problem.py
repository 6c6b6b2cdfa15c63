"""The records that a call goes through the ops as: a problem, its options, its solution, and the gradients of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[Tensor | None, Tensor | None]  # of rows and of columns, or of x and of y


class Options(NamedTuple):
    """What a call runs with, once checked."""

    reg: float  # in units of cost, or of `Problem.scale`
    max_iter: int
    tol: float
    grad: str
    accelerate: str | None
    dtype: torch.dtype  # of the cost
    metric: str | None = None  # None: the cost is given
    regularized: bool = False  # the loss is the dual value, else <P, C>
    unbalanced: tuple[float, float] | None = None  # (rho_a, rho_b) as reg, inf for a side that is exact

    @property
    def known_metric(self) -> str:
        """The metric of a cost that is made from features."""
        assert self.metric is not None
        return self.metric

    @property
    def rho(self) -> tuple[float, float]:
        """What holds the marginals."""
        return self.unbalanced or (math.inf, math.inf)

    @property
    def damping(self) -> tuple[float, float]:
        """How far half-steps of rows and of columns go; 1 where the marginal is exact."""
        rho_a, rho_b = (1.0 if rho == math.inf else rho / (rho + self.reg) for rho in self.rho)
        return rho_a, rho_b

    @property
    def shifted(self) -> bool:
        """Whether unbalanced iterations are shifted in between, which leads to the same fixed point sooner."""
        return self.unbalanced is not None and (self.tol > 0 or self.grad != "unrolled")

    def scaled(self, scale: float) -> Options:
        """With what was in units of ``scale`` in units of cost."""
        rho = self.unbalanced
        return self._replace(reg=self.reg * scale, unbalanced=rho and (rho[0] * scale, rho[1] * scale))

    def within(self, side: int) -> Options:
        """Of the rows (0) or the columns (1) of a divergence against themselves."""
        rho = self.rho[side]
        return self._replace(unbalanced=None if rho == math.inf else (rho, rho))


class Problem(NamedTuple):
    """The tensors of a call, once checked: a cost that is given, or features that it is made from.

    B is a batch. Of a list of problems (`Offsets`) everything is flat: (sum N_k, ...) and (sum M_k, ...).
    """

    x: Tensor | None = None  # (B?, N, D)
    y: Tensor | None = None  # (B?, M, D)
    a: Tensor | None = None  # (N,) or (B?, N); None: 1 / N
    b: Tensor | None = None  # (M,) or (B?, M); None: 1 / M
    init_f: Tensor | None = None  # (B?, N)
    init_g: Tensor | None = None  # (B?, M)
    class_cost: Tensor | None = None  # W (B?, N, K): a term of the cost by class, with features
    labels: Tensor | None = None  # (B?, M) int64
    cost: Tensor | None = None  # (B?, N, M)
    scale: Tensor | None = None  # () or (B,), in whose units the options' reg is

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        """X and y of a problem that has them."""
        assert self.x is not None and self.y is not None
        return self.x, self.y

    @property
    def matrix(self) -> Tensor:
        """The cost of a problem that is given one."""
        assert self.cost is not None
        return self.cost

    @property
    def classes(self) -> tuple[Tensor, Tensor] | None:
        """W and the labels, or None."""
        if self.class_cost is None or self.labels is None:
            return None
        return self.class_cost, self.labels

    @property
    def labelled(self) -> tuple[Tensor, int] | None:
        """The labels and the number of classes, or None."""
        return None if self.classes is None else (self.classes[1], self.classes[0].shape[-1])

    def contiguous(self) -> Problem:
        """With masses, classes and a given cost contiguous."""
        if self.a is self.b is self.class_cost is self.cost is None:
            return self
        _, _, a, b, _, _, class_cost, labels, cost, _ = self
        dense = {"cost": cost, "a": a, "b": b, "class_cost": class_cost, "labels": labels}
        other = {name: z.contiguous() for name, z in dense.items() if z is not None and not z.is_contiguous()}
        return self._replace(**other) if other else self

    def detached(self) -> Problem:
        """Without the graphs of its tensors."""
        return Problem(*(None if z is None else z.detach() for z in self))

    def within(self) -> tuple[Problem, Problem]:
        """Each set of features against itself."""
        x, y = self.features
        scale = self.scale
        return Problem(x=x, y=x, a=self.a, b=self.a, scale=scale), Problem(
            x=y, y=y, a=self.b, b=self.b, scale=scale
        )

    def flat(self) -> Problem:
        """Features (B, N, ...) as a list of problems."""
        x, y = self.features

        def rows(z: Tensor | None, like: Tensor, trailing: int = 0) -> Tensor | None:
            if z is None:
                return None
            return z.expand(*like.shape[:2], *z.shape[z.dim() - trailing :]).flatten(0, 1)

        return self._replace(
            x=x.flatten(0, 1), y=y.flatten(0, 1), a=rows(self.a, x), b=rows(self.b, y), init_f=rows(self.init_f, x),
            init_g=rows(self.init_g, y), class_cost=rows(self.class_cost, x, 1), labels=rows(self.labels, y),
        )  # fmt: skip

    def one(self, rows: slice, columns: slice) -> Problem:
        """One problem of a list."""

        def of(z: Tensor | None, at: slice) -> Tensor | None:
            return None if z is None else z[at]

        return Problem(
            of(self.x, rows), of(self.y, columns), of(self.a, rows), of(self.b, columns), of(self.init_f, rows),
            of(self.init_g, columns), of(self.class_cost, rows), of(self.labels, columns), scale=self.scale,
        )  # fmt: skip


class Offsets(NamedTuple):
    """Where the problems of a list begin: problem k is rows x[k] .. x[k + 1] against rows y[k] .. y[k + 1]."""

    x: Tensor  # (B + 1,) int64 on the CPU, ascending from 0
    y: Tensor  # (B + 1,)

    @classmethod
    def of_batch(cls, batch: int, n: int, m: int) -> Offsets:
        """Those of B problems (N, M)."""
        steps = torch.arange(batch + 1)
        return cls(steps * n, steps * m)

    @property
    def counts(self) -> tuple[Tensor, Tensor]:
        """N_k (B,), M_k (B,)."""
        return self.x.diff(), self.y.diff()

    @property
    def empty(self) -> Tensor:
        """Which problems (B,) have no rows on one side: nothing to transport."""
        n, m = self.counts
        return (n == 0) | (m == 0)

    def rows(self, k: int) -> tuple[slice, slice]:
        """Rows of problem k in x and in y."""
        return slice(int(self.x[k]), int(self.x[k + 1])), slice(int(self.y[k]), int(self.y[k + 1]))


class Solution(NamedTuple):
    """What the iterations found, with the batch of the problem."""

    value: Tensor  # (B?) <P, C>
    dual: Tensor  # (B?) dual value of <P, C> + reg KL(P | a b')
    f: Tensor  # (B?, N)
    g: Tensor  # (B?, M)
    marginal_error: Tensor  # (B?) sum_j |(P'1)_j - b_j|
    n_iter: Tensor  # (B?) int64

    def loss(self, regularized: bool) -> Tensor:
        """The value that is trained on."""
        return self.dual if regularized else self.value


class Upstream(NamedTuple):
    """Gradients that arrive at a `Solution`."""

    value: Tensor | None = None  # (B?)
    dual: Tensor | None = None  # (B?)
    f: Tensor | None = None  # (B?, N)
    g: Tensor | None = None  # (B?, M)

    @property
    def any(self) -> bool:
        """Whether there is one."""
        value, dual, f, g = self
        return not (value is dual is f is g is None)


class Kept(NamedTuple):
    """What a backward needs beside the problem; which of it, a door decides."""

    block: Tensor | None = None  # the memory that the solver leaves
    f: Tensor | None = None  # (B?, N)
    g: Tensor | None = None  # (B?, M)
    scale: Tensor | None = None  # (sum of N + M,) of the features
    costs: Tensor | None = None  # of a list of problems
    distance: Tensor | None = None  # as the cost, without its term by class
    grad_x: Tensor | None = None  # made along with the loss, for an upstream of 1
    grad_y: Tensor | None = None


class Gradients(NamedTuple):
    """Gradients of a problem's tensors."""

    cost: Tensor | None = None
    x: Tensor | None = None  # of the cost's dtype, as y
    y: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    class_cost: Tensor | None = None


class Needs(NamedTuple):
    """Which tensors of a problem need a gradient."""

    x: bool = False
    y: bool = False
    a: bool = False
    b: bool = False
    class_cost: bool = False


class Convergence:
    """How far a call of `sinkhorn_loss` came, which fills it in (``convergence=``): it costs the call nothing.

    Attributes:
        marginal_error: () or (B,), ``sum_j |(P'1)_j - b_j|``; the rows of P are exact. NaN before the call.
        n_iter: () or (B,) int64, iterations that ran, as in `SinkhornResult`; 0 before the call.
    """

    def __init__(self) -> None:
        self.marginal_error, self.n_iter = torch.tensor(torch.nan), torch.tensor(0)

    def take(self, marginal_error: Tensor, n_iter: Tensor) -> None:
        """Keep what a solver says."""
        self.marginal_error, self.n_iter = marginal_error.detach(), n_iter.detach()
