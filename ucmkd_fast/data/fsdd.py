"""Folders of spoken digits in the layout of the Free Spoken Digit Dataset (FSDD).

One recording a file, ``{digit}_{speaker}_{index}.wav``. The data set itself
(github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0) has 3,000 recordings: six
speakers, ten digits, fifty times each, 8 kHz.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from .frontend import read_wave

FILE_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[^_/\\]+)_(?P<index>[0-9]+)\.wav")

_LAYOUT = "{digit}_{speaker}_{index}.wav"


def recording_files(folder: str | Path) -> list[Path]:
    """The recordings of a folder, or of ``recordings`` in it, sorted by name.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it cannot be read, has no wav file, or one whose name says no digit or speaker.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "that is a file" if folder.exists() else "there is none"
        raise FileNotFoundError(f"{folder}: expected a folder of {_LAYOUT}, {found}")
    if (folder / "recordings").is_dir():
        folder = folder / "recordings"
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".wav")
    except OSError as error:
        raise ValueError(f"{folder}: the folder cannot be read: {error}") from error
    if not files:
        raise ValueError(f"{folder}: expected recordings {_LAYOUT}, found no wav file")
    for path in files:
        if not FILE_NAME.fullmatch(path.name):
            raise ValueError(f"{path}: expected a name {_LAYOUT}, such as 7_ann_0.wav")
    return files


def read_recordings(files: list[Path]) -> Iterator[tuple[Tensor, int]]:
    """Wave (n,) and rate of each file, one at a time; ValueError with the file's name for a broken one."""
    return map(read_wave, files)


def digit_and_speaker(path: Path) -> tuple[int, str]:
    """What the file's name says; the name has been checked."""
    match = FILE_NAME.fullmatch(path.name)
    assert match is not None
    return int(match["digit"]), match["speaker"]


def content_digest(files: list[Path]) -> str:
    """SHA-256 over the lines ``{name} {SHA-256 of the file}`` of all files, sorted by name.

    In a shell: ``sha256sum *.wav | awk '{print $2" "$1}' | LC_ALL=C sort | sha256sum``.
    """
    lines = sorted(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
