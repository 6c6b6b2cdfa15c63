"""Cases of speed for what is off by default: each beside what runs without it, in the same process."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from measure import ITERATIONS, REG, features, milliseconds, ours, peak_megabytes, replay_milliseconds
from overrides import no_clusters, no_early_end, overridden
from worker import Case

import ucmkd_fast as uk

CLUSTER = {"clusters": True, "regime": 6}
BATCHES = ((1, 256), (1, 512), (32, 256))  # problems, N
# Of costs that do not fit: N, D, type.
FEATURES = [(n, d, torch.float32) for n in (8192, 16384) for d in (3, 32, 64)] + [
    (n, 512, torch.bfloat16) for n in (8192, 16384)
]


def per_iteration(C: torch.Tensor) -> dict[str, float]:
    """Microseconds of an iteration of all problems (B, N, N): forward alone, and with the gradient."""

    def forward(iterations: int) -> None:
        with torch.no_grad():
            uk.sinkhorn(C, reg=REG, max_iter=iterations)

    def both(iterations: int) -> torch.Tensor:
        leaf = C.detach().requires_grad_()
        value = uk.sinkhorn(leaf, reg=REG, max_iter=iterations).value.sum()
        return torch.autograd.grad(value, leaf)[0]

    found = {}
    with no_early_end():
        for name, run in (("forward", forward), ("whole", both)):
            few, many = (replay_milliseconds(partial(run, t), 0.5) for t in (1, ITERATIONS + 1))
            found[f"{name}_us"] = 1e3 * (many - few) / ITERATIONS
    return found


def clusters(count: int, n: int) -> dict[str, Any]:
    """An iteration with clusters beside one without."""
    if why := no_clusters():
        return {"left_out": why}
    C = torch.rand(count, n, n, device="cuda")
    off = per_iteration(C)
    with overridden(**CLUSTER):
        on = per_iteration(C)
    found = {f"{name}_{state}": row[name] for state, row in (("off", off), ("on", on)) for name in row}
    return {**found, "times": off["whole_us"] / on["whole_us"]}


def stored_and_not(n: int, d: int, dtype: torch.dtype) -> dict[str, Any]:
    """20 iterations, loss and gradient of x: costs stored in panels beside costs made where they are read."""
    x, y = (z.to(dtype) for z in features(n, d))
    options = {"metric": "l2", "reg": float(d) ** 0.5, "max_iter": 20, "memory_budget": n * n * 8}

    def run() -> Any:
        return ours(x, y, **options)

    found: dict[str, Any] = {}
    results = []
    for name, streamed in (("panels", False), ("streamed", True)):
        with overridden(streamed=streamed, tensor_cores=streamed and dtype.itemsize == 2):
            results.append(run())
            found[f"{name}_ms"] = milliseconds(run, 1.0, warm=1)
            found[f"{name}_peak_mb"] = peak_megabytes(run)
    (value, grad), (other, other_grad) = results
    found["value_differs"] = abs((other / value).item() - 1)
    found["gradient_differs"] = ((other_grad - grad).norm() / grad.norm()).item()
    if not max(found["value_differs"], found["gradient_differs"]) <= (1e-3 if dtype.itemsize > 2 else 1e-2):
        found["failed"] = "both ways do not compute the same"
    return {**found, "times": found["panels_ms"] / found["streamed_ms"]}


def cases() -> list[Case]:
    found = [Case(f"clusters, {count} x {n} x {n}", partial(clusters, count, n), 60) for count, n in BATCHES]
    for n, d, dtype in FEATURES:
        name = f"costs that do not fit, N = {n}, D = {d}, {str(dtype)[6:]}"
        found.append(Case(name, partial(stored_and_not, n, d, dtype), 90))
    return found
