"""What this machine can do at most, measured in about a second and kept: the terms of `cost_model`.

flops         torch.mm
exponentials  torch.exp, in the cache
bandwidth     torch.sum, over what one thread reads: from the caches to memory
problem, vector   many problems of 16 x 16 in one call: what each costs, and each row and column in an iteration
call          a loss with its gradient of one pair, where nothing but the call is left
all-reduce    gloo between two ranks of this process, over the loopback interface

Rates are the fastest of some runs: other work on the machine makes a run slower, never faster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..data.cache import cache_dir
from ..ops.sinkhorn import sinkhorn_loss
from .harness import machine
from .peers import with_gradient

DTYPES = {"float32": torch.float32, "float64": torch.float64}  # half precision is computed in float32
_READ = [1 << 17, 1 << 19, 1 << 21, 1 << 23, 1 << 25]  # bytes of one thread
FRESH = 32 << 20  # bytes from which a block is always new (glibc's DEFAULT_MMAP_THRESHOLD_MAX)
_ALONE = 0.7
_MOST = 1 << 29  # bytes of all threads


@dataclass(frozen=True)
class Ceilings:
    """Rates of all threads together, for one type of numbers; times in seconds, sizes in bytes."""

    threads: int
    flops: float  # a second
    exponentials: float  # a second
    bandwidth: tuple[
        tuple[float, float], ...
    ]  # (bytes a thread reads, bytes a second of all threads), falling
    problem: float  # seconds of a thread, one small problem of a batch, whatever its size
    vector: float  # seconds of a thread, a row or column in an iteration, forward and back, beside the matrix
    fresh: float  # bytes a second, of memory that is new to the process
    call: float  # one call, forward and backward, of nothing
    visit: float  # one sweep that makes its cost, of nothing
    latency: float | None  # of one all-reduce of two ranks; None without gloo
    link: float | None  # bytes a second that each of two ranks sends in an all-reduce
    share: float = 1.0  # of the processors, that the measurement got

    @property
    def alone(self) -> bool:
        """Whether the machine was idle enough for the figures to be ceilings."""
        return self.share >= _ALONE


def _fastest(work: Callable[[], Any], seconds: float = 0.08) -> float:
    """Seconds of the fastest run: at least three, for about so long."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _bandwidth(dtype: torch.dtype) -> tuple[tuple[float, float], ...]:
    threads = torch.get_num_threads()
    points: list[tuple[float, float]] = []
    for size in _READ:
        if points and size * threads > _MOST:
            break
        values = torch.ones(size * threads // dtype.itemsize, dtype=dtype)
        points.append((float(size), values.nbytes / _fastest(partial(torch.sum, values))))
    # A cache is not slower than what lies behind it: there the call was measured, not the reading.
    return tuple((size, max(rate for _, rate in points[k:])) for k, (size, _) in enumerate(points))


def _small(dtype: torch.dtype) -> tuple[float, float]:
    batch, n, more = 64, 16, 40
    x = torch.rand(batch, n, 1, dtype=dtype, generator=torch.Generator().manual_seed(0))
    times = []
    for count in (1, 1 + more):  # so spread that every iteration runs
        loss: Any = partial(sinkhorn_loss, metric="l1", reg=0.05, max_iter=count)
        call = with_gradient(lambda x, y, loss=loss: loss(x, y).sum())
        times.append(_fastest(partial(call, x, x * x)) * min(torch.get_num_threads(), batch) / batch)
    return times[0], max(0.0, times[1] - times[0]) / more / (2 * n)


def _call(dtype: torch.dtype) -> float:
    x, y = torch.ones(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    call = with_gradient(lambda x, y: sinkhorn_loss(x, y, max_iter=1))
    return _fastest(lambda: call(x, y))


def _visit(dtype: torch.dtype, exponentials: float) -> float:
    n, iterations = 128, 10
    x, y = torch.ones(n, 1, dtype=dtype), torch.ones(n, 1, dtype=dtype)
    budget = 4 * n * n
    call = with_gradient(lambda x, y: sinkhorn_loss(x, y, max_iter=iterations, memory_budget=budget))
    sweeps = 2 * iterations + 3
    return max(0.0, _fastest(lambda: call(x, y)) / sweeps - n * n / exponentials)


def _all_reduce() -> tuple[float | None, float | None]:
    """Latency and bytes a second of gloo between two ranks, which are threads here; (None, None) without gloo."""
    if not (dist.is_available() and dist.is_gloo_available()):
        return None, None
    store, sizes = dist.HashStore(), (1, 1 << 20)

    def rank(index: int) -> list[float]:
        group: Any = dist.ProcessGroupGloo(store, index, 2, timedelta(seconds=30))
        found = []
        for size in sizes:
            values, times = torch.zeros(size), []
            for _ in range(20):  # the same number on both
                begin = time.perf_counter()
                group.allreduce([values]).wait()
                times.append(time.perf_counter() - begin)
            found.append(sorted(times)[len(times) // 2])
        return found

    with ThreadPoolExecutor(2) as pool:
        small, large = max(pool.map(rank, range(2)))
    return small, sizes[1] * 4 / max(large - small, 1e-9)


def measure(dtype: torch.dtype) -> Ceilings:
    """Measure now."""
    a, b = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
    out = torch.empty(1024, 1024, dtype=dtype)
    flops = 2 * a.numel() * b.shape[1] / _fastest(lambda: torch.mm(a, b, out=out), 0.2)
    threads = torch.get_num_threads()
    values = torch.full((threads * (1 << 16),), -0.5, dtype=dtype)
    result = torch.empty_like(values)
    begin, begin_work = time.perf_counter(), time.process_time()
    exponentials = values.numel() / _fastest(partial(torch.exp, values, out=result))
    share = (time.process_time() - begin_work) / (time.perf_counter() - begin) / threads
    fresh = FRESH * 2 / _fastest(lambda: torch.empty(FRESH * 2, dtype=torch.uint8).fill_(1))
    call, visit = _call(dtype), _visit(dtype, exponentials)
    latency, link = _all_reduce()
    return Ceilings(
        threads,
        flops,
        exponentials,
        _bandwidth(dtype),
        *_small(dtype),
        fresh,
        call,
        visit,
        latency,
        link,
        share,
    )


def _identity() -> dict[str, Any]:
    """What the figures belong to: another processor, number of threads or torch measures again."""
    about = machine()
    return {key: about[key] for key in ("cpu", "cores", "threads", "level", "torch", "version")}


def ceilings(dtype: torch.dtype, recalibrate: bool = False) -> Ceilings:
    """Of this machine: read from the user's cache, measured where it holds none (or ``recalibrate``).

    What was measured while other work ran (not `Ceilings.alone`) is returned, and not kept.
    """
    (name,) = (name for name, of in DTYPES.items() if of == dtype)
    path, identity = cache_dir() / f"ceilings-{name}.json", _identity()
    if not recalibrate and (kept := _read(path, identity)) is not None:
        return kept
    found = measure(dtype)
    if not found.alone:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps({"machine": identity, "ceilings": asdict(found)}, indent=1) + "\n")
    beside.replace(path)
    return found


def _read(path: Path, identity: dict[str, Any]) -> Ceilings | None:
    """What the file holds of this machine; None where it is absent, of another one or damaged."""
    try:
        kept = json.loads(path.read_text())
        if kept["machine"] != identity:
            return None
        points = tuple((float(size), float(rate)) for size, rate in kept["ceilings"].pop("bandwidth"))
        return Ceilings(bandwidth=points, **kept["ceilings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
