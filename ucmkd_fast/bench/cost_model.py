"""How `sinkhorn_loss` would run a problem, what memory it takes and how long: a loss and its gradient of x.

The regime is asked of the functions that choose it in the library. Memory is counted. Time is a sum over the steps
of the algorithm, each at the ceiling that bounds it (`ceilings`), with all iterations run in plain scaling: fewer
run where they stop changing anything or ``tol`` is reached, and a problem that leaves the range of plain scaling
takes longer. ``E`` is N M below.

    dense     product 2 E D, one exponential an element, 2 T sweeps over the plan (each reads it where it lies, and
              its rows a second time, from the nearest cache), T times what is done to rows and columns, weights 4 T E,
              product 2 E D; pages of large blocks
    panels    2 T + 3 sweeps, each with a product 2 E D and one exponential an element; the same weights and product
    shared    as panels with N / P rows, products once where the cost fits; an all-reduce of M numbers a sweep
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .._native import _C
from ..ops import checks, memory
from .ceilings import FRESH, Ceilings

REGIMES = {
    "one matrix": "the cost and the plan are kept",
    "batch": "one call, problems spread over the threads, the matrices of each kept",
    "panels": "the cost is made panel by panel in every sweep",
    "shared": "every process keeps the cost of its rows",
    "shared, panels": "every process makes the cost of its rows panel by panel",
}

# Passes over matrices, counted in the kernels: reads and writes.
_BUILD, _LAST, _FINISH, _PANEL = 3, 2, 4, 2


@dataclass(frozen=True)
class Size:
    """A problem as `sinkhorn_loss` gets it; ``n`` and ``m`` are of all processes."""

    n: int
    m: int
    d: int
    iterations: int = 100
    batch: int = 1
    devices: int = 1
    memory_budget: int | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("n", "m", "d", "iterations", "batch", "devices"):
            checks.count_at_least_one(name, getattr(self, name))
        if self.memory_budget is not None:
            checks.count_at_least_one("memory_budget", self.memory_budget)
        if self.batch > 1 and (self.devices > 1 or self.memory_budget is not None):
            raise ValueError(
                "memory_budget and devices are for one problem, as in sinkhorn_loss: got a batch"
            )

    @property
    def rows(self) -> int:
        """Rows of x in the process that has most."""
        return math.ceil(self.n / self.devices)


@dataclass(frozen=True)
class Estimate:
    """What to expect of one process."""

    regime: str
    panel_rows: int | None
    memory: int  # bytes beyond the features, at the peak
    matrices: int  # bytes of the matrices of the dense path, for comparison
    parts: dict[str, float]  # seconds

    @property
    def seconds(self) -> float:
        """Of a loss and its gradient."""
        return sum(self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "means": REGIMES[self.regime], "seconds": self.seconds}


def estimate(size: Size, ceilings: Ceilings) -> Estimate:
    """Regime, memory and time of a loss and its gradient of x.

    Raises:
        MemoryError: the budget does not hold the smallest panels, as in the library.
        NotImplementedError: several processes where torch has no gloo: an all-reduce cannot be measured.
    """
    itemsize = size.dtype.itemsize
    streamed = size.batch == 1 and memory.needs_panels(size.rows, size.m, itemsize, True, size.memory_budget)
    matrices = size.batch * memory.dense_bytes(size.rows, size.m, itemsize, True)
    if not streamed and size.devices == 1:
        regime = "one matrix" if size.batch == 1 else "batch"
        return Estimate(regime, None, matrices + _dense_vectors(size), matrices, _dense(size, ceilings))
    rows = memory.panel_rows(size.rows, size.m, itemsize, size.memory_budget)
    regime = "panels" if size.devices == 1 else "shared, panels" if streamed else "shared"
    parts = _panels(size, ceilings, rows, keep=not streamed)
    return Estimate(regime, rows, _panel_memory(size, rows, keep=not streamed), matrices, parts)


# Memory


def _dense_vectors(size: Size) -> int:
    """Both histories, and as much twice for the sweep back; the gradient of x."""
    t, both = size.iterations, size.n + size.m
    return size.batch * size.dtype.itemsize * (3 * t * both + 2 * both + size.n * size.d)


def _panel_memory(size: Size, rows: int, keep: bool) -> int:
    """A panel's weights and a BLAS's copy, rows at hand, the kept cost, y packed (and gathered), histories, stacks."""
    t, n, m = size.iterations, size.rows, size.m
    at_hand = min(rows, _C.PANEL_ROWS * torch.get_num_threads())
    vectors = 5 * t * (n + m) + n * size.d + (1 if size.devices == 1 else 3) * m * size.d
    return size.dtype.itemsize * ((n + at_hand if keep else at_hand) * m + 2 * rows * m + vectors)


# Time


def _workers(n: int, m: int, ceilings: Ceilings) -> float:
    """Threads that a sweep keeps busy; a smooth version of ``tasks_for`` in csrc/sinkhorn/tasks.h."""
    return max(1.0, min(ceilings.threads, n * m / _C.ELEMENTS_PER_TASK, n / _C.BLOCK_ROWS))


def _read(size: float, resident: float, workers: float, c: Ceilings) -> float:
    """Seconds to go through ``size`` bytes out of ``resident`` ones, which decide the cache they are in."""
    each = resident / workers
    points = c.bandwidth
    rate = points[0][1] if each <= points[0][0] else points[-1][1]
    for (low, fast), (high, slow) in zip(points, points[1:], strict=False):
        if low < each <= high:
            share = math.log(each / low) / math.log(high / low)
            rate = fast ** (1 - share) * slow**share
    return size / (rate * workers / c.threads)


def _dense(size: Size, c: Ceilings) -> dict[str, float]:
    """One matrix; a batch is as many of them, that fill the threads which one leaves idle."""
    n, m, t = size.n, size.m, size.iterations
    elements = n * m
    workers = _workers(n, m, c)
    share = workers / c.threads
    matrix = elements * size.dtype.itemsize
    parts = {
        "products": (4 * elements * size.d + 4 * t * elements) / (c.flops * share),
        "exponentials": elements / (c.exponentials * share),
        "sweeps": 2 * t * (_read(matrix, matrix, workers, c) + _read(matrix, 0, workers, c)),
        "vectors": t * (n + m) * c.vector,
        "passes": _read((_BUILD + _LAST + _FINISH) * matrix, 3 * matrix, workers, c),
    }
    if 2 * matrix > FRESH:  # the cost and the plan are one block, the weights another
        parts["fresh memory"] = 3 * matrix / c.fresh
    if size.batch > 1:
        parts["problem"] = c.problem
    rounds = max(1.0, size.batch * workers / c.threads)
    return {**{name: seconds * rounds for name, seconds in parts.items()}, "call": c.call}


def _panels(size: Size, c: Ceilings, rows: int, keep: bool) -> dict[str, float]:
    n, m, t = size.rows, size.m, size.iterations
    elements, sweeps = n * m, 2 * t + 3
    bytes_ = elements * size.dtype.itemsize
    products = 1 if keep else sweeps
    workers = max(1.0, min(_workers(n, m, c), rows / _C.BLOCK_ROWS))
    share = workers / c.threads
    at_hand = bytes_ if keep else min(rows, _C.PANEL_ROWS * workers) * m * size.dtype.itemsize
    parts = {
        "products": (2 * elements * size.d * (products + 1) + 4 * t * elements) / (c.flops * share),
        "exponentials": sweeps * elements / (c.exponentials * share),
        "passes": sweeps * _PANEL * _read(bytes_, at_hand, workers, c),
        "call": c.call + (sweeps + math.ceil(n / rows)) * c.visit,
    }
    if size.devices > 1:
        parts["all-reduce"] = sweeps * _all_reduce(m * size.dtype.itemsize, size.devices, c)
    return parts


def _all_reduce(size: int, devices: int, c: Ceilings) -> float:
    """A ring: 2 (P - 1) steps of 1 / P of the bytes; measured with two ranks, of which it takes two steps."""
    if c.latency is None or c.link is None:
        raise NotImplementedError(
            "devices > 1 needs a torch with gloo, to measure an all-reduce: this one has none"
        )
    return c.latency * (devices - 1) + 2 * (devices - 1) / devices * size / c.link
