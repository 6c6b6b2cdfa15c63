"""Folders of spoken digits in the layout of the Free Spoken Digit Dataset (FSDD).

One recording per file, ``{digit}_{speaker}_{index}.wav`` (or .flac and others of `waves.WAVE_SUFFIXES`). The data set
itself
(github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0) has 3,000 recordings: six
speakers, ten digits, fifty times each, 8 kHz.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from .file_tree import counted, is_ours, kind_of, warn_of_unread
from .waves import WAVE_SUFFIXES, check_can_read, read_wave

_ENDINGS = "|".join(sorted(suffix[1:] for suffix in WAVE_SUFFIXES))
FILE_NAME = re.compile(
    rf"(?P<digit>[0-9])_(?P<speaker>[^_/\\]+)_(?P<index>[0-9]+)\.({_ENDINGS})", re.IGNORECASE
)

_LAYOUT = "{digit}_{speaker}_{index}.wav"


def recording_files(folder: str | Path) -> list[Path]:
    """The recordings of a folder, or of ``recordings`` in it, sorted by name.

    Raises:
        FileNotFoundError: there is no such folder.
        ImportError: it has recordings other than wav, and soundfile is not installed.
        ValueError: it cannot be read, has no recording, or one whose name says no digit or speaker.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "that is a file" if folder.exists() else "there is none"
        raise FileNotFoundError(f"{folder}: expected a folder of {_LAYOUT}, {found}")
    if (folder / "recordings").is_dir():
        folder = folder / "recordings"
    try:
        there = sorted(path for path in folder.iterdir() if is_ours(path.name) and not path.is_dir())
    except OSError as error:
        raise ValueError(f"{folder}: the folder cannot be read: {error}") from error
    files = [path for path in there if path.suffix.lower() in WAVE_SUFFIXES]
    others = Counter(kind_of(path) for path in there if path.suffix.lower() not in WAVE_SUFFIXES)
    if not files:
        raise ValueError(f"{folder}: expected recordings {_LAYOUT}, found {counted(others) or 'none'}")
    warn_of_unread(folder, others, len(files))
    for path in files:
        if not FILE_NAME.fullmatch(path.name):
            raise ValueError(f"{path}: expected a name {_LAYOUT}, such as 7_ann_0.wav")
    check_can_read(files)
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
