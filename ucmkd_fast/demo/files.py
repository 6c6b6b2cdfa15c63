"""What the demo leaves behind, each file written beside and renamed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_of

from .. import __version__, _native, processors
from ..extras import installed
from ..methods import build_method
from ..report import Compared
from ..report.plain import as_plain
from ..report.statistics import spread
from ..run.measure import FA_ITER, FA_METRIC, FA_REG
from ..text import visible
from ..training.checkpoint import write_bytes, write_text, write_weights
from ..training.run_folder import versions
from .settings import BASELINE, CONTENDERS, STEPS_PER_EPOCH, DemoSettings, student_config, teacher_config
from .student import Outcome, Portrait
from .task import Task

RESULTS, PICTURE, STUDENT = "results.json", "picture.png", "student.safetensors"
SAVED_STUDENT = "ucmkd"  # at seed 0


def check_output(folder: Path) -> None:
    """Make the folder, and see that it can be written to, before any time is spent.

    Raises:
        FileNotFoundError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "that is a file" if folder.is_file() else error.strerror
        raise FileNotFoundError(f"{folder}: expected a folder to write to, {reason}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileNotFoundError(f"{folder}: expected a folder to write to, there is no permission to")


def results(
    task: Task,
    settings: DemoSettings,
    outcomes: Sequence[Outcome],
    methods: Sequence[Compared],
    conclusions: Sequence[str],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Every number of the run, with what it takes to run it again; plain values that JSON knows."""
    teacher = task.teacher
    found = {
        "format": "ucmkd-fast demo 1",
        "settings": {**asdict(settings), "steps_per_epoch": STEPS_PER_EPOCH, "baseline": BASELINE},
        "training": {
            "teacher": teacher_config().to_dict(),
            "students": {
                **student_config(settings, 0).to_dict(),
                "seed": "0, 1, ..., one for each repetition",
            },
        },
        "data": {
            "source": task.source,
            "description": task.description,
            "recordings": len(task.speech),
            "voices": [_voices_of(task, settings, seed) for seed in range(settings.seeds)],
            "handwriting": {"train": len(teacher.train), "held_out": len(teacher.held_out)},
        },
        "teacher_accuracy": teacher.accuracy(),
        "measured_on": "student: test voices; teacher: held-out handwriting",
        "fa_settings": {"metric": FA_METRIC, "reg": FA_REG, "max_iter": FA_ITER},
        "methods": [_described(method) for method in methods],
        "runs": [{**asdict(outcome), "bound": _bound(outcome.bound)} for outcome in outcomes],
        "conclusions": list(conclusions),
        "seconds": dict(seconds),
        "versions": {**versions(), "ucmkd-fast": __version__, **installed()},
        "build": dict(_native._C.build_info()),
        "machine": {"cores": processors.usable(), "processor": platform.machine()},
    }
    return as_plain(found)


def write(folder: Path, found: dict[str, Any], picture: bytes, portraits: Mapping[str, Portrait]) -> None:
    """Write results, picture and the distilled student, each beside and then renamed."""
    about = {
        "format": "pt",
        "model": "ucmkd_fast.models.speech_cnn()",
        "method": SAVED_STUDENT,
        "seed": "0",
        "labels_per_class": str(found["settings"]["labels_per_class"]),
        "data": visible(found["data"]["description"]),
    }
    write_weights(folder / STUDENT, tensors_of(portraits[SAVED_STUDENT].weights), about)
    write_bytes(folder / PICTURE, picture)
    write_text(folder / RESULTS, json.dumps(found, indent=2, allow_nan=False) + "\n")


def _voices_of(task: Task, settings: DemoSettings, seed: int) -> dict[str, Any]:
    voices = task.voices(settings.labels_per_class, seed)
    parts = {"train": voices.labelled, "val": voices.val, "test": voices.test}
    heard = {role: sorted(set(part.groups or ())) for role, part in parts.items()}
    return {"seed": seed, **heard, "recordings": {role: len(part) for role, part in parts.items()}}


def _described(method: Compared) -> dict[str, Any]:
    contender = next(c for c in CONTENDERS if c.key == method.key)
    presets = {"preset": contender.preset} if contender.method == "ucmkd" else {}
    options = getattr(build_method(contender.method, **presets), "options", None)
    difference = method.difference
    return {
        "key": method.key,
        "label": method.label,
        "method": contender.method,
        **presets,
        "options": asdict(options) if is_dataclass(options) and not isinstance(options, type) else "defaults",
        "teacher": "permuted classes" if contender.permuted else "real" if method.key != "ce" else None,
        "accuracy": vars(method.spread),
        "difference_to_ce": None
        if difference is None
        else {**vars(difference), "verdict": difference.verdict},
        "figures": {name: vars(spread(values)) for name, values in method.figures.items()},
    }


def _bound(bound: Any) -> dict[str, float]:
    derived = {name: getattr(bound, name) for name in ("feature_alignment", "bound", "slack")}
    return {**vars(bound), **derived}
