"""Data sets by name: a plain mapping, as a run's saved settings hold it, to a data set.

``open_data({"name": "digits", "split": "train", "labels_per_class": 5})``. The keys are of three
kinds: the arguments of the function that opens the data set (`OPENERS`); how it is split, for a data set
that has no split of its own; and which of a part's samples are used (`selection`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ..config import check_keys
from ..ops.checks import choice
from .labelled import LabelledData
from .selection import SELECTION, select
from .splits import split_by_shares

#: Name -> the function that opens it, "module:function" of this package. All its arguments are keywords.
OPENERS = {
    "digits": "digits:handwritten_digits",
    "spoken-digits": "speech:open_spoken_digits",
    "ravdess": "ravdess:open_ravdess",
    "crema-d": "crema_d:open_crema_d",
    "ave": "ave:open_ave",
    "vggsound": "vggsound:open_vggsound",
    "image-folder": "folders:open_image_folder",
    "audio-folder": "folders:open_audio_folder",
    "table": "tables:open_table",
    "text": "tables:open_text",
    "features": "feature_files:open_features",
    "hugging-face": "hugging_face:open_hugging_face",
}

#: Keys for data sets without a split of their own.
_SPLITTING = {"split": None, "shares": (0.7, 0.15, 0.15), "split_by": None, "seed": 0}


def data_names() -> list[str]:
    """The names that `open_data` knows."""
    return list(OPENERS)


def data_keys(name: str) -> list[str]:
    """The keys that a specification of this data set may have."""
    own = _arguments(_opener(name))
    return ["name", *own, *(key for key in _SPLITTING if "split" not in own), *SELECTION]


def open_data(spec: Mapping[str, Any]) -> LabelledData:
    """The data set that a mapping describes.

    Keys that every data set knows: ``name``; ``split``; ``keep``, ``labels_per_class``, ``draw_seed``,
    ``mismatch`` (see `selection.select`). A data set that comes in one piece is split here: ``split``
    is "train", "val" or "test" (absent: all of it), ``shares`` the parts' sizes, ``split_by`` "class" or
    "group" (absent: by group where the groups are known, so that no voice is in two parts),
    ``seed`` the draw. All other keys are arguments of the function in `OPENERS`.

    Raises:
        TypeError: not a mapping.
        ValueError: an unknown name or key (the nearest right one is named), or a value that cannot be
            honoured.
        FileNotFoundError: the data are not where the specification says.
    """
    if not isinstance(spec, Mapping):
        raise TypeError(f"a data set is described by a mapping of names to values, got {type(spec).__name__}")
    if "name" not in spec:
        raise ValueError(f"the description of a data set needs a name, one of {', '.join(OPENERS)}")
    name = _known(spec["name"])
    check_keys(spec, data_keys(name), f"key of data set {name!r}:")
    opener = _opener(name)
    own = _arguments(opener)
    data = opener(**{key: value for key, value in spec.items() if key in own})
    if "split" not in own:
        splitting = {key: spec.get(key, default) for key, default in _SPLITTING.items()}
        data = _part(data, **splitting)
    selection = {key: value for key, value in spec.items() if key in SELECTION}
    return select(data, spec.get("split"), **selection) if selection else data


def _part(
    data: LabelledData, split: str | None, shares: Any, split_by: str | None, seed: int
) -> LabelledData:
    if split is None:
        return data
    choice("split", split, ("train", "val", "test"))
    parts = split_by_shares(data, shares, by=split_by, seed=seed)
    return parts[("train", "val", "test").index(split)]


def _known(name: Any) -> str:
    """The registered name; "spoken_digits" and "Spoken-Digits" are "spoken-digits"."""
    plain = str(name).lower().replace("_", "-")
    choice("the name of a data set", plain, list(OPENERS))
    return plain


def _opener(name: str) -> Callable[..., LabelledData]:
    module, _, function = OPENERS[_known(name)].partition(":")
    return getattr(import_module(f".{module}", __package__), function)


def _arguments(opener: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(opener).parameters)
