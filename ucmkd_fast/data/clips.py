"""Data sets of video clips: lists of clips, their sound and their pictures; what the published four share.

A `Layout` says where things lie in one data set's folder. `open_clips` makes a data set of one
modality of it, `prepare` checks and converts the folder.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..names import did_you_mean
from ..ops.checks import choice, count_at_least_one
from ..ops.refusals import first_not_finite
from .file_tree import is_ours
from .files import FileData, Reader
from .images import ImageTransform, read_image
from .npy import read_npy
from .pixels import picture_suffixes
from .safe_pickle import read_pickled_array
from .spectrograms import RATE, log_spectrogram, masked, resized
from .waves import WAVE_SUFFIXES, check_can_read, checked_wave, read_wave

PREPROCESSINGS = ("corrected", "published-code")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Clip:
    """One line of a listing."""

    id: str
    label: int
    audio: str  # its file in the folder of sounds, without a suffix where that may differ
    image: str  # its file or folder in the folder of pictures
    actor: str | None = None
    where: str = ""  # file and line, for messages


@dataclass(frozen=True)
class Layout:
    """Where one data set keeps its clips.

    Attributes:
        name: as `open_data` knows it.
        audio: the folder of sounds.
        image: the folder of pictures.
        listings: each listing's file by its split.
        classes: the classes' names, from the folder.
        read: the clips of one listing; bad lines are collected in the list, where one is given.
        counts: the published number of clips of each listing.
        class_count: the published number of classes.
    """

    name: str
    audio: str
    image: str
    listings: dict[str, str]
    classes: Callable[[Path], list[str]]
    read: Callable[[Path, str, list[str], list[str] | None], list[Clip]]
    counts: dict[str, int]
    class_count: int

    def clips(self, root: Path, split: str, bad: list[str] | None = None) -> list[Clip]:
        """The clips of one published listing, in its order.

        Raises:
            FileNotFoundError: there is no such folder or listing.
            ValueError: a line says no known class; collected in ``bad`` instead, where it is given.
        """
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: expected the folder of {self.name}, there is none")
        return self.read(root / self.listings[split], split, self.classes(root), bad)


def listing_rows(
    path: Path, columns: Sequence[str], delimiter: str, bad: list[str] | None
) -> list[tuple[str, list[str]]]:
    """The lines of a listing: where each is (file and line), and its fields without blanks around them.

    Empty lines are passed over. A line with too few fields is an error, or collected in ``bad``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a list of clips, there is none")
    out = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, fields in enumerate(csv.reader(file, delimiter=delimiter), 1):
                fields = [field.strip() for field in fields]
                if not any(fields):
                    continue
                where = f"{path}, line {number}"
                if len(fields) < len(columns):
                    complain(f"{where}: expected {delimiter.join(columns)}, got {fields}", bad)
                else:
                    out.append((where, fields))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable list of clips: {error}") from error
    return out


def complain(message: str, bad: list[str] | None) -> None:
    """Raise ValueError, or collect the message where there is a list for it."""
    if bad is None:
        raise ValueError(message)
    bad.append(message)


def label_of(name: str, classes: list[str], where: str, bad: list[str] | None) -> int | None:
    """The label of a class's name; None, and collected in ``bad``, where there is no such class."""
    if name in classes:
        return classes.index(name)
    complain(f"{where}: class {name!r} is none of {', '.join(classes)}{did_you_mean(name, classes)}", bad)
    return None


def open_clips(
    layout: Layout,
    root: str | Path,
    clips: list[Clip],
    *,
    modality: str,
    frames: int,
    transform: ImageTransform,
    normalise: tuple[float, float] | None = None,
    mask: bool = False,
    size: Sequence[int] | None = None,
    preprocessing: str = "corrected",
    bad_lines: list[str] | None = None,
    workers: int | None = None,
) -> FileData:
    """A data set of one modality of the given clips.

    Args:
        layout: where the files are.
        root: the data set's folder.
        clips: which, in order.
        modality: "audio": spectrograms (1, h, w); "image": pictures (3, s, s), or (frames, 3, s, s).
        frames: pictures of a clip; in training drawn, otherwise the middle ones.
        transform: of each picture.
        normalise: mean and deviation that make a spectrogram's; None: it is normalised already.
        mask: SpecAugment in training.
        size: of the spectrograms, height and width; None: as they are.
        preprocessing: how ``size`` is reached: "corrected" interpolates, "published-code" shears.
        bad_lines: lines of the listings that were left out, for a warning; with a list here, empty or not,
            samples that cannot be read are skipped as well (`FileData`'s ``skip_bad``).
        workers: see `FileData`.
    """
    choice("modality", modality, ("audio", "image"))
    choice("preprocessing", preprocessing, PREPROCESSINGS)
    if bad_lines:
        more = f" (and {len(bad_lines) - 1} lines more)" if len(bad_lines) > 1 else ""
        warnings.warn(f"{bad_lines[0]}; that line is left out{more}", stacklevel=3)
    root = Path(root)
    if modality == "image":
        if size is not None:
            raise ValueError("size is of spectrograms; pictures have image_size")
        paths = [root / layout.image / clip.image for clip in clips]
        read: Reader = _Pictures(paths, count_at_least_one("frames", frames), transform)
    else:
        paths = [sound_file(root / layout.audio / clip.audio) for clip in clips]
        check_can_read(paths)
        read = _Sounds(paths, normalise, mask, _size(size), preprocessing == "published-code")
    actors = [clip.actor for clip in clips]
    return FileData(
        read,
        torch.tensor([clip.label for clip in clips]),
        layout.classes(root),
        ids=[clip.id for clip in clips],
        groups=None if None in actors else [str(actor) for actor in actors],
        files=paths,
        skip_bad=bad_lines is not None,
        workers=workers,
    )


def sound_file(path: Path) -> Path:
    """The file of a sound: the given one if it has a suffix, else .npy, .pkl, .wav or another, the first that is there.

    Where none is, the .npy: what a message then names.
    """
    if path.suffix.lower() in _SOUNDS:
        return path
    found = (path.with_name(path.name + suffix) for suffix in _SOUNDS)
    return next((file for file in found if file.is_file()), path.with_name(path.name + ".npy"))


def read_sound(path: Path) -> Tensor:
    """Spectrogram (h, w) float32 of a file: .npy, .pkl (arrays only, see `safe_pickle`) or a recording.

    An array with one axis, or with one of one or two places (channels), is a wave at 16 kHz; it and a recording become
    `log_spectrogram`.

    Raises:
        ImportError: a recording other than wav, and soundfile is not installed.
        OSError: there is no such file.
        ValueError: it is broken, or not a spectrogram; the message starts with the file's name.
    """
    suffix = path.suffix.lower()
    if suffix in WAVE_SUFFIXES:
        return log_spectrogram(*read_wave(path))
    array = read_pickled_array(path) if suffix == ".pkl" else read_npy(path)
    if array.ndim not in (1, 2) or array.dtype.kind not in "iuf" or not array.size:
        raise ValueError(
            f"{path}: expected a spectrogram (h, w) or a wave (n,), got {array.dtype} {array.shape}"
        )
    if array.ndim == 1 or min(array.shape) <= 2:
        return log_spectrogram(*checked_wave(array, RATE, str(path)))
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not torch.isfinite(values).all():
        raise ValueError(f"{path}: values must be finite, got {first_not_finite(values)}")
    return values


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a clip, sorted by name; the path itself where it is a file."""
    if folder.is_file():
        return [folder]
    endings = picture_suffixes()
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in endings and is_ours(p.name))
    except OSError as error:
        raise FileNotFoundError(f"{folder}: expected a folder of pictures: {error.strerror}") from error
    if not files:
        raise ValueError(f"{folder}: expected pictures, found none")
    return files


def chosen_frames(available: int, frames: int, random: np.random.Generator | None) -> list[int]:
    """Which pictures of a clip: the middle ones, or drawn without repetition; in order of time.

    A clip with fewer than that gives some of them again.
    """
    if random is None or available <= frames:
        first = max(0, (available - frames) // 2)
        return [(first + k) % available for k in range(frames)]
    return sorted(random.choice(available, frames, replace=False).tolist())


_SOUNDS = (".npy", ".pkl", ".wav", *sorted(WAVE_SUFFIXES - {".wav"}))


@dataclass(frozen=True)
class _Sounds:
    """Gives the spectrogram (1, h, w) of an index."""

    paths: list[Path]
    normalise: tuple[float, float] | None
    mask: bool
    size: tuple[int, int] | None
    sheared: bool

    def __call__(self, index: int, random: np.random.Generator | None) -> Tensor:
        spectrogram = read_sound(self.paths[index])
        if self.normalise is not None:
            spectrogram = (spectrogram - self.normalise[0]) / self.normalise[1]
        if self.size is not None:
            spectrogram = resized(spectrogram, self.size, sheared=self.sheared)
        if self.mask and random is not None:
            spectrogram = masked(spectrogram, random)
        return spectrogram[None]


@dataclass(frozen=True)
class _Pictures:
    """Gives a picture (3, s, s) of the clip of an index, or several (frames, 3, s, s)."""

    paths: list[Path]
    frames: int
    transform: ImageTransform

    def __call__(self, index: int, random: np.random.Generator | None) -> Tensor:
        files = picture_files(self.paths[index])
        chosen = chosen_frames(len(files), self.frames, random)
        pictures = [self.transform(read_image(files[k]), random) for k in chosen]
        return pictures[0] if self.frames == 1 else torch.stack(pictures)


def _size(size: Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, (str, int)) or len(size) != 2:
        raise ValueError(f"size must be a spectrogram's height and width, got {size!r}")
    return count_at_least_one("size", size[0]), count_at_least_one("size", size[1])


def by_actor(clips: list[Clip], split: str, seed: int) -> list[Clip]:
    """The clips of one split of which no actor is in another: 80, 10 and 10 % of the actors.

    Raises:
        ValueError: fewer than three actors, or clips whose actor nobody knows.
    """
    actors = sorted({str(clip.actor) for clip in clips})
    if any(clip.actor is None for clip in clips) or len(actors) < 3:
        raise ValueError(f"a split by actor needs three actors or more, got {', '.join(actors)}")
    order = np.random.default_rng(seed).permutation(actors).tolist()
    tenth = max(1, round(0.1 * len(order)))
    parts = {"val": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    return [clip for clip in clips if clip.actor in parts[split]]
