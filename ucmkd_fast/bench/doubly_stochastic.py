"""The doubly stochastic projection against torch, eager and compiled, and against `sinkhorn` on the same batch.

float32, 20 iterations, forward alone and with the gradient. Compiled are four parts of five iterations: all 20 take
minutes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..ops.doubly_stochastic import doubly_stochastic
from ..ops.sinkhorn import sinkhorn
from .harness import Row, compare

CASES = [{"batch": 4096, "n": 4}, {"batch": 2048, "n": 8}, {"batch": 512, "n": 16}, {"batch": 512, "n": 64}]
ITERATIONS = 20
LIMIT = 1e-5
FROM_SINKHORN = 16  # smaller ones it runs one by one, which says nothing

Projection = Callable[[Tensor], Tensor]


def normalised(p: Tensor, times: int) -> Tensor:
    """Columns, then rows."""
    for _ in range(times):
        p = p / p.sum(-2, keepdim=True)
        p = p / p.sum(-1, keepdim=True)
    return p


def eager(logits: Tensor) -> Tensor:
    """As everybody writes it."""
    return normalised(logits.exp(), ITERATIONS)


def compiled() -> Projection:
    """`eager` in four compiled parts of five iterations each."""
    parts = 4
    step = torch.compile(lambda p: normalised(p, ITERATIONS // parts), dynamic=False)

    def run(logits: Tensor) -> Tensor:
        p = logits.exp()
        for _ in range(parts):
            p = step(p)
        return p

    return run


def by_sinkhorn(logits: Tensor) -> Tensor:
    """Cost -logits, masses of 1."""
    one = logits.new_ones(logits.shape[-1])
    return sinkhorn(-logits, one, one, reg=1.0, max_iter=ITERATIONS).plan()


def with_gradient(project: Projection) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """The result and the gradient of the logits."""

    def run(logits: Tensor, upstream: Tensor) -> list[Tensor]:
        leaf = logits.detach().requires_grad_()
        result = project(leaf)
        return [result.detach(), *torch.autograd.grad(result, leaf, upstream)]

    return run


def forward_alone(project: Projection) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """The result."""
    return lambda logits, upstream: [project(logits)]


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest disagreement; results are at most 1, gradients about that."""
    return max((o - t).abs().max().item() for o, t in zip(ours, theirs, strict=True))


def rows(quick: bool) -> Iterator[Row]:
    """Every case, both ways."""
    for case in CASES[: 2 if quick else None]:
        contenders: dict[str, Projection] = {"ucmkd_fast": doubly_stochastic, "torch, eager": eager}
        if not quick and shutil.which("g++"):
            contenders["torch.compile"] = compiled()
        if case["n"] >= FROM_SINKHORN:
            contenders["ucmkd_fast.sinkhorn"] = by_sinkhorn

        def inputs(seed: int, case: dict = case) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(seed)
            logits, upstream = torch.randn(2, case["batch"], case["n"], case["n"], generator=generator)
            return logits, upstream

        for way, wrap in (("forward", forward_alone), ("forward and backward", with_gradient)):
            implementations = {name: wrap(project) for name, project in contenders.items()}
            timings = compare(implementations, inputs, error, dict.fromkeys(contenders, LIMIT), rounds=9)
            yield Row({**case, "way": way}, timings)
