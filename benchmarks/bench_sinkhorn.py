"""Loss and exact gradient of the Sinkhorn term against what people call today.

    python benchmarks/bench_sinkhorn.py [--sizes 64 256 1024 2048] [--json results/sinkhorn.json]

float32, D = 512, cosine cost, reg 0.1, 100 iterations, gradient with respect to x.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import peers
import torch
from harness import Row, compare, table, write

import ucmkd_fast as uk

REG, MAX_ITER, WIDTH = 0.1, 100, 512
# N: which peers, rounds. Unrolled autograd needs O(T N^2) memory: 10 GB at N = 2048.
CASES = {64: 15, 256: 11, 1024: 5, 2048: 3}
LIMIT = 1e-4  # on loss and gradient, relative


def inputs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh Gaussian features (n, WIDTH) twice."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, WIDTH, generator=generator) for _ in range(2))


def error(ours: peers.Result, theirs: peers.Result) -> float:
    """Largest relative disagreement of loss and gradient."""
    loss = ((ours[0] - theirs[0]).abs() / theirs[0].abs()).item()
    grad = ((ours[1] - theirs[1]).abs().max() / theirs[1].abs().max()).item()
    return max(loss, grad)


def ours(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The op under test."""
    return uk.sinkhorn_loss(x, y, metric="cosine", reg=REG, max_iter=MAX_ITER)


def implementations(n: int) -> dict:
    """Ours first."""
    table = {
        "ucmkd_fast": peers.with_gradient(ours),
        "POT sinkhorn2 (published code)": peers.pot_sinkhorn2(REG, MAX_ITER),
    }
    if n <= 1024:
        table["POT sinkhorn_log"] = peers.pot_log(REG, MAX_ITER)
        table["plain torch, log domain"] = peers.plain(REG, MAX_ITER)
    if peers.available("ott") and n <= 1024:
        table["OTT-JAX, jitted, unrolled"] = peers.jax_ott(REG, MAX_ITER)
    return table


def main() -> None:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(CASES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for n in arguments.sizes:
        contenders = implementations(n)
        limits = dict.fromkeys(contenders, LIMIT)
        timings = compare(
            contenders, lambda seed, n=n: inputs(n, seed), error, limits, rounds=CASES.get(n, 5), seconds=60
        )
        rows.append(Row({"N": n, "M": n, "D": WIDTH, "reg": REG, "max_iter": MAX_ITER}, timings))
        print(table(rows[-1:]), flush=True)
    if arguments.json:
        write(arguments.json, "sinkhorn", rows)


if __name__ == "__main__":
    main()
