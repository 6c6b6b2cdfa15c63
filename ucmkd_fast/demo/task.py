"""The task: handwritten digits for the teacher, spoken ones for the student, and who hears which voice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from ..data import (
    FeatureBank,
    SpokenDigits,
    TensorData,
    few_labels,
    split_by_group,
    split_digits,
    spoken_digits,
)
from ..distiller import Distiller
from ..models import Classifier, digit_cnn
from ..run.controls import derangement, permuted_model
from .settings import WIDTH, teacher_config


@dataclass(frozen=True)
class Teacher:
    """A trained teacher and its features; the encoder itself need not run again."""

    model: Classifier
    train: FeatureBank  # what students are distilled from
    held_out: FeatureBank  # what its error and the pictures are made of

    @torch.no_grad()
    def accuracy(self) -> float:
        """On held-out digits, 0 to 1."""
        head, x = self.model.head, self.held_out.x
        predicted = head(x.to(next(head.parameters()).device)).argmax(1).cpu()
        return (predicted == self.held_out.labels).float().mean().item()

    def with_permuted_classes(self, seed: int) -> Teacher:
        """The control: class k is renamed to another one, in head and labels alike."""
        renamed = derangement(len(self.train.classes), seed)
        return Teacher(
            permuted_model(self.model, renamed),
            self.train.with_labels(renamed[self.train.labels]),
            self.held_out.with_labels(renamed[self.held_out.labels]),
        )


@dataclass(frozen=True)
class Voices:
    """One seed's split of the recordings; no voice is in two parts."""

    labelled: TensorData  # the few that the student sees
    val: TensorData  # for whoever changes a knob
    test: TensorData


@dataclass(frozen=True)
class Task:
    """Everything that a student's run needs, in any process."""

    speech: TensorData
    teacher: Teacher
    source: str  # "folder", "download" or "synthetic"
    description: str  # of the recordings, one sentence

    def voices(self, labels_per_class: int, seed: int) -> Voices:
        """The split of one seed, see `split_voices`."""
        return split_voices(self.speech, labels_per_class, seed)

    def pack(self) -> dict[str, Any]:
        """Bytes and strings, for another process."""
        tensors = {"speech.x": self.speech.x, "speech.y": self.speech.labels}
        for name, bank in (("train", self.teacher.train), ("held_out", self.teacher.held_out)):
            tensors |= {f"{name}.x": bank.x, f"{name}.y": bank.labels}
        weights = {f"model.{name}": value for name, value in self.teacher.model.state_dict().items()}
        return {
            "tensors": bytes_of(tensors | weights),
            "groups": self.speech.groups,
            "classes": self.speech.classes,
            "source": self.source,
            "description": self.description,
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> Task:
        """What `pack` packed."""
        tensors, classes = tensors_of(packed["tensors"]), packed["classes"]
        model = digit_cnn(len(classes), WIDTH)
        prefix = "model."
        model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        banks = [FeatureBank(tensors[f"{n}.x"], tensors[f"{n}.y"], classes) for n in ("train", "held_out")]
        return cls(
            TensorData(tensors["speech.x"], tensors["speech.y"], classes, packed["groups"]),
            Teacher(model.eval(), *banks),
            packed["source"],
            packed["description"],
        )


def split_voices(speech: TensorData, labels_per_class: int, seed: int) -> Voices:
    """Voices to train, validate and test on, drawn by the seed: about a half, a sixth and a third of them.

    Args:
        speech: the recordings; ``groups`` are the voices.
        labels_per_class: labelled recordings of each class to train on.
        seed: draws voices and recordings.

    Raises:
        ValueError: fewer than three voices, or too few recordings of a digit by those to train on.
    """
    names = sorted(set(speech.groups or ()))
    if len(names) < 3:
        raise ValueError(
            "expected recordings by at least three voices, one each to train, validate and test on; "
            f"found {', '.join(names) or 'none'}"
        )
    val, test = max(1, len(names) // 6), max(1, len(names) // 3)
    train_part, val_part, test_part = split_by_group(speech, len(names) - val - test, val, test, seed=seed)
    labelled, _ = few_labels(train_part, labels_per_class, seed=seed)
    return Voices(labelled, val_part, test_part)


def load_speech(audio: Path | None) -> SpokenDigits:
    """Spoken digits from wherever they can be had; ChildProcessError where the synthesiser fails."""
    try:
        return spoken_digits(audio)
    except RuntimeError as error:  # eSpeak NG's own words
        raise ChildProcessError(str(error)) from error


def train_teacher() -> Teacher:
    """A small network on handwritten digits, by the same loop that trains the students."""
    train, val, held_out = split_digits(seed=0)
    torch.manual_seed(0)
    model = digit_cnn(width=WIDTH)
    Distiller(model, method="ce", config=teacher_config()).fit(train, student_val=val)
    return Teacher(model, FeatureBank.from_model(model, train), FeatureBank.from_model(model, held_out))
