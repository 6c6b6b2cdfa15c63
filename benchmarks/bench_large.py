"""Large batches: many problems in one call, costs that do not fit, rows over processes.

    python benchmarks/bench_large.py batch                       # 64 problems of 64 x 64 against the kernel's own time
    python benchmarks/bench_large.py panels --sizes 2000 6000 20000
    python benchmarks/bench_large.py weak --rows 1000 --json FILE # rows per process constant, 1 and 2 processes
    python benchmarks/bench_large.py processes --sizes 1000 2000 4000
    python benchmarks/bench_large.py warm --audio FOLDER         # iterations that kept potentials save in training

float32, cosine, reg 0.1 (`panels`: 0.02), loss and exact gradient of x. Results are checked before anything is timed.
`weak` keeps the rows of x of a process and all rows of y constant, so that each process has the same work whatever
their number; in `processes` both sides grow, so the work of each doubles, and one process on the whole problem stands
beside it.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

import ucmkd_fast as uk
from ucmkd_fast.bench.estimate import features
from ucmkd_fast.bench.harness import Disagreement, Row, Timing, _peak_mb, save, table

REG, WIDTH = 0.1, 64
BATCH = {"B": 64, "N": 64, "M": 64, "D": WIDTH, "max_iter": 100}
#: Clustered features and a small reg: no sweep back stops early, at any size (on Gaussian ones more of them do the more
#: samples there are, and the time grows less than N M).
PANELS = {"D": WIDTH, "max_iter": 20, "reg": 0.02, "memory_budget": 10**9}


def inputs(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of features, the first with a gradient."""
    rand = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(*shape, WIDTH, generator=rand) for _ in range(2))
    return x.requires_grad_(), y


def clusters(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, clustered."""
    x, y = features(n, WIDTH, 0)
    return x.requires_grad_(), y


def with_gradient(x: torch.Tensor, y: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (or losses) and the gradient of x."""
    loss = uk.sinkhorn_loss(x, y, **{"reg": REG, **options})
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
    x, y = clusters(1500)
    options = {"max_iter": PANELS["max_iter"], "reg": PANELS["reg"]}
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
    x, y = clusters(n)
    budget = min(PANELS["memory_budget"], 4 * n * n)  # small sizes are made to take the panels too
    uk.sinkhorn_loss(x[:300], y[:300])
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of making the features
    before = _peak_mb()
    start = time.perf_counter()
    loss = uk.sinkhorn_loss(x, y, reg=PANELS["reg"], max_iter=PANELS["max_iter"], memory_budget=budget)
    middle = time.perf_counter()
    loss.backward()
    end = time.perf_counter()
    print((middle - start) * 1e3, (end - middle) * 1e3, _peak_mb(), before)


def in_processes(count: int, what: str, sizes: list[int]) -> list[list[float]]:
    """What every rank of a gloo group, one thread each, prints."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, what, "--sizes", *map(str, sizes)],
                env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count), "MEET": folder},
                stdout=subprocess.PIPE,
                text=True,
            )  # fmt: skip
            for rank in range(count)
        ]
        said = [rank.communicate()[0] for rank in ranks]
        if any(rank.returncode for rank in ranks):
            raise RuntimeError("a process failed")
    return [[float(word) for word in text.split()] for text in said]


def one_rank() -> tuple[int, int]:
    """Joins the group: this rank, and how many there are."""
    torch.set_num_threads(1)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = f"file://{os.environ['MEET']}/meet"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=count)
    return rank, count


def weak(rows_each: int, columns: int = 4000) -> list[Row]:
    """Constant rows per process: seconds of one and of two processes that share the rows, one thread each."""
    rows, alone = [], 0.0
    for count in (1, 2):
        (ms, error), *_ = in_processes(count, "weak-rank", [rows_each, columns])
        alone = alone or ms
        timing = Timing(f"{count} process{'es'[: 2 * (count > 1)]}", ms, ms, ms, ms / alone, error)
        case = {
            "what": "weak",
            "processes": count,
            "N of each": rows_each,
            "N": count * rows_each,
            "M": columns,
        }
        extra = {"efficiency": round(alone / ms, 3)}
        rows.append(Row({**case, "D": WIDTH, "max_iter": 20}, [timing], extra))
    print("| processes | rows of each | N | M | ms | efficiency |\n|---|---|---|---|---|---|")
    for row in rows:
        c, ms = row.case, row.timings[0].median_ms
        cells = (
            c["processes"],
            c["N of each"],
            c["N"],
            c["M"],
            f"{ms:.1f}",
            f"{row.extra['efficiency']:.2f}",
        )
        print("| " + " | ".join(map(str, cells)) + " |")
    return rows


def weak_rank(rows_each: int, columns: int) -> None:
    """Every rank prints milliseconds and the disagreement with one process on all rows."""
    rank, count = one_rank()
    (x, _), (_, y) = inputs(count * rows_each), inputs(columns)
    mine = slice(rank * rows_each, (rank + 1) * rows_each)
    shard, part = x.detach()[mine].clone().requires_grad_(), y.tensor_split(count)[rank].contiguous()

    def shared():
        return with_gradient(shard, part, max_iter=20, group=dist.group.WORLD)

    want = with_gradient(x, y, max_iter=20)
    error = check(shared(), (want[0], want[1][mine]), 1e-4)
    dist.barrier()
    print(fastest(shared, 5), error, flush=True)
    dist.destroy_process_group()


def processes(sizes: list[int]) -> list[Row]:
    """Two gloo processes of one thread each, against one process of one thread on the whole problem."""
    rows = []
    shared, gathered = in_processes(2, "one-process", sizes)
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
    rank, _ = one_rank()
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


def warm(audio: str | None) -> list[Row]:
    """Iterations of FA to a marginal error of 1e-3 over a training run of the demo's task, cold and warm.

    `Distiller`, method "joint", 20 epochs of 5 steps; the last column is the student's accuracy on voices never heard.
    "Without" is the same run with potentials that are forgotten and without over-relaxation.
    """
    from ucmkd_fast import Distiller, distiller
    from ucmkd_fast.data import WarmStart
    from ucmkd_fast.demo.settings import WIDTH as width
    from ucmkd_fast.demo.task import load_speech, split_voices, train_teacher
    from ucmkd_fast.models import speech_cnn

    class Cold(WarmStart):
        """Forgets."""

        def _start(self, kept, rows, count, feature):
            return super()._start(torch.zeros_like(kept), rows, count, feature)

        def _may_relax(self, feature):
            return False

    trained = train_teacher()
    voices = split_voices(load_speech(None if audio is None else Path(audio)), 5, 0)
    everything = len(trained.train.x)
    rows = []
    for students, bank in ((50, everything), (50, everything // 3), (25, everything), (25, everything // 3)):
        case = {
            "what": "warm",
            "student's in a step": f"{students} of 50",
            "bank's": f"{bank} of {everything}",
        }
        extra: dict[str, Any] = {}
        for name, kind in (("without", Cold), ("with", WarmStart)):
            torch.manual_seed(0)
            student = speech_cnn(10, width, mels=voices.labelled.x.shape[2])
            settings = {
                "epochs": 20,
                "steps_per_epoch": 5,
                "batch_size": students,
                "teacher_batch_size": bank,
            }
            with mock.patch.object(distiller, "WarmStart", kind):
                one = Distiller(
                    student, trained.model, "joint", warm_start=1e-3, optimizer="adamw", lr=1e-3, diagnose=False,
                    method_options={"reg": REG, "max_iter": 2000}, **settings,
                )  # fmt: skip
                history = one.fit(voices.labelled, trained.train).history
            extra[f"iterations {name}"] = round(sum(e["fa_iterations"] for e in history) / len(history), 1)
            extra[f"last FA {name}"] = round(history[-1]["fa"], 4)
            extra[f"accuracy {name}"] = round(one.evaluate(voices.test)["accuracy"], 3)
        extra["share of the iterations"] = round(extra["iterations with"] / extra["iterations without"], 2)
        rows.append(Row(case, [], extra))
        print(table(rows[-1:]), flush=True)
    return rows


#: What the processes run that the measurements start.
WORKERS: dict[str, Any] = {
    "one-panel": lambda sizes: one_panel(*sizes),
    "one-process": one_process,
    "weak-rank": lambda sizes: weak_rank(*sizes),
}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["batch", "panels", "weak", "processes", "warm", *WORKERS])
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--rows", type=int, default=1000, help="of each process, for weak")
    parser.add_argument("--audio", help="recordings for warm, as `ucmkd demo --audio`")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.what in WORKERS:
        return WORKERS[arguments.what](arguments.sizes)
    if arguments.what == "batch":
        rows = [batch()]
        print(table(rows))
    elif arguments.what == "warm":
        rows = warm(arguments.audio)
    elif arguments.what == "panels":
        rows = panels(arguments.sizes or [2000, 6000, 20000])
    elif arguments.what == "weak":
        rows = weak(arguments.rows)
    else:
        rows = processes(arguments.sizes or [1000, 2000, 4000])
    if arguments.json:
        save(arguments.json, f"large {arguments.what}", [asdict(row) for row in rows])
    return None


if __name__ == "__main__":
    main()
