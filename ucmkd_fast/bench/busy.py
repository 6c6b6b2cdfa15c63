"""A call beside processes that hold the processors: the loss and its gradient, idle and busy.

Twice as many busy processes as there are processors, started and ended here; two threads, as torch has on two cores.
Single calls are timed: a mean of many says how often others get their turn, not what a call waits for.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from .. import processors
from ..ops.sinkhorn import sinkhorn_loss
from . import peers
from .harness import Row, Timing, disagreements
from .sinkhorn import LIMIT, MAX_ITER, WIDTH, error, gaussian
from .threads import on_threads

REG, THREADS = 0.1, 2


@contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen]]:
    """So many processes that compute without a pause, until the block ends."""
    running: list[subprocess.Popen] = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        time.sleep(0.5)  # until they are at it
        yield running
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def single_calls(call: Callable[..., object], inputs: tuple, seconds: float) -> list[float]:
    """Milliseconds of each call, three at least."""
    call(*inputs)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call(*inputs)
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def timings(
    table: dict[str, Callable], inputs: tuple, errors: dict[str, float], seconds: float
) -> list[Timing]:
    """All implementations, one after the other; ratios are those of the medians."""
    found: list[Timing] = []
    for name, call in table.items():
        times = single_calls(call, inputs, seconds)
        median = statistics.median(times)
        first = found[0].median_ms if found else median
        found.append(Timing(name, median, min(times), max(times), median / first, errors[name]))
    return found


def contenders() -> dict[str, Callable[[Tensor, Tensor], peers.Result]]:
    """Ours first, each on two threads."""
    ours = peers.with_gradient(lambda x, y: sinkhorn_loss(x, y, reg=REG, max_iter=MAX_ITER))
    table = {
        "ucmkd_fast": ours,
        "plain torch, log domain": peers.plain(REG, MAX_ITER),
        "POT sinkhorn2 (published code)": peers.pot_sinkhorn2(REG, MAX_ITER),
    }
    return {name: on_threads(THREADS, call) for name, call in table.items()}


def rows(quick: bool) -> Iterator[Row]:
    """Each size idle, then busy."""
    seconds = 0.5 if quick else 3.0
    count = 2 * processors.usable()
    for n in (64,) if quick else (64, 256):
        table, inputs = contenders(), gaussian(n, 0)
        errors = disagreements(table, inputs, error, dict.fromkeys(table, LIMIT))
        case = {"N": n, "M": n, "D": WIDTH, "max_iter": MAX_ITER, "threads": THREADS}
        idle = timings(table, inputs, errors, seconds)
        yield Row({"busy processes": 0, **case}, idle)
        with busy_processes(count):
            busy = timings(table, inputs, errors, seconds)
        ratios = {b.name: round(b.median_ms / i.median_ms, 2) for b, i in zip(busy, idle, strict=True)}
        yield Row({"busy processes": count, **case}, busy, {"median, times the idle one": ratios})
