"""Folders of pictures or recordings: a subfolder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from .clips import read_sound
from .file_tree import files_by_class
from .files import FileData
from .images import ImageTransform, read_image
from .pixels import ImageReading, picture_suffixes
from .spectrograms import resized
from .waves import WAVE_SUFFIXES, check_can_read


def open_image_folder(
    *,
    root: str | Path,
    image_size: int = 224,
    augment: str = "random-crop",
    background: str | Sequence[int] = "white",
    depth: int | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
) -> FileData:
    """Pictures ``<class>/**/*.jpg`` (.png, .tif and all that Pillow reads) as (3, image_size, image_size).

    Args:
        root: the folder; what is hidden (``.ipynb_checkpoints``, ``._1.png``) or the system's (``__MACOSX``) is passed
            over, links are followed, and a warning counts the files of other kinds.
        image_size: pixels of each side.
        augment: in training, see `ImageTransform`.
        background: what is seen through transparent pixels: a colour's name, or red, green and blue.
        depth: bits of grey pictures with more than eight; None: as the file says, see `ImageReading`.
        skip_bad: go on without what cannot be read, see `FileData`.
        workers: threads that read.

    Raises:
        FileNotFoundError: there is no such folder.
        ImportError: Pillow is not installed.
        ValueError: a subfolder without a picture, or none with one; class names that look alike.
    """
    reading, transform = ImageReading(background, depth), ImageTransform(image_size, augment)
    found = files_by_class(
        Path(root), picture_suffixes(), "pictures (.jpg, .png, .tif and others that Pillow reads)"
    )
    read = _Pictures(found.files, reading, transform)
    return FileData(read, found.labels, found.classes, ids=found.ids, skip_bad=skip_bad, workers=workers)


def open_audio_folder(
    *,
    root: str | Path,
    size: Sequence[int] | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
) -> FileData:
    """Recordings ``<class>/**/*.wav`` as `log_spectrogram`, (1, 257, 1004); .npy files as spectrograms.

    Recordings in flac, ogg, mp3, aiff and others that libsndfile reads need the package soundfile.

    Args:
        root: the folder, read as that of `open_image_folder`.
        size: height and width to interpolate to.
        skip_bad: go on without what cannot be read, see `FileData`.
        workers: threads that read.

    Raises:
        FileNotFoundError: there is no such folder.
        ImportError: it holds recordings other than wav, and soundfile is not installed.
        ValueError: a subfolder without a recording, or none with one; class names that look alike.
    """
    found = files_by_class(
        Path(root), WAVE_SUFFIXES | {".npy"}, "recordings (.wav, .flac, .ogg, .mp3, .aiff ... or .npy)"
    )
    check_can_read(found.files)
    read = _Sounds(found.files, size)
    return FileData(read, found.labels, found.classes, ids=found.ids, skip_bad=skip_bad, workers=workers)


@dataclass(frozen=True)
class _Pictures:
    """Gives the picture (3, s, s) of an index."""

    files: list[Path]
    reading: ImageReading
    transform: ImageTransform

    def __call__(self, index: int, random: np.random.Generator | None) -> Tensor:
        return self.transform(read_image(self.files[index], self.reading), random)


@dataclass(frozen=True)
class _Sounds:
    """Gives the spectrogram (1, h, w) of an index."""

    files: list[Path]
    size: Sequence[int] | None

    def __call__(self, index: int, random: np.random.Generator | None) -> Tensor:
        spectrogram = read_sound(self.files[index])
        return (spectrogram if self.size is None else resized(spectrogram, self.size))[None]
