"""VGGSound, 50 of its classes, in the layout of `ave`, without a validation listing.

The published code chooses its epochs by the test set. So by default a tenth of every class of the
training listing is held out as "val".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..ops.checks import choice
from . import ave
from .clips import SPLITS, Clip, open_clips
from .files import FileData
from .images import ImageTransform


def open_vggsound(
    *,
    root: str | Path,
    modality: str,
    split: str = "train",
    splits: str = "held-out",
    seed: int = 0,
    frames: int = 3,
    image_size: int = 224,
    augment: str = "random-crop",
    size: Sequence[int] | None = None,
    preprocessing: str = "corrected",
    skip_bad: bool = False,
    workers: int | None = None,
) -> FileData:
    """VGGSound as the published code reads it; see `clips.open_clips`.

    Args:
        root: the folder.
        modality: "audio" or "image".
        split: "train", "val" or "test".
        splits: "held-out": "val" is a tenth of every class of the training listing, which "train" then
            lacks; "published": "train" is all of it, and "val" is the test listing.
        seed: draws what is held out.
        frames: pictures of a clip: drawn in training, the middle ones otherwise.
        image_size: pixels of each side.
        augment: of pictures in training, see `ImageTransform`.
        size: of spectrograms; None: 257 x 1004.
        preprocessing: "corrected" or "published-code", see `clips.open_clips`.
        skip_bad: go on without what cannot be read, see `FileData`.
        workers: threads that read.
    """
    choice("split", split, SPLITS)
    choice("splits", splits, ("held-out", "published"))
    bad: list[str] | None = [] if skip_bad else None
    held_out = splits == "held-out"
    listing = "test" if split == "test" or (split == "val" and not held_out) else "train"
    clips = LAYOUT.clips(Path(root), listing, bad)
    if held_out and split != "test":
        clips = _without_test(clips, split, seed)
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


def _without_test(clips: list[Clip], split: str, seed: int) -> list[Clip]:
    """A tenth of every class for "val", the others for "train", in the order of the listing."""
    random = np.random.default_rng(seed)
    labels = np.array([clip.label for clip in clips])
    held = np.zeros(len(clips), dtype=bool)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        held[rows[: max(1, round(0.1 * len(rows)))]] = True
    return [clip for clip, out in zip(clips, held, strict=True) if out == (split == "val")]


LAYOUT = replace(
    ave.LAYOUT,
    name="vggsound",
    listings={"train": "trainSet.txt", "test": "testSet.txt"},
    counts={"train": 25835, "test": 2500},
    class_count=50,
)
