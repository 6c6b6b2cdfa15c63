"""What the demo runs: its knobs, and the methods that it compares.

The training knobs were fixed before any test voice was heard, from an earlier study of the
same task with other seeds; nothing here was chosen by what the demo prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import TrainConfig
from ..ops.checks import count_at_least_one

BASELINE = "ce"
STEPS_PER_EPOCH = 5
WIDTH = 64  # of both models' features


@dataclass(frozen=True)
class Contender:
    """A method in the comparison.

    Attributes:
        key: its name in results.json.
        label: its name in tables and pictures.
        method: of the registry.
        preset: of methods that have presets.
        permuted: True for a control: the teacher's classes are renamed, each to another, so that it is as
            accurate as before and wrong about what the classes mean to the student.
    """

    key: str
    label: str
    method: str
    preset: str = "paper"
    permuted: bool = False


CONTENDERS = (
    Contender("ce", "ce (no teacher)", "ce"),
    Contender("kd", "kd (class-matched)", "kd"),
    Contender("feature", "feature (FA)", "feature"),
    Contender("joint", "joint (FA + LA)", "joint"),
    Contender("ucmkd", "ucmkd (paper)", "ucmkd"),
    Contender("ucmkd_published", "ucmkd (published code)", "ucmkd", "published-code"),
    Contender("kd_permuted", "kd, permuted", "kd", permuted=True),
    Contender("ucmkd_permuted", "ucmkd, permuted", "ucmkd", permuted=True),
)


@dataclass(frozen=True)
class DemoSettings:
    """The demo's options.

    Attributes:
        audio: folder of recordings, FSDD layout; None: a download, or else synthetic speech.
        labels_per_class: labelled recordings of each digit that a student sees.
        seeds: how often everything is repeated; a seed decides voices, recordings, weights and batches, the
            same for every method.
        epochs: of `STEPS_PER_EPOCH` steps.
        jobs: students trained at the same time, each on one thread; None: one for each core, or one where there
            is a GPU.
    """

    audio: Path | None = None
    labels_per_class: int = 5
    seeds: int = 5
    epochs: int = 30
    jobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("labels_per_class", "seeds", "epochs"):
            count_at_least_one(name, getattr(self, name))
        if self.jobs is not None:
            count_at_least_one("jobs", self.jobs)


def teacher_config() -> TrainConfig:
    """The teacher's training; the epoch that is best on its validation digits is kept."""
    return TrainConfig(lr=0.05, momentum=0.9, epochs=20, batch_size=64, clip_norm=5.0, seed=0, progress=False)


def student_config(settings: DemoSettings, seed: int) -> TrainConfig:
    """Every student's training; the weights after the last step count, so no voice chooses anything."""
    return TrainConfig(
        lr=0.05,
        momentum=0.9,
        epochs=settings.epochs,
        steps_per_epoch=STEPS_PER_EPOCH,
        batch_size=64,
        clip_norm=5.0,
        seed=seed,
        restore_best=False,
        diagnose=False,  # the table and the verdict say it
        progress=False,
    )
