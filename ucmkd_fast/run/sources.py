"""Data and models of a run: what its settings say, opened with its seed.

A side's data are one data set of `ucmkd_fast.data.open_data`, of which ``train``, ``val`` and ``test`` are taken, or a
mapping with a data set for each of these parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import check_keys, kind
from ..data import UNLABELLED, LabelledData, data_keys, few_labels, open_data
from ..data.relabel import in_classes
from ..data.selection import SELECTION
from ..models import build_model as model_of
from ..models import model_keys

PARTS = ("train", "val", "test")


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

    def in_classes(self, classes: Sequence[str], sides: tuple[str, str]) -> Parts:
        """All parts under the labels that their classes have in another list; see `relabel.in_classes`."""
        own = {name: part for name, part in vars(self).items() if part is not None}
        return replace(self, **{name: in_classes(part, classes, sides) for name, part in own.items()})


@dataclass(frozen=True)
class DataSpec:
    """A side's data: one data set for all parts, or one for each."""

    whole: Named | None
    parts: Mapping[str, Named] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Any) -> DataSpec:
        """From a name, a mapping with a name and options, or a mapping of parts to such.

        Raises:
            TypeError: none of these.
            ValueError: an unknown name or option, with the nearest right one; parts without ``train``.
        """
        if isinstance(value, Mapping) and "name" not in value:
            check_keys(value, PARTS, "part of data")
            if "train" not in value:
                raise ValueError(f"expected a name, or a data set for train at least, got {list(value)}")
            parts = {part: _checked(one) for part, one in value.items() if one is not None}
            return cls(None, parts)
        return cls(_checked(value))

    def plain(self) -> dict[str, Any]:
        """What `read` reads back."""
        if self.whole is not None:
            return self.whole.plain()
        return {part: one.plain() for part, one in self.parts.items()}


def check_model_spec(model: Named) -> None:
    """Raise ValueError for an unknown model or option, naming the nearest right name."""
    check_keys(model.options, model_keys(model.name), f"option of model {model.name!r}")


def open_parts(data: DataSpec, seed: int) -> Parts:
    """The data, split by the seed; what is not trained with for want of a label is ``unlabelled``.

    Validation and test samples without a label are left out.
    Parts that are data sets of their own have the labels of the training part's classes, by their names.

    Raises:
        FileNotFoundError: data that are missing.
        ValueError: data that are broken, or cannot be split so; fewer than two classes; a part with a class that the
            training part lacks.
    """
    named = data.parts if data.whole is None else dict.fromkeys(PARTS, data.whole)
    opened: dict[str, LabelledData] = {}
    unlabelled = None
    for part, one in named.items():
        spec = _seeded(one, part, seed, whole=data.whole is not None)
        labels = spec.pop("labels_per_class", None)
        opened[part] = open_data(spec)
        if labels is not None:
            opened[part], unlabelled = few_labels(opened[part], labels, seed=spec["draw_seed"])
        else:
            opened[part], rest = _labelled(opened[part], part)
            unlabelled = rest if part == "train" else unlabelled
    classes = opened["train"].classes
    if len(classes) < 2:
        raise ValueError(
            f"expected two classes or more, the training data have {', '.join(map(repr, classes)) or 'none'} alone; of "
            "folders, root is the one that holds the classes' folders"
        )
    for part in opened:
        opened[part] = in_classes(opened[part], classes, ("the part 'train'", f"the part {part!r}"))
    return Parts(**opened, unlabelled=unlabelled)


def _labelled(data: LabelledData, part: str) -> tuple[LabelledData, LabelledData | None]:
    """The samples that have a label, and the others; None where all have one."""
    known = data.labels != UNLABELLED
    if known.all():
        return data, None
    if not known.any():
        raise ValueError(f"no sample of the part {part!r} has a label")
    return data.subset(known.nonzero().flatten()), data.subset((~known).nonzero().flatten())


def build_model(model: Named, classes: Sequence[str], sample: Tensor, seed: int) -> nn.Module:
    """A model for such classes and inputs x (...); its first weights are a function of the seed."""
    known: dict[str, Any] = {"classes": len(classes)}
    if sample.dim() == 1:
        known["inputs"] = sample.shape[0]
    if sample.dim() >= 3:  # (..., channels, height, width)
        known |= {
            "channels": sample.shape[-3],
            "mels": sample.shape[-2],
            "image_size": list(sample.shape[-2:]),
        }
    torch.manual_seed(seed)
    return model_of(model.plain(), **known)


def _seeded(data: Named, part: str, seed: int, *, whole: bool) -> dict[str, Any]:
    """The description of a part: its draws follow the run's seed where they have none of their own."""
    keys = data_keys(data.name)
    spec = data.plain()
    if whole:
        spec["split"] = part
    if part == "train":
        drawn = {"seed", "draw_seed"}
    else:  # fewer training samples, not fewer to test on
        spec = {key: value for key, value in spec.items() if key not in SELECTION}
        drawn = {"seed"}
    return {**{key: seed for key in drawn if key in keys}, **spec}


def _checked(value: Any) -> Named:
    named = Named.read(value)
    known = [key for key in data_keys(named.name) if key not in ("name", "split")]
    check_keys(named.options, known, f"option of data {named.name!r}")
    return named
