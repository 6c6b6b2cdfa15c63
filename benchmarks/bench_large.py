"""Large batches: many problems in one call, costs that do not fit, rows over processes.

    python benchmarks/bench_large.py batch                       # 64 problems of 64 x 64 against the kernel's own time
    python benchmarks/bench_large.py panels --sizes 2000 6000 20000
    python benchmarks/bench_large.py processes --sizes 1000 2000 4000
    python benchmarks/bench_large.py warm --audio FOLDER         # iterations that kept potentials save

float32, cosine, reg 0.1, loss and exact gradient of x. Results are checked before anything is timed. In `processes`
every process has N rows of x and of y (weak scaling): the problem of two processes is four times that of one, so the
work of each doubles; the time of one process on the whole problem stands beside it.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import Disagreement, Row, Timing, _peak_mb, table, write

import ucmkd_fast as uk

REG, WIDTH = 0.1, 64
BATCH = {"B": 64, "N": 64, "M": 64, "D": WIDTH, "max_iter": 100}
PANELS = {"D": WIDTH, "max_iter": 20, "memory_budget": 10**9}


def inputs(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of features, the first with a gradient."""
    rand = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(*shape, WIDTH, generator=rand) for _ in range(2))
    return x.requires_grad_(), y


def with_gradient(x: torch.Tensor, y: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (or losses) and the gradient of x."""
    loss = uk.sinkhorn_loss(x, y, reg=REG, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def check(got: tuple, want: tuple, limit: float) -> float:
    """The largest relative disagreement; raises where it passes the limit."""
    error = max(
        ((g.double() - w.double()).abs().max() / w.abs().max()).item() for g, w in zip(got, want, strict=True)
    )
    if not error <= limit:
        raise Disagreement(f"differs by {error:.1e}, allowed {limit:.0e}")
    return error


def fastest(work: Any, rounds: int) -> float:
    """Milliseconds of the fastest of some rounds, one to warm up."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        work()
        times.append((time.perf_counter() - begin) * 1e3)
    return min(times[1:])


def batch() -> Row:
    """B problems in one call, against B times one problem on one thread, shared by the threads."""
    x, y = inputs(BATCH["B"], BATCH["N"])
    options = {"max_iter": BATCH["max_iter"]}
    each = [with_gradient(x[k].detach().requires_grad_(), y[k], **options) for k in range(len(x))]
    error = check(
        with_gradient(x, y, **options), tuple(torch.stack(z) for z in zip(*each, strict=True)), 1e-5
    )
    threads = torch.get_num_threads()
    together = [fastest(lambda: uk.sinkhorn_loss(x.detach(), y, reg=REG, **options), 30),
                fastest(lambda: with_gradient(x, y, **options), 15)]  # fmt: skip
    one = x[0].detach()
    torch.set_num_threads(1)
    leaf, calls = x[0].detach().requires_grad_(), range(64)
    apart = [fastest(lambda: [uk.sinkhorn_loss(one, y[0], reg=REG, **options) for _ in calls], 10) / 64,
             fastest(lambda: [with_gradient(leaf, y[0], **options) for _ in calls], 10) / 64]  # fmt: skip
    torch.set_num_threads(threads)
    timings = []
    for name, all_ms, one_ms in zip(("loss", "loss and gradient"), together, apart, strict=True):
        share = BATCH["B"] * one_ms / threads
        timings.append(Timing(f"{name}, one call", all_ms, all_ms, all_ms, 1.0, error))
        timings.append(Timing(f"{name}, B x one problem / threads", share, share, share, share / all_ms, 0.0))
    return Row({"what": "batch", **BATCH, "threads": threads}, timings)


def panels(sizes: list[int]) -> list[Row]:
    """Time and peak memory where the cost is made panel by panel, each size in a process of its own."""
    x, y = inputs(1500)
    options = {"max_iter": PANELS["max_iter"]}
    error = check(with_gradient(x, y, memory_budget=10**7, **options), with_gradient(x, y, **options), 1e-4)
    rows, points = [], []
    for n in sizes:
        done = subprocess.run(
            [sys.executable, __file__, "one-panel", "--sizes", str(n)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        forward, backward, peak, before = map(float, done.stdout.split())
        points.append((math.log(n), math.log(forward + backward)))
        both = forward + backward
        extra = {"forward ms": round(forward), "backward ms": round(backward), "peak MB": round(peak),
                 "of these before the call": round(before), "three matrices MB": round(12 * n * n / 1e6)}  # fmt: skip
        timing = Timing("panels", both, both, both, 1.0, error)
        rows.append(Row({"what": "panels", "N": n, "M": n, **PANELS}, [timing], extra))
        print(table(rows[-1:]), flush=True)
    if len(points) > 1:
        mean_x, mean_y = (sum(p[k] for p in points) / len(points) for k in (0, 1))
        slope = sum((a - mean_x) * (b - mean_y) for a, b in points) / sum(
            (a - mean_x) ** 2 for a, _ in points
        )
        rows[-1].extra["slope of log time on log N"] = round(slope, 3)
        print(f"slope of log time on log N: {slope:.3f}")
    return rows


def one_panel(n: int) -> None:
    """Prints milliseconds forward and backward, the peak of memory (MB) and what was there before."""
    x, y = inputs(n)
    budget = min(PANELS["memory_budget"], 4 * n * n)  # small sizes are made to take the panels too
    uk.sinkhorn_loss(x[:300], y[:300])
    before = _peak_mb()
    start = time.perf_counter()
    loss = uk.sinkhorn_loss(x, y, reg=REG, max_iter=PANELS["max_iter"], memory_budget=budget)
    middle = time.perf_counter()
    loss.backward()
    end = time.perf_counter()
    print((middle - start) * 1e3, (end - middle) * 1e3, _peak_mb(), before)


def processes(sizes: list[int]) -> list[Row]:
    """Two gloo processes of one thread each, against one process of one thread on the whole problem."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, "one-process", "--sizes", *map(str, sizes)],
                env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MEET": folder},
                stdout=subprocess.PIPE,
                text=True,
            )  # fmt: skip
            for rank in range(2)
        ]
        said = [w.communicate()[0] for w in workers]
        if any(w.returncode for w in workers):
            raise RuntimeError("a process failed")
        shared = [float(line) for line in said[0].split()]
        gathered = [float(line) for line in said[1].split()]
    torch.set_num_threads(1)
    for n, ms, error in zip(sizes, shared, gathered, strict=True):
        x, y = inputs(2 * n)
        whole = fastest(lambda x=x, y=y: with_gradient(x, y, max_iter=20), 3)
        share = inputs(n)
        local = fastest(lambda share=share: with_gradient(*share, max_iter=20), 3)
        timings = [
            Timing("two processes, 2 N rows", ms, ms, ms, 1.0, error),
            Timing("one process, 2 N rows", whole, whole, whole, whole / ms, 0.0),
            Timing("one process, N rows", local, local, local, local / ms, 0.0),
        ]
        rows.append(Row({"what": "processes", "N of each": n, "D": WIDTH, "max_iter": 20}, timings))
        print(table(rows[-1:]), flush=True)
    return rows


def one_process(sizes: list[int]) -> None:
    """Rank 0 prints milliseconds, rank 1 the disagreement with one process on all rows."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['MEET']}/meet", rank=rank, world_size=2)
    for n in sizes:
        x, y = inputs(2 * n)
        mine = slice(rank * n, rank * n + n)
        shard, columns = x.detach()[mine].clone().requires_grad_(), y[mine]

        def shared(shard=shard, columns=columns):
            return with_gradient(shard, columns, max_iter=20, group=dist.group.WORLD)

        got = shared()
        want = with_gradient(x, y, max_iter=20)
        error = check(got, (want[0], want[1][mine]), 1e-4)
        dist.barrier()
        ms = fastest(shared, 3)
        print(ms if rank == 0 else error, flush=True)
    dist.destroy_process_group()


def warm(audio: str | None) -> Row:
    """Iterations to a marginal error of 1e-3 over a training run of the demo's task, cold and warm.

    The student's 50 labelled recordings come back at every step, against the whole bank of handwriting; or a third of
    the bank, drawn anew.
    """
    from ucmkd_fast.data import WarmStart
    from ucmkd_fast.demo.settings import WIDTH as width
    from ucmkd_fast.demo.task import load_speech, split_voices, train_teacher
    from ucmkd_fast.models import speech_cnn

    bank = train_teacher().train
    labelled = split_voices(load_speech(None if audio is None else Path(audio)), 5, 0).labelled
    options = {"reg": REG, "tol": 1e-3, "max_iter": 2000, "objective": "regularized", "grad": "envelope"}
    counts: dict[str, list[int]] = {}
    for name, share in (("whole bank", len(bank.x)), ("a third of it, drawn anew", len(bank.x) // 3)):
        torch.manual_seed(0)
        student = speech_cnn(10, width, mels=labelled.x.shape[2])
        optimiser = torch.optim.AdamW(student.parameters(), 1e-3)
        start = WarmStart(len(bank.x), len(labelled.x), **options)
        counts[f"{name}, cold"], counts[f"{name}, warm"] = [], []
        for _ in range(100):
            rows, columns = torch.randperm(len(labelled.x)), torch.randperm(len(bank.x))[:share]
            z = student.encode(labelled.x[rows])
            cold = uk.sinkhorn_loss(z.detach(), bank.x[columns], return_result=True, **options)
            loss = start(z, rows, bank.x[columns], columns)
            if not abs(loss - cold.value_regularized) <= 1e-2 * abs(cold.value_regularized):
                raise Disagreement(f"warm {loss.item():.6f}, cold {cold.value_regularized.item():.6f}")
            counts[f"{name}, cold"].append(int(cold.n_iter))
            counts[f"{name}, warm"].append(int(start.last_n_iter))
            optimiser.zero_grad()
            (loss + torch.nn.functional.cross_entropy(student.head(z), labelled.labels[rows])).backward()
            optimiser.step()
    means = {f"mean iterations, {name}": sum(v) / len(v) for name, v in counts.items()}
    return Row({"what": "warm", "N": len(labelled.x), "bank": len(bank.x), "steps": 100}, [], means)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["batch", "panels", "processes", "warm", "one-panel", "one-process"])
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--audio", help="recordings for warm, as `ucmkd demo --audio`")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "one-panel":
        return one_panel(arguments.sizes[0])
    if arguments.what == "one-process":
        return one_process(arguments.sizes)
    if arguments.what == "batch":
        rows = [batch()]
        print(table(rows))
    elif arguments.what == "warm":
        rows = [warm(arguments.audio)]
        print(table(rows))
    elif arguments.what == "panels":
        rows = panels(arguments.sizes or [2000, 6000, 20000])
    else:
        rows = processes(arguments.sizes or [1000, 2000, 4000])
    if arguments.json:
        write(arguments.json, f"large {arguments.what}", rows)
    return None


if __name__ == "__main__":
    main()
