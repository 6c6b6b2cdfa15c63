"""Folders of pictures or recordings: a class a subfolder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .clips import read_sound
from .files import FileData
from .images import SUFFIXES, ImageTransform, read_image
from .spectrograms import resized


def open_image_folder(
    *,
    root: str | Path,
    image_size: int = 224,
    augment: str = "random-crop",
    skip_bad: bool = False,
    workers: int | None = None,
) -> FileData:
    """Pictures ``<class>/**/*.jpg`` (or .png, .bmp, .webp) as (3, image_size, image_size).

    Args:
        root: the folder.
        image_size: pixels of each side.
        augment: in training, see `ImageTransform`.
        skip_bad: go on without what cannot be read, see `FileData`.
        workers: threads that read.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no subfolder with a picture.
    """
    files, labels, classes = _files_by_class(Path(root), SUFFIXES)
    transform = ImageTransform(image_size, augment)
    ids = _ids(files, Path(root))
    return FileData(_Pictures(files, transform), labels, classes, ids=ids, skip_bad=skip_bad, workers=workers)


def open_audio_folder(
    *,
    root: str | Path,
    size: Sequence[int] | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
) -> FileData:
    """Recordings ``<class>/**/*.wav`` as `log_spectrogram`, (1, 257, 1004); .npy files as spectrograms.

    Args:
        root: the folder.
        size: height and width to interpolate to.
        skip_bad: go on without what cannot be read, see `FileData`.
        workers: threads that read.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no subfolder with a recording.
    """
    files, labels, classes = _files_by_class(Path(root), frozenset({".wav", ".npy"}))
    ids = _ids(files, Path(root))
    return FileData(_Sounds(files, size), labels, classes, ids=ids, skip_bad=skip_bad, workers=workers)


@dataclass(frozen=True)
class _Pictures:
    """Gives the picture (3, s, s) of an index."""

    files: list[Path]
    transform: ImageTransform

    def __call__(self, index: int, random: np.random.Generator | None) -> Tensor:
        return self.transform(read_image(self.files[index]), random)


@dataclass(frozen=True)
class _Sounds:
    """Gives the spectrogram (1, h, w) of an index."""

    files: list[Path]
    size: Sequence[int] | None

    def __call__(self, index: int, random: np.random.Generator | None) -> Tensor:
        spectrogram = read_sound(self.files[index])
        return (spectrogram if self.size is None else resized(spectrogram, self.size))[None]


def _ids(files: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root).with_suffix("")) for path in files]


def _files_by_class(root: Path, suffixes: frozenset[str]) -> tuple[list[Path], Tensor, list[str]]:
    """Files sorted by class and name, labels (n,), and the classes: subfolders with a file, sorted."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder with a subfolder a class, there is none")
    found = {
        folder.name: sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    classes = [name for name, files in found.items() if files]
    if not classes:
        raise ValueError(
            f"{root}: expected files {', '.join(sorted(suffixes))} in a subfolder a class, found none"
        )
    labels = [label for label, name in enumerate(classes) for _ in found[name]]
    return [path for name in classes for path in found[name]], torch.tensor(labels), classes
