"""A finished run opened again: its settings, its data, and the student that it ended with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import RunConfig
from .files import CONFIG, load_weights, read_result, weights_of
from .settings import load_settings, with_changes
from .sources import Parts, build_model, open_parts


@dataclass(frozen=True)
class FinishedRun:
    """What a run's folder says, and what its settings stand for."""

    folder: Path
    config: RunConfig
    weights: Path
    parts: Parts  # of the student's data
    student: Any  # nn.Module with encode, head; eval mode, on the CPU


def open_finished(folder: Path, changes: Mapping[str, Any] | None = None) -> FinishedRun:
    """Open a finished run; its data have the labels of the classes that it was trained on, by their names.

    Args:
        folder: the run's.
        changes: to its settings, at dotted paths: where its data are now, say.

    Raises:
        FileNotFoundError: no finished run, or missing data.
        ValueError: damaged files; changed settings that do not fit the weights, or data of other classes.
    """
    weights = weights_of(folder)
    config = RunConfig.read(with_changes(load_settings(folder / CONFIG), changes or {}))
    parts = open_parts(config.student.data, config.seed)
    result = read_result(folder)
    if result is not None and "classes" in result:  # a run of before they were kept has none
        parts = parts.in_classes(result["classes"], ("the run", "the data set"))
    student = build_model(config.student.model, parts.train.classes, parts.train[0][0], config.seed)
    load_weights(student, weights)
    return FinishedRun(folder, config, weights, parts, student.eval())
