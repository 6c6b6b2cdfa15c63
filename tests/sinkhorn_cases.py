"""The hard cases that every Sinkhorn path is tried on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    n: int
    m: int
    reg: float
    max_iter: int
    masses: str = "uniform"  # uniform, random, zeros, heavy
    cost: str = "random"  # random, features, negative, forbidden, wide, equal

    def __str__(self) -> str:
        return f"{self.n}x{self.m}-reg{self.reg}-T{self.max_iter}-{self.masses}-{self.cost}"

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """C (n, m), a (n,) or None, b (m,) or None in float64, rounded to float32 so that both dtypes agree."""
        generator = torch.Generator().manual_seed(self.n * 1000 + self.m)

        def rand(*size):
            return torch.rand(*size, generator=generator, dtype=torch.float64)

        C = rand(self.n, self.m)
        if self.cost == "features":
            x, y = rand(self.n, 8) - 0.5, rand(self.m, 8) - 0.3
            C = 1 - torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T
        elif self.cost == "negative":
            C = C - 3
        elif self.cost == "forbidden":
            C = torch.where(rand(self.n, self.m) < 0.3, torch.inf, C)
            C[0], C[:, 0] = 0.5, 0.5  # every row and column keeps a way out
        elif self.cost == "wide":
            C = 10 ** (rand(self.n, self.m) * 6 - 4)
        elif self.cost == "equal":
            C = torch.full_like(C, 0.7)
        if self.masses == "uniform":
            a, b = None, None
        else:
            a, b = rand(self.n) + 0.1, rand(self.m) + 0.1
            if self.masses == "zeros":
                a[1::3], b[2::4] = 0, 0
            elif self.masses == "heavy":
                a[0], b[-1] = 300, 1000
            a, b = a / a.sum(), b / b.sum()
        return C.float().double(), a, b


SIZES = [(1, 1), (1, 9), (8, 1), (7, 5), (33, 20), (64, 64), (65, 130)]
CASES = (
    [Case(n, m, 0.1, 20) for n, m in SIZES]
    + [Case(n, m, reg, 60, "random", "features") for n, m in SIZES[3:6] for reg in (1.0, 0.1, 0.01, 0.002)]
    + [Case(33, 20, reg, T, masses, cost)
       for reg, T in ((0.5, 3), (0.05, 40), (0.004, 60))
       for masses in ("random", "zeros", "heavy")
       for cost in ("random", "negative", "forbidden", "equal")]
    + [Case(19, 40, reg, 50, "zeros", "wide") for reg in (10.0, 1.0, 0.1, 0.01)]
)  # fmt: skip
