"""What a run would do, found out without doing it."""

from __future__ import annotations

from typing import Any

import torch
import yaml
from rich.console import Console

from ..training.metrics import output_sizes
from .config import RunConfig, StudentConfig, TeacherConfig
from .files import weights_of
from .settings import at
from .sources import build_model, open_parts


def plan(config: RunConfig) -> dict[str, Any]:
    """The resolved settings, sizes of data and models as far as they can be had, and what is missing.

    Each model is run on a sample of its data.

    Returns:
        ``config``; ``student`` and ``teacher``: samples of each part and parameters, or None; ``steps`` of
        the student; ``missing``: a sentence for each thing that is not there.

    Raises:
        ValueError: broken data, or a model that does not take them.
    """
    missing: list[str] = []
    student = _sizes(config.student, config.seed, "student", missing)
    teacher = None
    if config.needs_teacher and config.teacher is not None:
        teacher = _sizes(config.teacher, config.teacher.seed, "teacher", missing)
        if config.teacher.checkpoint is not None:
            try:
                weights_of(config.teacher.checkpoint)
            except (FileNotFoundError, ValueError) as error:
                missing.append(f"teacher: {error}")
    steps = None
    if student is not None:
        train = config.train
        steps = train.epochs * (train.steps_per_epoch or -(-student["samples"]["train"] // train.batch_size))
    return {
        "config": config.plain(),
        "student": student,
        "teacher": teacher,
        "steps": steps,
        "missing": missing,
    }


def show(console: Console, found: dict[str, Any]) -> None:
    """Say it on a terminal."""
    console.print(yaml.safe_dump(found["config"], sort_keys=False), highlight=False, markup=False, end="")
    for role in ("teacher", "student"):
        sizes = found[role]
        if sizes is not None:
            samples = ", ".join(f"{count:,} {part}" for part, count in sizes["samples"].items())
            console.print(f"{role}: {sizes['parameters']:,} parameters; samples: {samples}", highlight=False)
    if found["steps"] is not None:
        console.print(f"would train the student for {found['steps']:,} steps", highlight=False)
    for sentence in found["missing"]:
        console.print(f"[bold]missing[/bold]: {sentence}", highlight=False)


def _sizes(
    side: StudentConfig | TeacherConfig, seed: int, role: str, missing: list[str]
) -> dict[str, Any] | None:
    try:
        parts = open_parts(side.data, seed)
        model = build_model(side.model, parts.train.classes, parts.train[0][0], seed)
    except (OSError, ImportError) as error:
        missing.append(f"{role}: {error}")
        return None
    with at(role):
        output_sizes(model, parts.train, torch.device("cpu"))
    samples = {name: len(part) for name, part in vars(parts).items() if part is not None}
    return {"samples": samples, "parameters": sum(p.numel() for p in model.parameters())}
