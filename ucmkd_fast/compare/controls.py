"""Controls for every method of a comparison: teachers that must not help, and no teacher at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .experiment import Contender, Experiment

SELF_TRAINING = "self-training"
_TEACHERS = ("permuted", "untrained")


def with_controls(values: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's settings with controls added to its methods.

    For each method that learns from a teacher, or starts with its head: the real one with its classes permuted,
    and an untrained one (where they are not among the methods). Where every setting leaves samples without
    labels, `self-training` as well.

    Args:
        values: as `Experiment.read` takes them.

    Raises:
        ValueError: as `Experiment.read`.
    """
    experiment = Experiment.read(values)
    methods = dict(values["methods"])
    taught = {cell.contender.label for cell in experiment.cells() if cell.config.learns_from_teacher}
    have = {(str(dict(c.method)), str(_others(c.changes)), c.control) for c in experiment.contenders}
    for contender in experiment.contenders:
        if contender.control is not None or contender.label not in taught:
            continue
        given = values["methods"][contender.label]
        given = {"name": given} if isinstance(given, str) else dict(given)
        for control in _TEACHERS:
            if (str(dict(contender.method)), str(_others(contender.changes)), control) not in have:
                methods[f"{contender.label}, {control}"] = {**given, "control": control}
    trained_alone = any(c.method["name"] == SELF_TRAINING for c in experiment.contenders)
    if not trained_alone and all(leaves_unlabelled(cell.config) for cell in experiment.cells()):
        methods[SELF_TRAINING] = SELF_TRAINING
    return {**values, "methods": methods}


def leaves_unlabelled(config: Any) -> bool:
    """Whether a run's student data have samples that are not trained with for want of a label."""
    data = config.student.data
    parts = [data.whole] if data.whole is not None else list(data.parts.values())
    return any("labels_per_class" in part.options for part in parts)


def is_control(contender: Contender) -> bool:
    """Whether a method is there to be compared with: another teacher, or self-training without any."""
    return contender.control is not None or contender.method["name"] == SELF_TRAINING


def _others(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in changes.items() if path != "teacher.control"}
