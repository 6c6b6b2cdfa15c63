"""A data set's folder, examined before anything is trained on it, and its pickles made arrays."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import processors
from ..ops.checks import choice
from . import ave, crema_d, ravdess, vggsound
from .clips import Clip, Layout, picture_files, read_sound, sound_file
from .images import read_image

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (ravdess.LAYOUT, crema_d.LAYOUT, ave.LAYOUT, vggsound.LAYOUT)
}


@dataclass
class Report:
    """What was found and done. Lists hold a sentence each, which begins with a file's name."""

    dataset: str
    root: str
    classes: list[str]
    clips: dict[str, int]  # of each listing
    per_class: dict[str, dict[str, int]]  # of each listing, by class
    missing: list[str] = field(default_factory=list)  # files that a listing names
    broken: list[str] = field(default_factory=list)  # files that cannot be read
    bad_lines: list[str] = field(default_factory=list)  # of listings
    notes: list[str] = field(default_factory=list)  # true of the folder, and no error
    converted: int = 0  # sounds made .npy now (dry run: that would be)
    ready: int = 0  # sounds that are .npy already
    pictures: int = 0  # that were read

    @property
    def problems(self) -> int:
        """How many files and lines are bad."""
        return len(self.missing) + len(self.broken) + len(self.bad_lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "problems": self.problems}


def prepare(
    dataset: str,
    root: str | Path,
    *,
    dry_run: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Report:
    """Read every file that the listings name, and write each pickled or recorded sound as ``.npy`` beside it.

    A pickle is read by `safe_pickle`: nothing in it is run. It stays where it is; loaders take the
    ``.npy``. What is bad is reported, and the rest done. Done again, only what is new is converted.

    Args:
        dataset: "ravdess", "crema-d", "ave" or "vggsound".
        root: its folder.
        dry_run: write nothing.
        advance: called after every clip.

    Raises:
        FileNotFoundError: there is no such folder, or no listing in it.
        ValueError: an unknown data set, or a listing of classes that cannot be read.
    """
    choice("the name of a data set", dataset, list(LAYOUTS))
    layout, root = LAYOUTS[dataset], Path(root)
    bad_lines: list[str] = []
    listed = {split: layout.clips(root, split, bad_lines) for split in layout.listings}
    classes = layout.classes(root)
    per_class = {split: Counter(classes[clip.label] for clip in clips) for split, clips in listed.items()}
    report = Report(
        dataset=dataset,
        root=str(root),
        classes=classes,
        clips={split: len(clips) for split, clips in listed.items()},
        per_class={split: dict(sorted(counts.items())) for split, counts in per_class.items()},
        bad_lines=bad_lines,
    )
    _note_counts(report, layout)
    _note_overlap(report, listed)
    clips = list({(clip.audio, clip.image): clip for part in listed.values() for clip in part}.values())

    def examine(clip: Clip) -> tuple[list[str], list[str], int, int, int]:
        found = _examine(root, layout, clip, dry_run)
        advance()
        return found

    with ThreadPoolExecutor(min(8, processors.usable())) as threads:
        for missing, broken, converted, ready, pictures in threads.map(examine, clips):
            report.missing += missing
            report.broken += broken
            report.converted += converted
            report.ready += ready
            report.pictures += pictures
    return report


def clip_count(dataset: str, root: str | Path) -> int:
    """How many lines the listings of a folder have, for a progress bar."""
    choice("the name of a data set", dataset, list(LAYOUTS))
    layout = LAYOUTS[dataset]
    return sum(len(layout.clips(Path(root), split, [])) for split in layout.listings)


def _examine(
    root: Path, layout: Layout, clip: Clip, dry_run: bool
) -> tuple[list[str], list[str], int, int, int]:
    """What is missing and broken of a clip, sounds converted and ready, pictures read."""
    missing, broken = [], []
    converted = ready = pictures = 0
    path = sound_file(root / layout.audio / clip.audio)
    try:
        spectrogram = read_sound(path)
        if path.suffix == ".npy":
            ready = 1
        else:
            converted = 1
            if not dry_run:
                _write_array(path.with_suffix(".npy"), spectrogram.numpy())
    except FileNotFoundError:
        missing.append(f"{path}: named in {clip.where}")
    except ValueError as error:
        broken.append(str(error))
    folder = root / layout.image / clip.image
    if not folder.exists():
        return [*missing, f"{folder}: named in {clip.where}"], broken, converted, ready, pictures
    try:
        for picture in picture_files(folder):
            read_image(picture)
            pictures += 1
    except (OSError, ValueError) as error:
        broken.append(str(error))
    return missing, broken, converted, ready, pictures


def _write_array(path: Path, array: np.ndarray) -> None:
    """Beside, then renamed."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _note_counts(report: Report, layout: Layout) -> None:
    if len(report.classes) != layout.class_count:
        report.notes.append(f"{len(report.classes)} classes, published {layout.class_count}")
    for split, count in layout.counts.items():
        if report.clips[split] != count:
            report.notes.append(f"{split}: {report.clips[split]} clips, published {count}")
    for split, counts in report.per_class.items():
        without = [name for name in report.classes if name not in counts]
        if without:
            report.notes.append(f"{split}: no clip of {', '.join(without)}")


def _note_overlap(report: Report, listed: dict[str, list[Clip]]) -> None:
    """Clips and actors that are in two listings: figures of the second are then too good."""
    names = list(listed)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            clips = {clip.id for clip in listed[one]} & {clip.id for clip in listed[other]}
            if clips:
                report.notes.append(f"{one} and {other} share {len(clips)} clips, such as {min(clips)}")
            actors = {clip.actor for clip in listed[one]} & {clip.actor for clip in listed[other]} - {None}
            if actors:
                report.notes.append(
                    f"{one} and {other} share {len(actors)} actors (splits: actors splits anew without that)"
                )
