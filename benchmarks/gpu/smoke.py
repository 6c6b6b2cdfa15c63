"""One small problem per regime, dtype, kind of gradient and switch against the reference in float64."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import smoke_switches
import torch
from overrides import under
from smoke_checks import batch, captured, label, linear, loss, refused, solve
from worker import Case

import ucmkd_fast as uk

REGIMES = ("auto", "block", "resident", "sweep")
DTYPES = {"f32": torch.float32, "f64": torch.float64}


def environment() -> dict[str, Any]:
    built = {k: str(v) for k, v in uk._native._C.build_info().items()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name, "capability": f"{properties.major}.{properties.minor}", "torch": torch.__version__,
        "multiprocessors": properties.multi_processor_count, **built,
    }  # fmt: skip


def cases() -> list[Case]:
    found = [Case("device and build", environment)]
    for name, dtype in DTYPES.items():
        for regime in REGIMES:
            for grad in ("unrolled", "implicit", "envelope"):
                run = partial(solve, 33, 20, regime, dtype, grad, grad == "unrolled")
                found.append(Case(f"33x20 {regime} {name} {grad}", run, 30))
            larger = partial(solve, 130, 257, regime, dtype, "unrolled", True)
            found.append(Case(f"130x257 {regime} {name}", larger, 30))
    for name, dtype in DTYPES.items():  # masses that give way: plain iterates, and shifted ones
        for regime in REGIMES:
            for grad in ("unrolled", "implicit"):
                run = partial(solve, 33, 20, regime, dtype, grad, True, unbalanced=(0.3, 1.0))
                found.append(Case(f"33x20 {regime} {name} {grad}, unbalanced", run, 30))
        run = partial(solve, 130, 257, "auto", dtype, "unrolled", True, unbalanced=(0.1, math.inf), tol=1e-3)
        found.append(Case(f"130x257 auto {name}, unbalanced with tol", run, 30))
    for n, m in ((300, 5001), (2100, 2048)):
        run = partial(solve, n, m, "auto", torch.float32, "unrolled", True, unbalanced=(0.5, 0.5))
        found.append(Case(f"{n}x{m} auto f32, unbalanced", run, 60))
    sizes = [(64, 64), (128, 128), (256, 256), (512, 512), (1024, 1024), (700, 1001), (2100, 2048)]
    for n, m in sizes:
        found.append(Case(f"{n}x{m} auto f32", partial(solve, n, m, "auto", torch.float32, "unrolled"), 60))
        if n <= 1024:
            found.append(
                Case(f"{n}x{m} sweep f32", partial(solve, n, m, "sweep", torch.float32, "unrolled"), 60)
            )
    for n, m in ((1, 9), (97, 128), (127, 65), (300, 5001), (64, 20_000)):
        found.append(
            Case(f"{n}x{m} auto f32", partial(solve, n, m, "auto", torch.float32, "unrolled", True), 60)
        )
    for count, n, m in ((256, 64, 64), (3, 300, 200), (7, 64, 33)):
        found.append(Case(f"batch of {count}, {n}x{m}", partial(batch, count, n, m)))
    half = {**DTYPES, "bf16": torch.bfloat16}
    for name, dtype in half.items():
        found.append(Case(f"loss 130x96 {name}", partial(loss, 130, 96, dtype, max_iter=20)))
        panels = partial(loss, 300, 257, dtype, max_iter=10, memory_budget=300 * 257 * 8)
        found.append(Case(f"panels 300x257 {name}", partial(under, panels, streamed=False)))
    for metric in ("l2", "sqeuclidean", "l1", "chordal"):
        run = partial(loss, 130, 96, torch.float32, max_iter=20, metric=metric, reg=0.5)
        found.append(Case(f"loss 130x96 {metric}", run))
    for name, dtype in DTYPES.items():
        for k in (1, 10, 1000, 1001, 20_000):
            kappa = "live" if k == 1000 else "detached"
            found.append(Case(f"label 65x{k} {name} {kappa}", partial(label, 65, k, dtype, kappa)))
        found.append(Case(f"linear label 300x501 {name}", partial(linear, 300, 501, dtype)))
    found += [
        Case(f"graph {n}x{m}", partial(captured, n, m)) for n, m in ((64, 64), (300, 411), (2100, 2048))
    ]
    found.append(Case("NaN is refused", refused))
    return found + smoke_switches.cases()
