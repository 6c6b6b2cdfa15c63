"""CREMA-D: 91 actors say twelve sentences in six emotions.

``Image-01-FPS/<id>/*.jpg``, ``Audio-1004/<id>.npy`` (or .pkl, .wav, .flac ...), ``stat.csv`` (the classes),
``train.csv`` and ``test.csv`` (id, class). An id begins with its actor: ``1001_DFA_ANG_XX``.

The published split lets actors speak in training and in testing, and its validation set is its test
set. So by default all clips are split anew by actor: 80, 10 and 10 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..ops.checks import choice
from .clips import SPLITS, Clip, Layout, by_actor, label_of, listing_rows, open_clips
from .files import FileData
from .images import ImageTransform


def open_crema_d(
    *,
    root: str | Path,
    modality: str,
    split: str = "train",
    splits: str = "actors",
    seed: int = 0,
    frames: int = 2,
    image_size: int = 224,
    augment: str = "center-crop",
    size: Sequence[int] | None = None,
    preprocessing: str = "corrected",
    skip_bad: bool = False,
    workers: int | None = None,
) -> FileData:
    """CREMA-D as the published code reads it; see `clips.open_clips`.

    Args:
        root: the folder.
        modality: "audio" or "image".
        split: "train", "val" or "test".
        splits: "actors": no actor is in two parts; "published": the listings, where "val" is "test".
        seed: draws the actors.
        frames: pictures of a clip: drawn in training, the middle ones otherwise.
        image_size: pixels of each side.
        augment: of pictures in training, see `ImageTransform`.
        size: of spectrograms; None: 257 x 1004.
        preprocessing: "corrected" or "published-code", see `clips.open_clips`.
        skip_bad: go on without what cannot be read, see `FileData`.
        workers: threads that read.
    """
    choice("split", split, SPLITS)
    choice("splits", splits, ("actors", "published"))
    bad: list[str] | None = [] if skip_bad else None
    if splits == "published":
        clips = LAYOUT.clips(Path(root), "test" if split == "val" else split, bad)
    else:
        everyone = [clip for part in LAYOUT.listings for clip in LAYOUT.clips(Path(root), part, bad)]
        clips = by_actor(everyone, split, seed)
    return open_clips(
        LAYOUT,
        root,
        clips,
        modality=modality,
        frames=frames,
        transform=ImageTransform(image_size, augment),
        size=size,
        preprocessing=preprocessing,
        bad_lines=bad,
        workers=workers,
    )


def _classes(root: Path) -> list[str]:
    rows = listing_rows(root / "stat.csv", ["class"], ",", None)
    names = [fields[0] for _, fields in rows]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{root / 'stat.csv'}: expected the classes' names, one a line, got {names}")
    return names


def _read(path: Path, split: str, classes: list[str], bad: list[str] | None) -> list[Clip]:
    clips = []
    for where, (name, emotion, *_) in listing_rows(path, ["id", "class"], ",", bad):
        label = label_of(emotion, classes, where, bad)
        if label is not None:
            clips.append(Clip(name, label, name, name, name.split("_")[0], where))
    return clips


LAYOUT = Layout(
    name="crema-d",
    audio="Audio-1004",
    image="Image-01-FPS",
    listings={"train": "train.csv", "test": "test.csv"},
    classes=_classes,
    read=_read,
    counts={"train": 6698, "test": 744},
    class_count=6,
)
