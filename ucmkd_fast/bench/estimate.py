"""What `cost_model` expects against what a loss and its gradient of x take, on ceilings measured in the same run.

Time of one matrix, panels, batches, ragged lists and two processes; growth of the peak of memory. Clusters and a small
reg: every iteration runs. More than twice off, either way, is a failure.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops.sinkhorn import sinkhorn_loss
from . import cost_model, peers
from .ceilings import Ceilings, ceilings, measure
from .cost_model import Size
from .harness import Disagreement, Row, Timing, compare, peak_growth_mb, report_peak
from .sinkhorn import clustered

LIMIT, REG = 2.0, 0.02
# (N, D, iterations, whether the cost may be kept).
CASES = [(64, 512, 100, True), (256, 512, 100, True), (1024, 512, 100, True), (1024, 64, 100, True),
         (2048, 512, 50, True), (4000, 64, 20, True), (4000, 512, 20, True), (1024, 64, 20, False),
         (2048, 512, 10, False), (4000, 64, 10, False)]  # fmt: skip
BATCHES = [(64, 64, 64, 50), (16, 200, 64, 50)]  # (B, N, D, iterations)
SHARED = [(2000, 64, 20), (4000, 64, 10)]  # (N of both, D, iterations), two processes of one thread
MEMORY = [(2048, 64, 20, True), (4000, 64, 10, True), (4000, 64, 10, False)]


def features(n: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clusters, (n, width) twice."""
    x, y = clustered(n, seed)
    return x[:, :width].contiguous(), y[:, :width].contiguous()


def loss(x: Tensor, y: Tensor, **options: Any) -> Any:
    """`sinkhorn_loss` at this benchmark's reg."""
    return sinkhorn_loss(x, y, reg=REG, **options)


def one_problem(size: Size) -> Callable[[Tensor, Tensor], Any]:
    """The loss and its gradient of x, as `estimate` is asked about them."""
    return peers.with_gradient(partial(loss, max_iter=size.iterations, memory_budget=size.memory_budget))


def rows(quick: bool) -> Iterator[Row]:
    """A row a case."""
    now = ceilings(torch.float32, recalibrate=True)
    if not now.alone:
        raise ValueError(
            f"estimate is measured on an idle machine: other work left {now.share:.0%} of the processors"
        )
    for n, width, iterations, kept in CASES[:2] if quick else CASES:
        size = Size(n, n, width, iterations, memory_budget=(12 if kept else 4) * n * n)
        result = loss(*features(n, width, 0), max_iter=iterations, return_result=True)
        if (ran := int(result.n_iter)) != iterations:
            raise Disagreement(f"{ran} of {iterations} iterations change anything at N = {n}")
        yield time_row(size, now, one_problem(size), partial(features, n, width))
    for batch, n, width, iterations in BATCHES[:1] if quick else BATCHES:
        size = Size(n, n, width, iterations, batch)
        for ragged in (False, True):
            yield time_row(size, now, many_problems(size, ragged), partial(many_features, size), ragged)
    if quick:
        return
    if dist.is_available() and dist.is_gloo_available():
        for n, width, iterations in SHARED:
            yield shared_row(Size(n, n, width, iterations, devices=2))
    for case in MEMORY:
        yield memory_row(*case)


def time_row(size: Size, now: Ceilings, call: Callable, inputs: Callable, ragged: bool = False) -> Row:
    """Expected and measured milliseconds of one case."""
    timings = compare({"ucmkd_fast": call}, inputs, lambda *_: 0.0, {}, 5, 3)
    return _row(size, cost_model.estimate(size, now), timings, "ragged list" if ragged else None)


def many_features(size: Size, seed: int) -> tuple[Tensor, Tensor]:
    """Clusters of B problems, flat, (B N, D) twice."""
    parts = [features(size.n, size.d, seed * size.batch + k) for k in range(size.batch)]
    x, y = (torch.cat(side) for side in zip(*parts, strict=True))
    return x, y


def many_problems(size: Size, ragged: bool) -> Callable[[Tensor, Tensor], Any]:
    """B problems in one call: (B, N, D), or a list whose sizes go from N / 2 to 3 N / 2."""
    t, shape = size.iterations, (size.batch, size.n, size.d)
    if not ragged:
        return peers.with_gradient(lambda x, y: loss(x.view(shape), y.view(shape), max_iter=t).sum())
    counts = torch.linspace(size.n / 2, 3 * size.n / 2, size.batch).long()
    counts[-1] += size.batch * size.n - counts.sum()
    at = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return peers.with_gradient(lambda x, y: loss(x, y, offsets=(at, at), max_iter=t).sum())


def shared_row(size: Size) -> Row:
    """Expected and measured milliseconds of two processes of one thread, which share the rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = cost_model.estimate(size, measure(torch.float32))  # not kept: of one thread
    finally:
        torch.set_num_threads(before)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __name__, "rank", str(size.n), str(size.d), str(size.iterations)]
        ranks = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "RANK": str(rank), "MEET": folder},
            )
            for rank in range(size.devices)
        ]
        said = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError("a process failed")
    ms = float(said[0])
    return _row(size, expected, [Timing("two processes", ms, ms, ms, 1.0, 0.0)])


def memory_row(n: int, width: int, iterations: int, kept: bool) -> Row:
    """Expected and measured growth of the peak of memory, in a process of its own."""
    size = Size(n, n, width, iterations, memory_budget=(12 if kept else 4) * n * n)
    measured = peak_growth_mb(
        __name__, ["peak", str(n), str(width), str(iterations), str(size.memory_budget)]
    )
    expected = cost_model.estimate(size, _NO_TIME)
    ratio = _within(
        expected.memory / 2**20 / measured, f"{expected.memory / 2**20:.3g} MB of memory", measured, size
    )
    return Row(
        {"what": "memory", "N": n, "M": n, "D": width, "max_iter": iterations, "regime": expected.regime},
        [],
        {"expected, MB": round(expected.memory / 2**20, 1), "measured, MB": round(measured, 1),
         "expected / measured": round(ratio, 2)},
    )  # fmt: skip


#: Where only the memory is asked about.
_NO_TIME = Ceilings(1, 1.0, 1.0, ((1.0, 1.0),), 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def _within(ratio: float, expected: str, measured: float, size: Size) -> float:
    if not 1 / LIMIT <= ratio <= LIMIT:
        raise Disagreement(f"{expected} expected of {asdict(size)}, {measured:.3g} measured")
    return ratio


def _row(size: Size, expected: cost_model.Estimate, timings: list[Timing], regime: str | None = None) -> Row:
    ms = expected.seconds * 1e3
    ratio = _within(ms / timings[0].median_ms, f"{ms:.3g} ms", timings[0].median_ms, size)
    case = {"N": size.n, "M": size.m, "D": size.d, "max_iter": size.iterations}
    if size.batch > 1:
        case = {"B": size.batch, **case}
    return Row(
        {**case, "regime": regime or expected.regime},
        timings,
        {
            "expected, ms": round(ms, 3),
            "expected / measured": round(ratio, 2),
            **{f"of which {k}, ms": round(v * 1e3, 3) for k, v in expected.parts.items()},
        },
    )


def rank_main(n: int, width: int, iterations: int) -> None:
    """One of two processes: prints the milliseconds of the fastest of five calls."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['MEET']}/meet", rank=rank, world_size=2)
    x, y = (z.tensor_split(2)[rank].contiguous() for z in features(n, width, 0))
    call, times = peers.with_gradient(partial(loss, max_iter=iterations, group=dist.group.WORLD)), []
    for _ in range(6):
        dist.barrier()
        begin = time.perf_counter()
        call(x, y)
        times.append((time.perf_counter() - begin) * 1e3)
    print(min(times[1:]))
    dist.destroy_process_group()


def peak_main(n: int, width: int, iterations: int, budget: int) -> None:
    """Prints the growth of the peak of memory (MB)."""
    call = one_problem(Size(n, n, width, iterations, memory_budget=budget))
    call(*features(200, width, 0))  # libraries and threads are there before the measurement
    x, y = features(n, width, 1)
    ctypes.CDLL(None).malloc_trim(0)  # what making them left behind would be used first
    report_peak(lambda: call(x, y))


if __name__ == "__main__":
    mains: dict[str, Callable[..., None]] = {"rank": rank_main, "peak": peak_main}
    mains[sys.argv[1]](*map(int, sys.argv[2:]))
