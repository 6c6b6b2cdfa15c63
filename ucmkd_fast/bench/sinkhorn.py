"""Loss and exact gradient of the Sinkhorn term against what people call today.

float32, D = 512, cosine cost, reg 0.1, 100 iterations, gradient with respect to x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..ops.sinkhorn import sinkhorn_loss
from . import ceilings, cost_model, peers
from .harness import Row, compare

MAX_ITER, WIDTH = 100, 512
# N: rounds. Unrolled autograd needs O(T N^2) memory: 10 GB at N = 2048.
SIZES = {64: 15, 256: 11, 1024: 5, 2048: 3}
LIMIT = 1e-4  # on loss and gradient, relative


def gaussian(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Fresh Gaussian features (n, WIDTH) twice: iterations converge within a dozen."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, WIDTH, generator=generator), torch.randn(n, WIDTH, generator=generator)


def clustered(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Eight clusters a side, unequal: iterations still move at the hundredth."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for _ in range(2):
        centres = torch.randn(8, WIDTH, generator=generator)
        label = (torch.rand(n, generator=generator).square() * 8).long()
        sides.append(centres[label] + 0.5 * torch.randn(n, WIDTH, generator=generator))
    return sides[0], sides[1]


def error(ours: peers.Result, theirs: peers.Result) -> float:
    """Largest relative disagreement of loss and gradient."""
    loss = ((ours[0] - theirs[0]).abs() / theirs[0].abs()).item()
    grad = ((ours[1] - theirs[1]).abs().max() / theirs[1].abs().max()).item()
    return max(loss, grad)


def contenders(n: int, reg: float, quick: bool) -> dict[str, Callable]:
    """Ours first."""
    table: dict[str, Callable] = {
        "ucmkd_fast": peers.with_gradient(lambda x, y: sinkhorn_loss(x, y, reg=reg, max_iter=MAX_ITER)),
        "POT sinkhorn2 (published code)": peers.pot_sinkhorn2(reg, MAX_ITER),
    }
    if n <= 1024 and not quick:
        table["POT sinkhorn_log"] = peers.pot_log(reg, MAX_ITER)
        table["plain torch, log domain"] = peers.plain(reg, MAX_ITER)
        table["the same, torch.compile"] = peers.compiled(reg, MAX_ITER)
        if peers.available("ott"):
            table["OTT-JAX, jitted, unrolled"] = peers.jax_ott(reg, MAX_ITER)
    return table


def rows(quick: bool) -> Iterator[Row]:
    """Gaussian features at every size; clustered ones with a small reg at one."""
    cases = [("gaussian", gaussian, n, 0.1) for n in (SIZES if not quick else (64, 256))]
    cases += [("clustered", clustered, n, 0.02) for n in ((64,) if quick else (64, 256, 1024))]
    for name, inputs, n, reg in cases:
        table = contenders(n, reg, quick or name == "clustered")
        timings = compare(
            table,
            partial(inputs, n),
            error,
            dict.fromkeys(table, LIMIT if name == "gaussian" else 1e-2),
            rounds=5 if quick else SIZES[n],
            seconds=10 if quick else 25,
        )
        case = {"features": name, "N": n, "M": n, "D": WIDTH, "reg": reg, "max_iter": MAX_ITER}
        yield Row(case, timings, ceiling(n, name == "clustered", timings[0].median_ms))


def ceiling(n: int, all_iterations: bool, ms: float) -> dict[str, float]:
    """A lower bound of our time: products with x and y, an exponential an element, one sweep an iteration.

    Each at the speed that this machine reaches (`cost_model`). Where the iterations soon stop changing anything, one
    stands for all of them; the way back is left out, since it stops where only rounding is left.
    """
    iterations = MAX_ITER if all_iterations else 1
    once, all_of_them = (
        cost_model.estimate(
            cost_model.Size(n, n, WIDTH, iterations=t), ceilings.ceilings(torch.float32)
        ).parts
        for t in (1, iterations)
    )
    least = once["products"] + once["exponentials"] + all_of_them["sweeps"] / 2
    plural = "s" if iterations > 1 else ""
    name = f"products, exponentials and {iterations} sweep{plural} at the machine's speed, ms"
    return {name: round(least * 1e3, 3), "share of our time": round(least * 1e3 / ms, 2)}
