"""A training step on a GPU: the bi-level step against cross-entropy, and against the published code's way.

Per batch size and method: what a step takes (the host waits once, at the end of many), what the host alone takes to
issue it, what the device is busy for, what a step captured as a graph takes, and the peak of memory. Every step is
first made once with `torch.cuda.set_sync_debug_mode("error")`: nothing in it may wait for the device.

"without FA": the FA loss replaced by a mean of the features, so that its own time is apart. "by copies" is
`reference/bilevel.py` (a deepcopy of the student per step) with POT's `sinkhorn2`, unrolled by autograd, in the place
of the FA loss: what the published code does.

    python benchmarks/gpu_training.py --out runs/gpu/training.jsonl [--seconds 150]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tree that gpu_check.sh built, not an installation
from ucmkd_fast.bench import bilevel, peers
from ucmkd_fast.data.batch import Batch
from ucmkd_fast.reference import bilevel as copies

Run = Callable[[Batch], Tensor]

BATCHES = (64, 256, 1024, 4096)
REG, ITERATIONS = 0.1, 100


def batch(n: int) -> Batch:
    """As `bench.bilevel` makes it, on the device."""
    return bilevel.batch(n, 0).to("cuda")


def by_copies(preset: str) -> Run:
    """A step of the published code's way: a deepcopy of the student, POT's unrolled `sinkhorn2`."""
    import ot

    def fa(x: Tensor, y: Tensor, *, metric: str, reg: float, max_iter: int) -> Tensor:
        a, b = peers.uniform(len(x), x), peers.uniform(len(y), y)
        return ot.sinkhorn2(a, b, peers.cosine(x, y), reg, numItermax=max_iter, stopThr=0, warn=False)

    model = bilevel.student().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    head = nn.Linear(bilevel.WIDTH, bilevel.CLASSES).cuda()

    def run(data: Batch) -> Tensor:
        model.train()
        ours, copies.sinkhorn_loss = copies.sinkhorn_loss, fa
        try:
            parts = copies.bilevel_backward(
                model, head, data.x, data.y, data.teacher_feature, preset=preset, inner_lr=0.005, metric="cosine",
                reg=REG, max_iter=ITERATIONS,
            )  # fmt: skip
        finally:
            copies.sinkhorn_loss = ours
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return parts["loss"]

    return run


def device_ms(call: Callable[[], Any], repeats: int) -> tuple[float, int]:
    """Milliseconds that kernels and copies take per call, and how many there are."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    events = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(e.device_time for e in events) / repeats / 1e3, len(events) // repeats


def wall_ms(call: Callable[[], Any], seconds: float) -> tuple[float, float, int]:
    """Milliseconds per call with the device, and of the host alone until all are issued, and how many were made."""
    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    repeats = max(3, min(100, int(seconds / (time.perf_counter() - begin))))
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    issued = time.perf_counter() - begin
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e3 / repeats, issued * 1e3 / repeats, repeats


def in_a_graph(stepper: Run, data: Batch) -> float | str:
    """Milliseconds of a replay of the captured step, or why it cannot be captured."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                stepper(data)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = stepper(data)
        graph.replay()
        torch.cuda.synchronize()
        if not bool(loss.isfinite()):
            return "the replayed loss is not finite"
        return wall_ms(graph.replay, 1.0)[0]
    except (RuntimeError, torch.AcceleratorError) as error:
        return f"{type(error).__name__}: {error}"[:200]


def measure(name: str, make: Callable[[], Run], n: int) -> dict[str, Any]:
    """One method at one batch size."""
    checks = name != "by copies"
    stepper, data = make(), batch(n)
    row: dict[str, Any] = {"batch": n, "method": name}
    for _ in range(2):
        loss = stepper(data)
    if not bool(loss.isfinite()):
        return {**row, "failed": f"the loss is {loss.item()}"}
    if checks:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            stepper(data)
            row["waits"] = "never"
        except RuntimeError as error:
            row["waits"] = str(error)[:200]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    stepper(data)
    torch.cuda.synchronize()
    row["peak_mib"] = (torch.cuda.max_memory_allocated() - held) / 2**20
    row["ms"], row["host_ms"], row["repeats"] = wall_ms(lambda: stepper(data), 1.0)
    row["device_ms"], row["launches"] = device_ms(lambda: stepper(data), min(row["repeats"], 5))
    if checks:
        row["graph_ms"] = in_a_graph(make(), data)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/training.jsonl"))
    parser.add_argument("--seconds", type=float, default=150)
    options = parser.parse_args()
    deadline = time.perf_counter() + options.seconds
    options.out.parent.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], Run]] = {"ce": partial(bilevel.stepper, "ce", True, "cuda")}
    for name in ("published-code", "paper"):
        makers[f"{name}, without FA"] = partial(bilevel.stepper, name, False, "cuda")
    for name in ("feature", "published-code", "paper"):
        makers[name] = partial(bilevel.stepper, name, True, "cuda")
    makers["by copies"] = partial(by_copies, "published-code")  # a row that says so where POT is not here
    with options.out.open("w") as out:
        for n in BATCHES:
            rows = {}
            for name, make in makers.items():
                try:
                    late = time.perf_counter() > deadline
                    row = (
                        {"batch": n, "method": name, "left_out": "out of time"}
                        if late
                        else measure(name, make, n)
                    )
                except Exception as error:  # one that fails is told, and the others go on
                    row = {"batch": n, "method": name, "failed": f"{type(error).__name__}: {error}"[:300]}
                rows[name] = row
                for key in ("ms", "device_ms", "host_ms"):
                    if key in row and key in rows["ce"]:
                        row[f"{key}_to_ce"] = row[key] / rows["ce"][key]
                out.write(json.dumps(row) + "\n")
                out.flush()
                shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
                print(*(f"{k} {v}" for k, v in shown.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
