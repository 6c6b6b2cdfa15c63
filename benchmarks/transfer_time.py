"""Time of one training step by method, measured side by side on one thread, and what the encoder alone takes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transfer_tasks import SETTINGS, STUDENTS, TRAIN, parts_of, teacher_of

import ucmkd_fast as uk
from ucmkd_fast.data import UnpairedLoader

# A setting, and the unlabelled samples in a batch.
CASES = [("a_5", 64), ("a_5", 40), ("a_20", 64), ("a_20", 48), ("i_5", 64), ("i_5", 40)]
METHODS = ("ce", "self-training", "ucmkd-plus")
ENCODER = "encoder alone"
BATCHES, ROUNDS = 10, 20


def measure(setting: str, unlabelled: int, audio: Path, folder: Path) -> dict[str, Any]:
    """Milliseconds a step: the tenth percentile of steps that alternate between the methods."""
    torch.set_num_threads(1)
    steps = {name: _step(name, setting, unlabelled, audio, folder) for name in (*METHODS, ENCODER)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for batch in range(BATCHES):
            for name, step in steps.items():
                started = time.perf_counter()
                step(batch)
                seconds[name].append(time.perf_counter() - started)
    row = {name: round(1e3 * float(np.percentile(times, 10)), 3) for name, times in seconds.items()}
    labelled = min(SETTINGS[setting].labels * 10, TRAIN["batch_size"])
    return {"setting": setting, "labelled": labelled, "unlabelled": unlabelled, "milliseconds": row}


def _step(name: str, setting: str, unlabelled: int, audio: Path, folder: Path) -> Callable[[int], None]:
    """One step on one of a few batches: draw, forward, backward, clip, update."""
    task = SETTINGS[setting]
    labelled, rest, _, _ = parts_of(task, 0, audio)
    teacher, bank, _ = teacher_of(task.other, audio, folder)
    torch.manual_seed(0)
    student, alone = STUDENTS[task.own](), name == ENCODER
    method = "ce" if alone else name
    distiller = uk.Distiller(
        student, teacher, method, seed=0,
        **{**TRAIN, "epochs": 1, "steps_per_epoch": 1},
    )  # fmt: skip
    taught = distiller.method.uses_teacher
    extra = {"student_unlabelled": rest} if distiller.method.uses_unlabelled else {}
    distiller.fit(labelled, bank if taught else None, **extra)
    student.train()
    loader = UnpairedLoader(
        labelled, bank if taught else None, batch_size=TRAIN["batch_size"], steps_per_epoch=BATCHES,
        draw=distiller.config.draw or "independent",
        unlabelled=rest if extra or alone else None, unlabelled_batch_size=unlabelled if extra or alone else None,
    )  # fmt: skip
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9)

    def step(index: int) -> None:
        batch = loader.batch_at(0, index)
        if alone:
            student.zero_grad()
            logits = student(torch.cat([batch.x, batch.unlabelled_x]))
            F.cross_entropy(logits[: len(batch.x)], batch.y).add(
                logits[len(batch.x) :].sum(), alpha=0
            ).backward()
        else:
            distiller.method.backward(distiller._step, batch)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()

    return step


def table(rows: list[dict[str, Any]]) -> str:
    """Ratios to a step of ce, as Markdown."""
    names = [name for name in rows[0]["milliseconds"] if name != "ce"]
    head = ["", "labelled + unlabelled", "rows, ratio", "ce, ms", *(f"{name}, ratio" for name in names)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        ms, n, u = row["milliseconds"], row["labelled"], row["unlabelled"]
        cells = [f"`{row['setting']}`", f"{n} + {u}", f"{(n + u) / n:.2f}", f"{ms['ce']:.2f}"]
        cells += [f"{ms[name] / ms['ce']:.2f}" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
