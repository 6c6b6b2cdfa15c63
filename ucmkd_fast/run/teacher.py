"""The teacher of a run: trained, or read, once; kept with its features."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import FeatureBank, LabelledData
from ..data.relabel import relabelled
from .config import TeacherConfig
from .controls import derangement, permuted_model
from .files import load_weights, weights_of
from .sources import build_model, open_parts

UNTRAINED = "untrained"


@dataclass(frozen=True)
class Teacher:
    """A teacher and its samples, or their features."""

    model: Any
    train: LabelledData  # what students are distilled from
    held_out: LabelledData | None  # what it did not train on


def load_teacher(config: TeacherConfig, folder: Path, run_seed: int) -> Teacher:
    """The teacher, trained before into ``folder`` or read from its checkpoint, as its control asks.

    Args:
        config: the teacher's settings.
        folder: where `pretrain` put it; features are kept there as well.
        run_seed: draws the renaming of a permuted control.

    Raises:
        FileNotFoundError: no weights, or missing data.
        ValueError: weights of another model.
    """
    weights = None if config.control == UNTRAINED else weights_of(config.checkpoint or folder)
    teacher = (
        _with_features(config, folder, weights) if config.cache_features else _with_data(config, weights)
    )
    if config.control == "permuted":
        return _permuted(teacher, derangement(len(teacher.train.classes), run_seed))
    return teacher


def _with_data(config: TeacherConfig, weights: Path | None) -> Teacher:
    parts = open_parts(config.data, config.seed)
    model = _model(config, weights, parts.train.classes, parts.train[0][0])
    return Teacher(model, parts.train, parts.test or parts.val)


def _with_features(config: TeacherConfig, folder: Path, weights: Path | None) -> Teacher:
    """Features from an earlier time, where they are of these weights and data, or else made and kept."""
    key = hashlib.sha256(json.dumps([config.data.plain(), config.model.plain(), config.seed]).encode())
    key.update(UNTRAINED.encode() if weights is None else weights.read_bytes())
    train, held_out = (
        folder / f"features-{part}-{key.hexdigest()[:16]}.safetensors" for part in ("train", "held-out")
    )
    if not train.is_file():
        teacher = _with_data(config, weights)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"input": json.dumps(list(teacher.train[0][0].shape))}
        if teacher.held_out is not None:
            FeatureBank.from_model(teacher.model, teacher.held_out).save(held_out)
        FeatureBank.from_model(teacher.model, teacher.train, about=about).save(
            train
        )  # last: it says that all is there
    bank = FeatureBank.load(train)
    model = _model(config, weights, bank.classes, torch.zeros(json.loads(bank.about["input"])))
    return Teacher(model, bank, FeatureBank.load(held_out) if held_out.is_file() else None)


def _model(config: TeacherConfig, weights: Path | None, classes: list[str], sample: Tensor) -> Any:
    model: Any = build_model(config.model, classes, sample, config.seed)
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def _permuted(teacher: Teacher, renamed: Tensor) -> Teacher:
    """Class k is renamed to another one, in head and labels alike."""
    held_out = teacher.held_out
    return Teacher(
        permuted_model(teacher.model, renamed),
        relabelled(teacher.train, renamed),
        None if held_out is None else relabelled(held_out, renamed),
    )
