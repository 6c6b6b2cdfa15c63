"""The demo from the first sentence to the last file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compare.pool import one_thread
from ..extras import need
from ..report import Compared, compare
from ..terminal import Terminal
from . import files, screen
from .picture import draw
from .pool import run_all
from .settings import BASELINE, CONTENDERS, DemoSettings
from .student import Outcome
from .task import Task, load_speech, split_voices, train_teacher
from .verdict import sentences


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and where it is."""

    numbers: dict[str, Any]  # as in results.json
    folder: Path


def run_demo(settings: DemoSettings, folder: Path, terminal: Terminal) -> DemoResult:
    """Train, compare, say, draw and write.

    Args:
        settings: what to run.
        folder: where results.json, picture.png and student.safetensors go; files of those names are replaced,
            at the very end.
        terminal: where everything is said.

    Raises:
        ImportError: scikit-learn or matplotlib is not installed, or no speech can be had.
        FileNotFoundError: a folder that cannot be read or written to.
        ValueError: recordings that cannot be used.
        OSError: the results cannot be written.
    """
    need("matplotlib.figure")
    need("sklearn.manifold")
    files.check_output(folder)
    seconds: dict[str, float] = {}
    with one_thread():
        task = _prepare(settings, terminal, seconds)
        with _timed(seconds, "students"), screen.runs(terminal, settings) as on_done:
            outcomes, portraits = run_all(task, settings, on_done)
        methods = compared(outcomes)
        conclusions = sentences(methods, len(task.speech.classes))
        screen.show(terminal, task, settings, methods, conclusions)
        with _timed(seconds, "picture"), terminal.status("Drawing the picture"):
            picture = draw(task, settings, methods, portraits)
    numbers = files.results(task, settings, outcomes, methods, conclusions, seconds)
    files.write(folder, numbers, picture, portraits)
    screen.say_where(terminal, folder, seconds)
    return DemoResult(numbers, folder)


def compared(outcomes: Sequence[Outcome]) -> list[Compared]:
    """The contenders, each with its outcomes by seed, against the baseline."""
    methods = []
    for contender in CONTENDERS:
        own = sorted((o for o in outcomes if o.key == contender.key), key=lambda o: o.seed)
        names = (
            "val_accuracy", "fa", "la", "teacher_reads", "class_agreement", "class_agreement_p", "seconds_per_epoch",
        )  # fmt: skip
        methods.append(
            Compared(
                contender.key,
                contender.label,
                [o.accuracy for o in own],
                {name: [getattr(o, name) for o in own] for name in names},
                [o.bound for o in own],
                contender.permuted,
                test_samples=[o.test_samples for o in own],
            )
        )
    return compare(methods, BASELINE)


def _prepare(settings: DemoSettings, terminal: Terminal, seconds: dict[str, float]) -> Task:
    """The recordings, checked against what every seed will ask of them, and the teacher."""
    with _timed(seconds, "speech"), terminal.status("Listening to the recordings"):
        speech = load_speech(settings.audio)
        for seed in range(settings.seeds):
            split_voices(speech, settings.labels_per_class, seed)
    with _timed(seconds, "teacher"), terminal.status("Training the teacher on handwriting"):
        task = Task(speech, train_teacher(), speech.source, speech.description)
    screen.introduce(terminal, task, settings)
    return task


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
