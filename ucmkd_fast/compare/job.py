"""A comparison from its settings to its tables: teachers first, then every run that is not there yet."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from ..data.class_names import check_same_names
from ..run.config import RunConfig
from ..run.files import DIVERGED, read_result, write_result
from ..run.job import distill, finished, ready_teacher
from ..run.settings import at
from ..run.sources import DataSpec, Parts, open_parts
from ..run.teacher import load_teacher
from ..training.checkpoint import write_text
from ..training.diagnosis import CannotHelp
from ..training.lock import only_writer
from .experiment import Cell, Experiment
from .pool import run_all
from .results import Comparison, gather

RESULTS, TABLE, SETTINGS = "results.json", "table.md", "experiment.yaml"
OnDone = Callable[[str], None]


@dataclass(frozen=True)
class Progress:
    """How far a comparison is."""

    there: int  # runs that an earlier session finished
    waiting: int


def standing(experiment: Experiment, folder: Path) -> Progress:
    """What of a comparison is there already.

    Raises:
        ValueError: the folder holds runs of the same names with other settings.
    """
    cells = list(experiment.cells())
    there = sum(_done(cell, folder) is not None for cell in cells)
    return Progress(there, len(cells) - there)


def run_experiment(
    experiment: Experiment,
    folder: Path,
    *,
    jobs: int | None = None,
    resume: bool = False,
    on_done: OnDone = lambda what: None,
) -> Comparison:
    """Do what is not done yet, then compare.

    Every run is kept in a folder of its own as `run.job.distill` makes it, and counts as done when its
    ``result.json`` is there. So a comparison that was killed at any moment goes on where it was, and one
    that got more seeds or methods since does only those.

    Args:
        experiment: what to run.
        folder: where its runs and results are kept.
        jobs: runs at the same time, each on one thread; None: one for each core, or one where there is a GPU.
        resume: go on with what the folder holds.
        on_done: called after each run (and each teacher's training) with its name.

    Raises:
        ChildProcessError: a process died; what was finished stays.
        FolderInUse: an OSError: another process is writing to the folder.
        FileNotFoundError: missing data.
        ValueError: the folder holds runs and ``resume`` is not said, or runs of other settings.
    """
    with only_writer(folder):
        return _run(experiment, folder, jobs, resume, on_done)


def _run(experiment: Experiment, folder: Path, jobs: int | None, resume: bool, on_done: OnDone) -> Comparison:
    cells = list(experiment.cells())
    results = {cell.folder: _done(cell, folder) for cell in cells}
    if not resume and (folder / "runs").is_dir():
        raise ValueError(
            f"{folder} holds a comparison already: pass resume=True to go on with it, or name another folder"
        )
    write_text(folder / SETTINGS, yaml.safe_dump(experiment.plain(), sort_keys=False, allow_unicode=True))
    waiting = [cell for cell in cells if results[cell.folder] is None]
    _check_classes(waiting, folder)
    for work, _ in run_all(_prepare, None, _teachers(waiting, folder), jobs):
        on_done(work.name)
    for work, result in run_all(_prepare, None, [_student(cell, folder) for cell in waiting], jobs):
        results[work.place] = result
        on_done(work.name)
    found = {cell.folder: result for cell in cells if (result := results[cell.folder]) is not None}
    comparison = gather(experiment, cells, found)
    write_text(folder / RESULTS, json.dumps(comparison.plain(), indent=2, allow_nan=False) + "\n")
    write_text(folder / TABLE, comparison.markdown())
    return comparison


@dataclass(frozen=True)
class _Work:
    """What a process is asked to do: train a student, or ready a teacher."""

    name: str
    config: RunConfig
    folder: Path
    teacher: Path | None
    place: Path  # of its result
    is_teacher: bool = False


def _prepare(shared: None) -> Callable[[_Work], dict[str, Any] | None]:
    _parts.cache_clear()  # files may have changed since an earlier comparison in this process
    return _do


@lru_cache(maxsize=2)
def _parts(data: str, seed: int) -> Parts:
    """The runs of a seed follow each other, and ask for the same data."""
    return open_parts(DataSpec.read(json.loads(data)), seed)


def _do(work: _Work) -> dict[str, Any] | None:
    config = work.config
    if work.is_teacher:
        assert config.teacher is not None
        student = _parts(json.dumps(config.student.data.plain()), config.seed)
        ready_teacher(config, work.folder, student.train.classes)
        load_teacher(config.teacher, work.folder, config.seed)  # makes the features that students share
        return None
    try:
        parts = _parts(json.dumps(config.student.data.plain()), config.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CannotHelp)  # the table says it of every method
            return distill(config, work.folder, teacher_folder=work.teacher, parts=parts, resume=True)
    except FloatingPointError as error:  # an outcome of the method, not of the comparison
        result = {"config": config.identity(), "weights": None, DIVERGED: str(error)}
        write_result(work.folder, result)
        return result


def _check_classes(cells: Sequence[Cell], folder: Path) -> None:
    """Raise ValueError where a student's classes are not those of a teacher that is yet to be trained."""
    pairs = {}
    for cell in cells:
        teacher, place = cell.config.teacher, _teacher_folder(cell, folder)
        if teacher is not None and place is not None and read_result(place) is None:
            pairs[json.dumps([cell.config.student.data.plain(), teacher.data.plain()])] = cell
    for cell in pairs.values():
        config = cell.config
        assert config.teacher is not None
        sides = ((config.student.data, config.seed), (config.teacher.data, config.teacher.seed))
        student, teacher_data = (open_parts(data, seed).train for data, seed in sides)
        with at(cell.setting):
            check_same_names(student.classes, teacher_data.classes)


def _teachers(cells: Sequence[Cell], folder: Path) -> list[_Work]:
    """Each teacher that the runs need, once."""
    works = {}
    for cell in cells:
        place = _teacher_folder(cell, folder)
        if place is not None and place not in works:
            assert cell.config.teacher is not None
            real = replace(cell.config, teacher=replace(cell.config.teacher, control=None))
            works[place] = _Work(f"teacher of {cell.setting}", _quiet(real), place, None, place, True)
    return list(works.values())


def _student(cell: Cell, folder: Path) -> _Work:
    name = f"{cell.contender.label}, {cell.setting}, seed {cell.seed}"
    place = cell.folder
    return _Work(name, _quiet(cell.config), folder / place, _teacher_folder(cell, folder), place)


def _teacher_folder(cell: Cell, folder: Path) -> Path | None:
    """The same for all runs with the same teacher, controls of it included."""
    config = cell.config
    if not config.needs_teacher:
        return None
    teacher = config.identity()["teacher"]
    del teacher["control"]
    return folder / "teachers" / sha256(json.dumps(teacher, sort_keys=True).encode()).hexdigest()[:12]


def _quiet(config: RunConfig) -> RunConfig:
    """Without bars, as many runs share one terminal."""
    teacher = config.teacher
    if teacher is not None and teacher.train is not None:
        teacher = replace(teacher, train=teacher.train.updated(progress=False))
    return replace(config, teacher=teacher, train=config.train.updated(progress=False))


def _done(cell: Cell, folder: Path) -> dict[str, Any] | None:
    return finished(cell.config, folder / cell.folder)
