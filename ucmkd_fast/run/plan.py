"""What a run would do, found out without doing it."""

from __future__ import annotations

from typing import Any

import torch
import yaml

from ..data.class_names import check_same_names
from ..terminal import Terminal, bold
from ..training.data_sets import check_widths
from ..training.metrics import output_sizes
from ..training.tracking import check_trackers
from .config import RunConfig, StudentConfig, TeacherConfig, checked_method
from .files import weights_of
from .settings import at
from .sources import build_model, open_parts


def plan(config: RunConfig) -> dict[str, Any]:
    """The resolved settings, sizes of data and models as far as they can be had, and what is missing.

    Each model is run on a sample of its data.

    Returns:
        ``config``; ``student`` and ``teacher``: samples of each part, classes, width of the features and
        parameters, or None; ``steps`` of the student; ``missing``: a sentence for each thing that is not there, or does
        not fit the others.

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
    if student is not None and teacher is not None:
        try:
            check_same_names(student["classes"], teacher["classes"])
            if config.uses_teacher:
                check_widths(
                    checked_method(config.method), config.method.name, student["width"], teacher["width"]
                )
        except ValueError as error:
            missing.append(str(error))
    trained = {"train": config.train}
    if teacher is not None and config.teacher is not None and config.teacher.train is not None:
        trained["teacher: train"] = config.teacher.train
    for place, train in trained.items():
        try:
            check_trackers(train.trackers, has_folder=True)
        except ValueError as error:
            missing.append(f"{place}: {error}")
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


def show(terminal: Terminal, found: dict[str, Any]) -> None:
    """Say it on a terminal."""
    for line in yaml.safe_dump(found["config"], sort_keys=False, allow_unicode=True).splitlines():
        terminal.say(line, wrap=False)
    for role in ("teacher", "student"):
        sizes = found[role]
        if sizes is not None:
            samples = ", ".join(f"{count:,} {part}" for part, count in sizes["samples"].items())
            terminal.say(f"{role}: {sizes['parameters']:,} parameters; samples: {samples}")
    if found["steps"] is not None:
        terminal.say(f"would train the student for {found['steps']:,} steps")
    for sentence in found["missing"]:
        terminal.say(bold("missing"), f": {sentence}", wrap=False)


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
        width, _ = output_sizes(model, parts.train, torch.device("cpu"))
    samples = {name: len(part) for name, part in vars(parts).items() if part is not None}
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "samples": samples,
        "classes": list(parts.train.classes),
        "width": width,
        "parameters": parameters,
    }
