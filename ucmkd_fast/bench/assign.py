"""Balanced assignments against the lines of SwAV in eager torch; memory of both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.assign import assign
from .harness import Row, compare, peak_growth_mb, report_peak

#: A batch of SwAV's on one GPU of many, one of them together, a data set's part; last the iterations.
CASES: list[dict[str, Any]] = [
    {"n": 64, "K": 3000, "dtype": "float32", "n_iter": 3},
    {"n": 512, "K": 3000, "dtype": "float32", "n_iter": 3},
    {"n": 512, "K": 3000, "dtype": "float16", "n_iter": 3},
    {"n": 512, "K": 3000, "dtype": "float32", "n_iter": 10},
    {"n": 4096, "K": 3000, "dtype": "float32", "n_iter": 3},
    {"n": 512, "K": 32768, "dtype": "float32", "n_iter": 3},
]
TEMPERATURE = 0.05
LIMITS = {"float32": 2e-6, "float16": 1e-3}


def inputs(case: dict, seed: int) -> tuple[Tensor]:
    """Cosines of features and prototypes."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(case[size], 128, generator=generator), dim=1) for size in ("n", "K"))
    return ((x @ y.T).to(getattr(torch, case["dtype"])),)


@torch.no_grad()
def swav(scores: Tensor, temperature: float, n_iter: int) -> Tensor:
    """What SwAV's main_swav.py computes, on one process; half precision in float32."""
    Q = torch.exp(scores.float() / temperature).t()
    Q /= torch.sum(Q)
    K, B = Q.shape
    for _ in range(n_iter):
        Q /= torch.sum(Q, dim=1, keepdim=True)
        Q /= K
        Q /= torch.sum(Q, dim=0, keepdim=True)
        Q /= B
    Q *= B
    return Q.t().to(scores.dtype)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest; assignments lie in [0, 1]."""
    return (ours.float() - theirs.float()).abs().max().item()


def rows(quick: bool) -> Iterator[Row]:
    """Every case."""
    for case in CASES[:3] if quick else CASES:
        calls: dict[str, Callable[[Tensor], Tensor]] = {
            "ucmkd_fast": partial(assign, temperature=TEMPERATURE, n_iter=case["n_iter"]),
            "SwAV's lines in torch": partial(swav, temperature=TEMPERATURE, n_iter=case["n_iter"]),
        }
        limits = dict.fromkeys(calls, LIMITS[case["dtype"]])
        timings = compare(calls, partial(inputs, case), difference, limits, rounds=7)
        extra = {} if quick or case["n"] * case["K"] < 1 << 22 else memory(case)
        yield Row(case, timings, extra)


def memory(case: dict) -> dict[str, float]:
    """Peak growth of both, as multiples of the scores."""
    sizes = [str(case[key]) for key in ("n", "K", "dtype", "n_iter")]
    scores = inputs(case, 0)[0].nbytes / 2**20
    peaks = {who: peak_growth_mb(__name__, [who, *sizes]) for who in ("ours", "torch")}
    return {f"peak over scores, {who}": round(mb / scores, 2) for who, mb in peaks.items()}


def peak(who: str, n: int, k: int, dtype: str, n_iter: int) -> None:
    """Child process."""
    call = assign if who == "ours" else swav
    call(inputs({"n": 64, "K": 64, "dtype": dtype}, 0)[0], TEMPERATURE, n_iter)
    (scores,) = inputs({"n": n, "K": k, "dtype": dtype}, 1)
    report_peak(lambda: call(scores, TEMPERATURE, n_iter))


if __name__ == "__main__":
    peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
