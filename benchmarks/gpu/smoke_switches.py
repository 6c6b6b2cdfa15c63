"""Cases of smoke for what `_device` switches on or off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import smoke_checks
import torch
from overrides import replaced, under
from smoke_checks import batch, distance, solve, verdict
from torch import Tensor
from worker import Case

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device
from ucmkd_fast.ops.cost import METRICS
from ucmkd_fast.reference import sinkhorn as reference

DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
# Of the value, and of gradients, which come in the type of the features.
LIMITS = {
    torch.float64: (1e-10, 1e-8),
    torch.float32: (2e-5, 2e-4),
    torch.float16: (2e-5, 1e-2),
    torch.bfloat16: (2e-5, 1e-2),
}
REG = {"cosine": 0.1, "chordal": 0.1}  # of others 2, times as much for more features
# Problems that a cluster's shared memory holds: rows, columns, type, blocks (0: as the library chooses).
CLUSTERS = [
    (33, 20, "f32", 0), (33, 20, "f64", 0), (130, 257, "f32", 0), (130, 257, "f64", 0), (256, 256, "f32", 0),
    (512, 512, "f32", 0), (200, 200, "f64", 0), (256, 256, "f32", 4), (256, 256, "f32", 16), (411, 300, "f32", 16),
]  # fmt: skip
BATCHES = [(3, 300, 200), (7, 140, 133), (32, 256, 256)]


def barriers() -> list[Case]:
    """Grids with the barrier of the CUDA runtime."""
    found = []
    for n, m in ((33, 20), (130, 257), (1024, 1024), (2100, 2048)):
        for regime in ("resident", "sweep"):
            run = partial(solve, n, m, regime, torch.float32, "unrolled", n < 1000)
            name = f"{n}x{m} {regime} f32, library barrier"
            found.append(Case(name, partial(under, run, own_barrier=False), 30))
    return found


def clusters() -> list[Case]:
    """Each kind of gradient; of batches each problem has its cluster."""
    found = []
    for n, m, name, grid in CLUSTERS:
        for grad in ("unrolled", "implicit", "envelope") if n == 33 else ("unrolled", "implicit"):
            run = partial(solve, n, m, "cluster", DTYPES[name], grad, grad == "unrolled")
            case = f"{n}x{m} cluster {name} {grad}" + (f", {grid} blocks" if grid else "")
            tuning = {"grid": grid} if grid else {}
            found.append(Case(case, partial(under, run, clusters=True, tuning=tuning), 30))
    for count, n, m in BATCHES:
        run = partial(
            under, partial(batch, count, n, m), clusters=True, regime=smoke_checks.REGIMES["cluster"]
        )
        found.append(Case(f"batch of {count}, {n}x{m} cluster", run))
    return found


def drawn(shape: tuple[int, int, int], dtype: torch.dtype, equal: bool, classes: int) -> dict[str, Tensor]:
    """Features, masses and a cost by class, by their names in `sinkhorn_loss`."""
    n, m, d = shape
    torch.manual_seed(1000 * n + d)
    x, y = (torch.randn(k, d).to(dtype) for k in (n, m))
    if equal:
        count = min(n, m) // 3
        y[:count] = x[-count:]
    of_cost = torch.promote_types(dtype, torch.float32)
    a, b = ((torch.rand(k) + 0.1).to(of_cost) for k in (n, m))
    found = {"x": x, "y": y, "a": a / a.sum(), "b": b / b.sum()}
    if classes:
        found |= {"class_cost": torch.rand(n, classes).to(of_cost), "y_labels": torch.arange(m) % classes}
    return found


def outcome(loss: Callable[..., Tensor], tensors: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """The value, and the gradient of everything that has one; those of masses are defined up to a constant."""
    leaves = {name: z.requires_grad_() for name, z in tensors.items() if z.is_floating_point()}
    value = loss(**tensors, **options)
    found = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    for name in ("a", "b"):
        found[name] = found[name].double() - found[name].double().mean()
    return {"value": value.detach(), **found}


def streamed(
    shape: tuple[int, int, int], dtype: torch.dtype, metric: str, equal: bool = False, classes: int = 0
) -> dict[str, Any]:
    """A loss whose cost is made where it is read.

    ``equal``: a third of the rows of y are rows of x; ``classes`` adds a cost by class.
    """
    n, m, d = shape
    given = drawn(shape, dtype, equal, classes)
    options = {"metric": metric, "reg": REG.get(metric, 2.0) * max(d, 4) / 8, "max_iter": 6}
    ours = {name: z.to(smoke_checks.DEVICE) for name, z in given.items()}
    truth = {name: z.double() if z.is_floating_point() else z for name, z in given.items()}
    visits: list[bool] = []
    with replaced(_device.kernels, cuda_streamed=noting(_device.kernels.cuda_streamed, visits)):
        # memory for less than the cost and its gradient
        got = outcome(uk.sinkhorn_loss, ours, **options, memory_budget=n * m * 4)
    want = outcome(reference.sinkhorn_loss, truth, **options)
    of_value, of_gradient = LIMITS[dtype]
    errors = {name: distance(got[name], want[name]) for name in want}
    value = errors.pop("value")
    found = verdict(value=(value, of_value), gradient=(max(errors.values()), of_gradient))
    wanted = _device.tensor_cores and dtype.itemsize == 2
    if not visits or set(visits) != {wanted}:
        found["failed"] = f"tensor cores in each sweep: {visits}, asked for: {wanted}"
    return {**found, "sweeps": len(visits)}


def noting(entry: Callable[..., None], visits: list[bool]) -> Callable[..., None]:
    """The entry, which also notes of each sweep whether tensor cores multiply."""

    def run(call: Any, visit: Any, features: Any) -> None:
        visits.append(visit.tensor_cores)
        entry(call, visit, features)

    return run


def sweeps() -> list[Case]:
    """Sweeps that store no cost: every metric, types, tiles at the edges of the matrix, rows that are equal."""
    found = [
        Case(f"streamed {n}x{m} {metric} f32, D = {d}", partial(streamed, (n, m, d), torch.float32, metric))
        for metric in METRICS
        for n, m, d in ((300, 257, 3), (129, 1000, 17))
    ]
    for name, dtype in DTYPES.items():
        for d in (3, 40):
            run = partial(streamed, (300, 257, d), dtype, "l2", True)
            found.append(Case(f"streamed 300x257 l2 {name}, D = {d}, equal rows", run))
        run = partial(streamed, (260, 131, 12), dtype, "l2", False, 5)
        found.append(Case(f"streamed 260x131 l2 {name}, D = 12, cost by class", run))
    found.append(
        Case("streamed 2100x2048 l2 f32, D = 3", partial(streamed, (2100, 2048, 3), torch.float32, "l2"), 60)
    )
    return [Case(c.name, partial(under, c.run, streamed=True), c.limit) for c in found]


def tensor_cores() -> list[Case]:
    """Products of half precision: widths that tensor cores take at once, more, and less."""
    found = []
    for name in ("f16", "bf16"):
        for metric in ("cosine", "l2"):
            for n, m, d in ((300, 257, 16), (129, 1000, 40), (256, 256, 512)):
                run = partial(streamed, (n, m, d), DTYPES[name], metric, metric == "l2")
                case = f"tensor cores {n}x{m} {metric} {name}, D = {d}"
                found.append(Case(case, partial(under, run, streamed=True, tensor_cores=True)))
    return found


def cases() -> list[Case]:
    return barriers() + clusters() + sweeps() + tensor_cores()
