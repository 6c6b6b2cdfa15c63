"""Data sets of Hugging Face `datasets`: pictures, sound, text or numbers, read as in files of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..extras import need
from ..names import did_you_mean
from ..ops.checks import count_at_least_one
from .bank import FeatureBank
from .columns import group_names, labels_of
from .feature_tables import numbers
from .files import FileData, Reader
from .images import ImageTransform, decode_image, read_image
from .labelled import LabelledData, TensorData, numbered_classes
from .pixels import ImageReading
from .spectrograms import log_spectrogram, resized
from .tables import check_texts, token_reader
from .waves import checked_wave, decode_wave, read_wave

#: What a column can hold, and the arguments that go with it.
_OPTIONS = {
    "pictures": {"image_size", "augment", "background", "depth", "skip_bad", "workers"},
    "sounds": {"rate", "size", "skip_bad", "workers"},
    "text": {"tokenizer", "tokenizer_revision", "length", "skip_bad"},
    "numbers": {"features"},
}


def open_hugging_face(
    *,
    root: str | Path,
    column: str | Sequence[str],
    label: str,
    part: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    classes: Sequence[str] | None = None,
    group: str | None = None,
    image_size: int | None = None,
    augment: str | None = None,
    background: str | Sequence[int] | None = None,
    depth: int | None = None,
    rate: int | None = None,
    size: Sequence[int] | None = None,
    tokenizer: str | None = None,
    tokenizer_revision: str | None = None,
    length: int | None = None,
    features: bool | None = None,
    skip_bad: bool | None = None,
    workers: int | None = None,
) -> LabelledData:
    """One part of a data set, its samples by what the column holds.

    Pictures become (3, image_size, image_size); recordings (as in files, or arrays with their rate) `log_spectrogram`,
    (1, 257, 1004), or resized; text tokens (length,) int64; numbers, or lists of them, (n, D) float32 in memory.

    Args:
        root: its name on Hugging Face, or a folder that ``save_to_disk`` wrote.
        column: the samples'; several columns of numbers stand side by side.
        label: the column of the classes: ``ClassLabel``, labels from 0 on, or names; an empty cell is no label.
        part: its own part ("train", "train[:20%]"); None: where there is one alone, that.
        config: of several configurations, by name alone.
        revision: branch, tag or commit, by name alone.
        classes: the classes' names, in the order of the labels; None: as the data set has them.
        group: the column that says who made a sample.
        image_size: pixels of each side; None: 224.
        augment: of pictures in training, see `ImageTransform`; None: "random-crop".
        background: what is seen through transparent pixels, see `ImageReading`; None: "white".
        depth: bits of grey pictures with more than eight, see `ImageReading`.
        rate: the column's lists of numbers are waves of this rate, in Hz.
        size: height and width to interpolate spectrograms to.
        tokenizer: of text, its name on Hugging Face, or its folder.
        tokenizer_revision: None: "main".
        length: tokens of a text; None: 128.
        features: the numbers are features of a teacher's encoder already: it need not run.
        skip_bad: go on without pictures or sounds that cannot be read, and rows without a text, see `FileData`.
        workers: threads that read pictures or sounds.

    Raises:
        ImportError: datasets is not installed.
        OSError: the data set cannot be had.
        ValueError: no such part or column, a column of something else, an argument that does not go with it.
    """
    data = _part(_load(root, part, config, revision), root, part)
    columns = [column] if isinstance(column, str) else list(column)
    for name in [*columns, label, *([] if group is None else [group])]:
        if name not in data.features:
            hint = did_you_mean(name, data.features)
            raise ValueError(f"{root}: no column {name!r}; it has {', '.join(data.features)}{hint}")
    kind = _kind(data.features, columns, rate)
    own = {
        "image_size": image_size,
        "augment": augment,
        "background": background,
        "depth": depth,
        "rate": rate,
        "size": size,
        "tokenizer": tokenizer,
        "tokenizer_revision": tokenizer_revision,
        "length": length,
        "features": features,
        "skip_bad": skip_bad,
        "workers": workers,
    }
    given = {key: value for key, value in own.items() if value is not None}
    if wrong := sorted(set(given) - _OPTIONS[kind]):
        raise ValueError(
            f"{root}: {', '.join(wrong)} does not go with {', '.join(columns)}, which holds {kind}"
        )
    try:
        labels, names = _labels(data, label, classes, root)
        groups = None if group is None else group_names(list(data[group]), group)
        if kind == "numbers":
            x = numbers(data.select_columns(columns).with_format("arrow")[:], columns)
            return (FeatureBank if features else TensorData)(x, labels, names, groups)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{root}: {error}") from error
    if names is None:
        names = numbered_classes(labels)
    read = {"pictures": _pictures, "sounds": _sounds, "text": _text}[kind](data, columns[0], root, given)
    return FileData(
        read,
        labels,
        names,
        ids=[str(row) for row in range(len(labels))],
        groups=groups,
        skip_bad=bool(skip_bad),
        workers=0 if kind == "text" else workers,
    )


def _load(root: str | Path, part: str | None, config: str | None, revision: str | None) -> Any:
    """A `datasets.Dataset`, or a mapping of parts to them."""
    datasets, folder = need("datasets"), Path(root)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if saved and (config is not None or revision is not None):
        raise ValueError(f"{root}: config and revision choose by name; this is a folder of save_to_disk")
    try:
        if saved:
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(root), config, split=part, revision=revision)
    except OSError:  # not found, no network: they say so themselves
        raise
    except Exception as error:  # of Arrow, of the hub, of the builder
        raise ValueError(f"{root}: not a data set that can be loaded: {error}") from error


def _part(found: Any, root: str | Path, part: str | None) -> Any:
    if isinstance(found, dict):
        if part is None and len(found) == 1:
            part = next(iter(found))
        if part not in found:
            hint = did_you_mean(part, found)
            raise ValueError(f"{root}: part must be one of {', '.join(found)}, got {part!r}{hint}")
        found = found[part]
    elif part is not None and (Path(root) / "state.json").is_file():
        raise ValueError(
            f"{root}: one data set without parts was saved there, part must be None, got {part!r}"
        )
    if not len(found):
        raise ValueError(f"{root}: expected at least one sample, found none")
    return found


def _kind(features: Any, columns: list[str], rate: int | None) -> str:
    """What the columns hold, a key of `_OPTIONS`."""
    datasets = need("datasets")
    if len(columns) != 1:
        return "numbers"
    own = features[columns[0]]
    if isinstance(own, datasets.Image):
        return "pictures"
    if isinstance(own, datasets.Audio) or isinstance(own, dict) and {"array", "sampling_rate"} <= set(own):
        if rate is not None:
            raise ValueError(f"rate={rate}: column {columns[0]!r} says its own rate")
        return "sounds"
    if isinstance(own, datasets.Value):
        return "text" if own.dtype in ("string", "large_string") else "numbers"
    return "numbers" if rate is None else "sounds"


def _labels(
    data: Any, label: str, classes: Sequence[str] | None, root: str | Path
) -> tuple[Tensor, list[str] | None]:
    feature, cells = data.features[label], list(data[label])
    if not isinstance(feature, need("datasets").ClassLabel):
        return labels_of(cells, label, classes, root)
    named = [None if cell in (None, -1) else feature.names[cell] for cell in cells]
    return labels_of(named, label, feature.names if classes is None else classes, root)


def _pictures(data: Any, column: str, root: str | Path, given: dict[str, Any]) -> Reader:
    transform = ImageTransform(given.get("image_size", 224), given.get("augment", "random-crop"))
    reading = ImageReading(given.get("background", "white"), given.get("depth"))
    cells = data.select_columns([column]).cast_column(column, need("datasets").Image(decode=False))
    return _Pictures(cells, column, root, reading, transform)


@dataclass(frozen=True)
class _Pictures:
    """Gives the picture (3, s, s) of a row."""

    cells: Any
    column: str
    root: str | Path
    reading: ImageReading
    transform: ImageTransform

    def __call__(self, index: int, random: np.random.Generator | None) -> Tensor:
        cell, name = self.cells[index][self.column], f"{self.root}, row {index}"
        if cell is None:
            raise ValueError(f"{name}: expected a picture, there is none")
        content = cell["bytes"]
        known = content is not None
        image = (
            decode_image(content, name, self.reading)
            if known
            else read_image(Path(cell["path"]), self.reading)
        )
        return self.transform(image, random)


def _sounds(data: Any, column: str, root: str | Path, given: dict[str, Any]) -> Reader:
    cells, size, rate = data.select_columns([column]), given.get("size"), given.get("rate")
    kind = None
    if isinstance(data.features[column], need("datasets").Audio):
        cells = cells.cast_column(column, need("datasets").Audio(decode=False))
    else:
        kind = _kind_of_numbers(data.features[column])
    return _Sounds(cells, column, root, kind, rate, size)


@dataclass(frozen=True)
class _Sounds:
    """Gives the spectrogram (1, h, w) of a row."""

    cells: Any
    column: str
    root: str | Path
    kind: str | None  # of numbers in lists
    rate: int | None
    size: Sequence[int] | None

    def __call__(self, index: int, random: np.random.Generator | None) -> Tensor:
        name = f"{self.root}, row {index}"
        spectrogram = log_spectrogram(*_wave(self.cells[index][self.column], self.kind, self.rate, name))
        return (spectrogram if self.size is None else resized(spectrogram, self.size))[None]


def _kind_of_numbers(feature: Any) -> str | None:
    """The type of the numbers in (lists of) lists, "int16" say: read from Arrow they are Python's, without one."""
    if isinstance(feature, dict):
        return _kind_of_numbers(feature["array"])
    if isinstance(feature, list):
        return _kind_of_numbers(feature[0])
    inner = getattr(feature, "feature", None)
    return getattr(feature, "dtype", None) if inner is None else _kind_of_numbers(inner)


def _wave(cell: Any, kind: str | None, rate: int | None, name: str) -> tuple[Tensor, int]:
    """The wave and its rate of a cell: a list, an array with its rate, or a recording."""
    if cell is None:
        raise ValueError(f"{name}: expected a recording, there is none")
    if rate is not None:
        return checked_wave(_array(cell, kind, name), rate, name)
    if "array" in cell:
        return checked_wave(_array(cell["array"], kind, name), cell["sampling_rate"], name)
    content = cell["bytes"]
    return read_wave(Path(cell["path"])) if content is None else decode_wave(content, name)


def _array(values: Any, kind: str | None, name: str) -> np.ndarray:
    try:
        return np.array(values, dtype=kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: not a readable recording: {error}") from error


def _text(data: Any, column: str, root: str | Path, given: dict[str, Any]) -> Reader:
    if "tokenizer" not in given:
        raise ValueError(f"{root}: column {column!r} holds text, which needs a tokenizer")
    length = count_at_least_one("length", given.get("length", 128))
    sentences = list(data[column])
    if not given.get("skip_bad"):
        try:
            check_texts(sentences, column)
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from error
    revision = given.get("tokenizer_revision", "main")
    return token_reader(sentences, given["tokenizer"], length, revision, str(root))
