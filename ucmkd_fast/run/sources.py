"""Data and models by name: what a run's settings may ask for.

A data source is a function ``(*, seed, **options) -> Parts``, a model a function ``(*, classes, sample,
**options) -> nn.Module`` with ``encode`` and ``head``; ``sample`` is one input x (...), to see sizes on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..config import check_keys, kind
from ..data import (
    LabelledData,
    SpokenDigits,
    TensorData,
    few_labels,
    split_by_group,
    split_digits,
    spoken_digits,
)
from ..models import digit_cnn, mlp, speech_cnn
from ..ops.checks import choice


@dataclass(frozen=True)
class Named:
    """Something of a registry: its name and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Any) -> Named:
        """From a name alone, or a mapping with ``name`` and options."""
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise TypeError(f"expected a name, or a mapping with a name and options, got {kind(value)}")
        return cls(value["name"], {str(key): one for key, one in value.items() if key != "name"})

    def plain(self) -> dict[str, Any]:
        """What `read` reads back."""
        return {"name": self.name, **self.options}


@dataclass(frozen=True)
class Parts:
    """A data set, split; no sample, and no group where there are groups, is in two parts."""

    train: LabelledData
    val: LabelledData | None = None
    test: LabelledData | None = None
    unlabelled: LabelledData | None = None  # more of the training part, to be used without labels


DATA: dict[str, Callable[..., Parts]] = {}
MODELS: dict[str, Callable[..., nn.Module]] = {}


def check_data(data: Named) -> None:
    """Raise ValueError for an unknown source or option, naming the nearest right name."""
    choice("name", data.name, sorted(DATA))
    check_keys(data.options, _options(DATA[data.name], "seed"), f"option of data {data.name!r}")


def check_model_spec(model: Named) -> None:
    """Raise ValueError for an unknown model or option, naming the nearest right name."""
    choice("name", model.name, sorted(MODELS))
    check_keys(
        model.options, _options(MODELS[model.name], "classes", "sample"), f"option of model {model.name!r}"
    )


def build_data(data: Named, seed: int) -> Parts:
    """The data, split by the seed; FileNotFoundError where they are missing."""
    return DATA[data.name](seed=seed, **data.options)


def build_model(model: Named, classes: Sequence[str], sample: Tensor, seed: int) -> nn.Module:
    """A model for such classes and inputs x (...); its first weights are a function of the seed."""
    torch.manual_seed(seed)
    return MODELS[model.name](classes=len(classes), sample=sample, **model.options)


def _options(function: Callable[..., Any], *given: str) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in given]


def _handwritten(*, seed: int) -> Parts:
    train, val, test = split_digits(seed)
    return Parts(train, val, test)


def _spoken(
    *, seed: int, audio: str | None = None, source: str | None = None, labels_per_class: int | None = None
) -> Parts:
    return split_voices(_recordings(audio, source), labels_per_class, seed)


def split_voices(speech: TensorData, labels_per_class: int | None, seed: int) -> Parts:
    """Voices to train, validate and test on, drawn by the seed: about a half, a sixth and a third of them.

    Args:
        speech: the recordings; ``groups`` are the voices.
        labels_per_class: labelled recordings of each class to train on; the others of the same voices are
            ``unlabelled``. None: all are labelled.
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
    if labels_per_class is None:
        return Parts(train_part, val_part, test_part)
    labelled, rest = few_labels(train_part, labels_per_class, seed=seed)
    return Parts(labelled, val_part, test_part, rest)


@lru_cache(maxsize=2)
def _recordings(audio: str | None, source: str | None) -> SpokenDigits:
    """Kept, as every run of a comparison asks for the same."""
    return spoken_digits(audio, source)


def _digit_cnn(*, classes: int, sample: Tensor, width: int = 64) -> nn.Module:
    return digit_cnn(classes, width)


def _speech_cnn(*, classes: int, sample: Tensor, width: int = 64) -> nn.Module:
    return speech_cnn(classes, width, mels=sample.shape[-2])


def _mlp(*, classes: int, sample: Tensor, width: int = 64, hidden: tuple[int, ...] = (256,)) -> nn.Module:
    return mlp(sample.shape[-1], classes, width, tuple(hidden))


DATA |= {"handwritten-digits": _handwritten, "spoken-digits": _spoken}
MODELS |= {"digit-cnn": _digit_cnn, "speech-cnn": _speech_cnn, "mlp": _mlp}
