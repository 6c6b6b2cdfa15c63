"""Adversarial problems for the property tests: what a user's data could hold and a kernel could trip over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

FEATURES = ("random", "duplicates", "collinear", "zero rows", "huge norms", "tiny norms", "one far away")
COSTS = ("random", "negative", "equal", "decades", "forbidden", "offset")
MASSES = ("uniform", "random", "zeros", "one heavy point", "decades")


@dataclass(frozen=True)
class Problem:
    """A problem in words and numbers, so that a failing one can be read and made again."""

    n: int
    m: int
    cost: str  # of COSTS, or of FEATURES: then the sqeuclidean cost of such features
    masses: str
    log_reg: float  # reg = 10^log_reg times the mean cost
    iterations: int
    seed: int

    def features(self, d: int = 5) -> tuple[Tensor, Tensor]:
        """Rows x (n, d), y (m, d) in float64, exact in float32."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.n, d, generator=generator, dtype=torch.float64)
        y = torch.randn(self.m, d, generator=generator, dtype=torch.float64) + 0.5
        if self.cost == "duplicates":
            x[:], y[: len(y) // 2 + 1] = x[0].clone(), x[0]
        elif self.cost == "collinear":
            x, y = x[:, :1] * x[0], y[:, :1] * x[0]
        elif self.cost == "zero rows":
            x[::2], y[1::3] = 0, 0
        elif self.cost == "huge norms":
            x, y = x * 1e6, y * 1e6
        elif self.cost == "tiny norms":
            x, y = x * 1e-6, y * 1e-6
        elif self.cost == "one far away":
            x[0] *= 1e4
        return x.float().double(), y.float().double()

    def costs(self) -> Tensor:
        """C (n, m) in float64, exact in float32; may hold +inf."""
        if self.cost in FEATURES:
            x, y = self.features()
            return (x[:, None] - y[None]).square().sum(-1).float().double()
        generator = torch.Generator().manual_seed(self.seed)
        C = torch.rand(self.n, self.m, generator=generator, dtype=torch.float64)
        if self.cost == "negative":
            C = C - 3
        elif self.cost == "equal":
            C = torch.full_like(C, 0.7)
        elif self.cost == "decades":
            C = 10 ** (12 * C - 8)
        elif self.cost == "forbidden":
            shut = torch.rand(self.n, self.m, generator=generator) < 0.4
            C = torch.where(shut, torch.inf, C)
            C[0], C[:, 0] = 0.5, 0.25  # every row and column keeps a way out
        elif self.cost == "offset":
            C = C + 1000
        return C.float().double()

    def both_masses(self) -> tuple[Tensor | None, Tensor | None]:
        """a (n,), b (m,) in float64 with sum 1, or None each."""
        if self.masses == "uniform":
            return None, None
        generator = torch.Generator().manual_seed(self.seed + 1)
        sides = []
        for size in (self.n, self.m):
            mass = torch.rand(size, generator=generator, dtype=torch.float64) + 0.05
            if self.masses == "zeros":
                mass[1::2] = 0
            elif self.masses == "one heavy point":
                mass[-1] = 1e4
            elif self.masses == "decades":
                mass = 10 ** (-6 * mass)
            sides.append(mass / mass.sum())
        return sides[0], sides[1]

    @property
    def reg(self) -> float:
        """In units of cost."""
        C = self.costs()
        scale = C[C.isfinite()].abs().mean().item()
        return 10**self.log_reg * (scale if scale > 0 else 1.0)


def problems(
    costs: tuple[str, ...] = COSTS + FEATURES,
    masses: tuple[str, ...] = MASSES,
    log_reg: tuple[float, float] = (-4, 3),
    most: int = 20,
) -> st.SearchStrategy[Problem]:
    """Problems of up to ``most`` rows and columns; hypothesis shrinks towards small and plain ones."""
    return st.builds(
        Problem,
        n=st.integers(1, most),
        m=st.integers(1, most),
        cost=st.sampled_from(costs),
        masses=st.sampled_from(masses),
        log_reg=st.floats(*log_reg),
        iterations=st.integers(1, 30),
        seed=st.integers(0, 10**6),
    )
