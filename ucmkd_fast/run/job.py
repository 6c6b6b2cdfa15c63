"""A run from its settings to ``result.json``."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..data import LabelledData
from ..data.class_names import check_same_names
from ..distiller import Distiller, FitResult
from ..models import reuse_head
from ..training.lock import only_writer
from ..training.tracking import check_trackers
from .config import RunConfig, preset_and_options
from .files import read_result, write_result
from .measure import alignment, features_of
from .settings import at
from .sources import Parts, build_model, open_parts
from .teacher import Teacher, load_teacher

TEACHER = "teacher"  # its folder in the run's own
_MEASURED = 2000  # samples of each modality that alignment is measured on


def finished(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """What the run came to, where it has ended; None where it has not.

    Raises:
        ValueError: what has ended there is another run.
    """
    result = read_result(folder)
    if result is None:
        return None
    wanted = config.identity()
    if result["config"] != wanted:
        names = sorted(key for key in wanted if result["config"].get(key) != wanted[key])
        raise ValueError(
            f"{folder} holds a finished run with other settings ({', '.join(names)} differ): overwrite it, or name "
            "another folder"
        )
    return result


def pretrain(
    config: RunConfig,
    folder: Path,
    *,
    parts: Parts | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train the run's teacher into a folder; what came out, as `distill`.

    Args:
        config: the run.
        folder: where the teacher is kept.
        parts: its data, where somebody has opened them already.
        resume: see `distill`.
        overwrite: see `distill`.

    Raises:
        ValueError: there is no teacher, or it is read from a checkpoint.
    """
    if config.teacher is None:
        raise ValueError("these settings have no teacher to train")
    return distill(config.teacher.as_run(), folder, parts=parts, resume=resume, overwrite=overwrite)


def ready_teacher(
    config: RunConfig, folder: Path, classes: Sequence[str], *, overwrite: bool = False
) -> dict[str, Any] | None:
    """Have the teacher's training done in ``folder``, going on with it, or using it as it is.

    Args:
        config: the run.
        folder: where the teacher is kept.
        classes: the student's, which must be the teacher's too: that is checked before it is trained.
        overwrite: replace a teacher of other settings.

    Returns:
        What its training came to; None where there is none: no teacher, or one of a checkpoint.

    Raises:
        ValueError: classes that differ, or a folder that holds another teacher.
    """
    if config.teacher is None or config.teacher.train is None or not config.needs_teacher:
        return None
    resume = True
    try:
        if (done := finished(config.teacher.as_run(), folder)) is not None:
            return done
    except ValueError:
        if not overwrite:
            raise
        resume = False
    parts = open_parts(config.teacher.data, config.teacher.seed)
    check_same_names(classes, parts.train.classes)
    try:
        return pretrain(config, folder, parts=parts, resume=resume, overwrite=not resume)
    except ValueError:
        if not overwrite or not resume:
            raise
        return pretrain(config, folder, parts=parts, overwrite=True)


def distill(
    config: RunConfig,
    folder: Path,
    *,
    teacher_folder: Path | None = None,
    parts: Parts | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train and measure the student, after its teacher where that is not trained yet.

    Args:
        config: the run.
        folder: where it is kept.
        teacher_folder: where the teacher is; None: in ``folder``.
        parts: the student's data, where somebody has opened them already.
        resume: go on with the run, or take it as it is where it has ended.
        overwrite: replace it.

    Returns:
        What ``result.json`` says.

    Raises:
        FileNotFoundError: missing data or weights.
        FloatingPointError: the training diverged.
        FolderInUse: an OSError: another process is writing to ``folder``, or to its teacher's.
        ValueError: ``folder`` holds another run; data, models and method do not fit each other.
    """
    if resume and (done := finished(config, folder)) is not None:
        return done
    # Of several processes that train together, the first holds the folder.
    with only_writer(folder) if os.environ.get("RANK", "0") == "0" else nullcontext():
        return _distill(config, folder, teacher_folder, parts, resume=resume, overwrite=overwrite)


def _distill(
    config: RunConfig,
    folder: Path,
    teacher_folder: Path | None,
    parts: Parts | None,
    *,
    resume: bool,
    overwrite: bool,
) -> dict[str, Any]:
    with at("train"):  # before the teacher is trained
        check_trackers(config.train.trackers, has_folder=True)
    parts = parts or open_parts(config.student.data, config.seed)
    teacher, teacher_result = None, None
    if config.needs_teacher:
        assert config.teacher is not None
        teacher_folder = teacher_folder or folder / TEACHER
        teacher_result = ready_teacher(config, teacher_folder, parts.train.classes, overwrite=overwrite)
        teacher = load_teacher(config.teacher, teacher_folder, config.seed)
        check_same_names(parts.train.classes, teacher.train.classes)
    taught = config.uses_teacher and teacher is not None
    student: Any = build_model(config.student.model, parts.train.classes, parts.train[0][0], config.seed)
    if teacher is not None and config.student.reuses_head:
        reuse_head(student, teacher.model, frozen=config.student.head == "teacher-frozen")
    preset, options = preset_and_options(config.method)
    distiller = Distiller(
        student,
        teacher.model if taught and teacher else None,
        config.method.name,
        preset,
        method_options=options,
        config=config.train,
        output_dir=folder,
        settings=replace(config, output=str(folder)).plain(),
    )
    fitted = distiller.fit(
        parts.train,
        teacher.train if taught and teacher else None,
        parts.val if config.train.restore_best else None,
        student_unlabelled=parts.unlabelled if distiller.method.uses_unlabelled else None,
        resume=resume,
        overwrite=overwrite,
    )
    result = {
        "config": config.identity(),
        "classes": list(parts.train.classes),
        **_came_out(distiller, fitted, parts),
        "teacher_accuracy": teacher_result and teacher_result["accuracy"],
        "teacher_seconds": teacher_result and teacher_result["seconds"],  # of its training, whenever that was
    }
    if config.measure_alignment and teacher is not None:
        figures, bound = _alignment(student, teacher, parts.test or parts.val)
        result |= {**figures, "bound": asdict(bound)}
    write_result(folder, result)
    return result


def _came_out(distiller: Distiller, fitted: FitResult, parts: Parts) -> dict[str, Any]:
    assert fitted.student_path is not None
    test = None if parts.test is None else distiller.evaluate(parts.test)
    val = None if parts.val is None else distiller.evaluate(parts.val)
    return {
        "weights": fitted.student_path.name,
        "accuracy": test and test["accuracy"],  # on the test part
        "loss": test and test["loss"],
        "val_accuracy": val and val["accuracy"],
        "best_epoch": fitted.best_epoch,
        "last_epoch": fitted.history[-1],
        "seconds": fitted.seconds,
        "seconds_per_epoch": statistics.median(epoch["seconds"] for epoch in fitted.history),
        "samples": {name: _count(getattr(parts, name)) for name in ("train", "val", "test", "unlabelled")},
    }


def _alignment(student: Any, teacher: Teacher, test: LabelledData | None) -> tuple[dict[str, float], Any]:
    if test is None or teacher.held_out is None:
        raise ValueError("measure_alignment needs test or validation data of both modalities")
    return alignment(
        student.head,
        teacher.model.head,
        features_of(student, test, _MEASURED),
        features_of(teacher.model, teacher.held_out, _MEASURED),
    )


def _count(data: LabelledData | None) -> int | None:
    return None if data is None else len(data)
