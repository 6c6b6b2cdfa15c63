"""A finished run's student, measured again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..ops.checks import choice
from ..terminal import Terminal
from ..training.metrics import evaluate
from .finished import open_finished
from .sources import PARTS


def evaluate_run(folder: Path, part: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Accuracy, loss, accuracy by class and confusion of the student that a run ended with.

    Args:
        folder: the run's.
        part: "train", "val" or "test" of the student's data.
        changes: to the run's settings, at dotted paths: other data of the same classes, say.

    Raises:
        FileNotFoundError: no finished run, or missing data.
        ValueError: there is no such part; the changed settings do not fit the weights.
    """
    choice("part", part, PARTS)
    run = open_finished(folder, changes)
    data = getattr(run.parts, part)
    if data is None:
        raise ValueError(f"data of {folder} have no part {part!r}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = evaluate(run.student.to(device), data, device=device, batch_size=run.config.train.batch_size)
    classes = list(data.classes)
    return {"run": str(folder), "weights": run.weights.name, "part": part, "classes": classes, **found}


def show(terminal: Terminal, found: Mapping[str, Any]) -> None:
    """Say it on a terminal: the rarest right classes, and the commonest mistakes."""
    terminal.say(
        f"{found['run']} ({found['weights']}): {100 * found['accuracy']:.1f} % of {found['samples']} {found['part']} "
        f"samples right, loss {found['loss']:.3f}"
    )
    names = found["classes"]
    by_class = zip(names, found["per_class_accuracy"], strict=True)
    said = ", ".join(f"{name} {100 * one:.0f} %" for name, one in by_class if one is not None)
    terminal.say(f"By class: {said}")
    mistakes = sorted(
        (
            (count, names[i], names[j])
            for i, row in enumerate(found["confusion"])
            for j, count in enumerate(row)
            if i != j and count
        ),
        reverse=True,
    )
    if mistakes:
        most = ", ".join(f"{a} for {b} ({count})" for count, b, a in mistakes[:5])
        terminal.say(f"Taken most often: {most}")
