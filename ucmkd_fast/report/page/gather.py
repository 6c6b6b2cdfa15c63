"""Everything that a run's page shows, measured on the run's data; nothing is drawn here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data import FeatureBank, LabelledData
from ...methods import build_method
from ...methods.checks import transport as transport_of
from ...models.precision import head_in
from ...ops.checks import choice
from ...ops.label_transport import label_transport_loss
from ...ops.result import SinkhornResult
from ...ops.sinkhorn import sinkhorn_loss
from ...run.config import preset_and_options
from ...run.files import load_weights, read_result
from ...run.finished import FinishedRun, open_finished
from ...run.job import TEACHER
from ...run.measure import FA_ITER, FA_METRIC, FA_REG, draw, features_of
from ...run.sources import PARTS
from ...run.teacher import Teacher, load_teacher
from ...training.checkpoint import read_latest
from ...training.method_settings import method_settings
from ...training.metrics import evaluate
from ...training.run_folder import RunFolder
from ..sample_terms import Constants, SampleTerms, sample_terms
from ..theory import BoundParts, bound_parts

_SAMPLES = 1000  # of each modality at most, for what is measured between them
_BOUND_SAMPLES, _BOUND_EPOCHS = 400, 25  # for the bound, which takes a transport problem an epoch


@dataclass(frozen=True)
class BetweenModalities:
    """The student's features against the teacher's."""

    student: FeatureBank
    teacher: FeatureBank
    transport: dict[str, Any]  # metric, reg, max_iter; unbalanced where it is
    by_method: bool  # whether the method trained with that transport, or has none of its own
    marginal_error: float
    plan_by_class: np.ndarray  # (K, K) mass from each student class (row) to each teacher class; sums to 1
    kappa: np.ndarray  # (n,) the teacher's probability of the student's label, on the student's features
    teacher_reads: float  # accuracy of the teacher's head on the student's features, 0 to 1
    bound: BoundParts  # of the student that the run ended with
    bounds: dict[int, BoundParts]  # of the students that were kept, by epoch
    final_epoch: int | None  # of the student that the run ended with
    sample_terms: SampleTerms | None
    constants: Constants | None


@dataclass(frozen=True)
class RunReport:
    """One run."""

    folder: Path
    config: dict[str, Any]
    record: dict[str, Any]  # run.json: versions, git state, device
    result: dict[str, Any]  # result.json
    history: list[dict[str, float]]  # an entry an epoch; empty where there is no checkpoint left
    part: str  # of the student's data that was measured
    classes: list[str]
    measured: dict[str, Any]  # as `training.metrics.evaluate`
    between: BetweenModalities | None
    why_not_between: str | None  # a sentence, where there is nothing to compare with


def gather(
    folder: Path,
    *,
    part: str = "test",
    constants: Constants | None = None,
    teacher_folder: Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> RunReport:
    """Measure a finished run for its page.

    Args:
        folder: the run's.
        part: "train", "val" or "test" of the student's data.
        constants: of Theorem 2.7, where its terms are wanted.
        teacher_folder: where the teacher is, if not in ``folder`` (runs of a comparison share one).
        changes: to the run's settings, at dotted paths: where its data are now, say.

    Raises:
        FileNotFoundError: no finished run, or missing data.
        ValueError: no such part; damaged files; terms were asked for that there is no teacher for.
    """
    choice("part", part, PARTS)
    run = open_finished(folder, changes)
    data = getattr(run.parts, part)
    if data is None:
        raise ValueError(f"data of {folder} have no part {part!r}")
    teacher, why_not = _teacher(run, teacher_folder)
    between = None
    if teacher is not None:
        student = features_of(run.student, data, _SAMPLES)
        assert teacher.held_out is not None
        held_out = features_of(teacher.model, teacher.held_out, _SAMPLES)
        if student.x.shape[1] == held_out.x.shape[1]:
            between = _between(run, teacher, data, student, held_out, constants)
        else:
            why_not = (
                f"The student's features are {student.x.shape[1]} wide and the teacher's {held_out.x.shape[1]}, "
                "so no cost compares them."
            )
    if constants is not None and between is None:
        raise ValueError(f"the terms of Theorem 2.7 need a teacher to measure against. {why_not}")
    result = read_result(folder)
    assert result is not None  # `open_finished` has read it
    return RunReport(
        folder=folder,
        config=run.config.plain(),
        record=_record(folder),
        result=result,
        history=_history(folder),
        part=part,
        classes=list(data.classes),
        measured=evaluate(run.student, data, device=torch.device("cpu"), batch_size=256),
        between=between,
        why_not_between=why_not,
    )


def _teacher(run: FinishedRun, folder: Path | None) -> tuple[Teacher | None, str | None]:
    """The run's teacher with samples that it did not train on, or why there is none."""
    config = run.config.teacher
    if config is None:
        return None, "The run has no teacher."
    place = folder or run.folder / TEACHER
    if folder is None and config.train is not None and config.control != "untrained" and not place.is_dir():
        return None, f"The run trained no teacher of its own: there is no {place}."
    teacher = load_teacher(config, place, run.config.seed)
    if teacher.held_out is None:
        return None, "The teacher has no test or validation data."
    return teacher, None


@torch.no_grad()
def _between(
    run: FinishedRun,
    teacher: Teacher,
    data: LabelledData,
    student: FeatureBank,
    held_out: FeatureBank,
    constants: Constants | None,
) -> BetweenModalities:
    classes = len(data.classes)
    settings, by_method = _transport(run)
    result = sinkhorn_loss(student.x, held_out.x, **settings, return_result=True)
    assert isinstance(result, SinkhornResult)
    heads = (head_in(model.head, student.x.dtype) for model in (run.student, teacher.model))
    logits, teacher_logits = (head(student.x) for head in heads)
    read = teacher_logits.softmax(1)
    assert teacher.held_out is not None
    fewer = features_of(teacher.model, teacher.held_out, _BOUND_SAMPLES)
    bound = _bound(run, teacher, draw(data, _BOUND_SAMPLES), fewer)
    terms = None
    if constants is not None:
        integrand = label_transport_loss(logits, teacher_logits, student.labels, reduction="none")
        terms = sample_terms(constants, bound.tau, len(student.x), len(held_out.x), integrand.max().item())
    return BetweenModalities(
        student=student,
        teacher=held_out,
        transport=settings,
        by_method=by_method,
        marginal_error=result.marginal_error.item(),
        plan_by_class=mass_by_class(result.plan(), student.labels, held_out.labels, classes).numpy(),
        kappa=read.gather(1, student.labels[:, None])[:, 0].numpy(),
        teacher_reads=(read.argmax(1) == student.labels).float().mean().item(),
        bound=bound,
        bounds=_bounds(run, teacher, data),
        final_epoch=_final_epoch(run),
        sample_terms=terms,
        constants=constants,
    )


def mass_by_class(plan: Tensor, row_labels: Tensor, column_labels: Tensor, classes: int) -> Tensor:
    """A plan (n, m) summed over pairs of classes, (classes, classes): from each row class to each column class."""
    rows = plan.new_zeros(classes, plan.shape[1]).index_add_(0, row_labels, plan)
    return plan.new_zeros(classes, classes).index_add_(1, column_labels, rows)


def _transport(run: FinishedRun) -> tuple[dict[str, Any], bool]:
    """The transport that the method trains with; where it has none, the one that tables show."""
    preset, options = preset_and_options(run.config.method)
    method = build_method(
        run.config.method.name, **method_settings(run.config.method.name, preset, options)["options"]
    )
    own = getattr(method, "transport", None) or getattr(getattr(method, "options", None), "transport", None)
    chosen = own or transport_of(FA_METRIC, FA_REG, FA_ITER)
    return {name: value for name, value in chosen._asdict().items() if value is not None}, own is not None


def _bounds(run: FinishedRun, teacher: Teacher, data: LabelledData) -> dict[int, BoundParts]:
    """Theorem 2.6 at the epochs whose student was kept; the run's student is put back after."""
    assert teacher.held_out is not None
    kept = RunFolder(run.folder).kept_weights()
    epochs = list(kept)
    if len(epochs) > _BOUND_EPOCHS:
        epochs = [epochs[i] for i in np.linspace(0, len(epochs) - 1, _BOUND_EPOCHS).round().astype(int)]
    held_out, drawn = features_of(teacher.model, teacher.held_out, _BOUND_SAMPLES), draw(data, _BOUND_SAMPLES)
    found = {}
    try:
        for epoch in epochs:
            load_weights(run.student, kept[epoch])
            found[epoch] = _bound(run, teacher, drawn, held_out)
    finally:
        load_weights(run.student, run.weights)
    return found


def _bound(run: FinishedRun, teacher: Teacher, drawn: LabelledData, held_out: FeatureBank) -> BoundParts:
    student = features_of(run.student, drawn, len(drawn))
    return bound_parts(
        run.student.head, teacher.model.head, student.x, student.labels, held_out.x, held_out.labels
    )


def _final_epoch(run: FinishedRun) -> int | None:
    """Counted from 1: the best on validation where the run ended with that, or else the last."""
    result = read_result(run.folder)
    assert result is not None
    if run.weights.name == "best.safetensors":
        return result.get("best_epoch")
    return int(result["last_epoch"]["epoch"])


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _history(folder: Path) -> list[dict[str, float]]:
    saved = read_latest(RunFolder(folder).checkpoints)
    return [] if saved is None else saved["standing"]["history"]
