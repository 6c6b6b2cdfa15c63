"""The door of devices without kernels: `ucmkd_fast.reference`, differentiable by torch to any order.

The reference runs plain iterations: ``accelerate`` changes the way there, not where they lead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference import sinkhorn as reference
from .._assign import Assignment, by_torch
from .._problem import Options, Problem, Solution

KERNELS = False
HOST = False
BATCHED = True


def cost(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """The cost (B?, N, M)."""
    return reference.cost(x.to(dtype), y.to(dtype), metric)


def assignments(p: Assignment) -> Tensor:
    """Of `Assignment`, into ``p.out``; input that the CPU refuses gives NaN."""
    return by_torch(p, torch.float32)  # the least that every device has; of float64 scores float64


def solve(p: Problem, options: Options) -> Solution:
    """Of a given cost, problem by problem; a leading batch is a loop."""
    cost, a, b, init_f, init_g = p.matrix, p.a, p.b, p.init_f, p.init_g
    if cost.dim() == 2:
        init = None if init_f is None or init_g is None else (init_f, init_g)
        *found, n_iter = reference.sinkhorn(
            cost, a, b, reg=options.reg, max_iter=options.max_iter, tol=options.tol, grad=options.grad, init=init,
            unbalanced=options.unbalanced,
        )  # fmt: skip
        value, dual, f, g, error = found
        return Solution(value, dual, f, g, error, torch.tensor(n_iter, device=cost.device))

    def one(z: Tensor | None, k: int) -> Tensor | None:
        return z if z is None or z.dim() == 1 else z[k]

    parts = [
        solve(
            Problem(cost=c, a=one(a, k), b=one(b, k), init_f=one(init_f, k), init_g=one(init_g, k)), options
        )
        for k, c in enumerate(cost)
    ]
    return Solution(*(torch.stack(part) for part in zip(*parts, strict=True)))
