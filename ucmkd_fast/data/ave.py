"""AVE: ten-second clips of 28 audio-visual events.

``Image-01-FPS-SE/<id>/*.jpg``, ``Audio-1004-SE/<id>.npy`` (or .pkl, .wav, .flac ...), ``{train,val,test}Set.txt``
with the fields class & id & quality & start & end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..ops.checks import choice
from .clips import SPLITS, Clip, Layout, label_of, listing_rows, open_clips
from .files import FileData
from .images import ImageTransform

COLUMNS = ["class", "id", "quality", "start", "end"]


def open_ave(
    *,
    root: str | Path,
    modality: str,
    split: str = "train",
    frames: int = 1,
    image_size: int = 224,
    augment: str = "random-crop",
    size: Sequence[int] | None = None,
    preprocessing: str = "corrected",
    skip_bad: bool = False,
    workers: int | None = None,
) -> FileData:
    """AVE as the published code reads it; see `clips.open_clips`.

    Args:
        root: the folder.
        modality: "audio" or "image".
        split: "train", "val" or "test".
        frames: pictures of a clip: drawn in training, the middle ones otherwise.
        image_size: pixels of each side.
        augment: of pictures in training, see `ImageTransform`.
        size: of spectrograms; None: 257 x 1004.
        preprocessing: "corrected" or "published-code", see `clips.open_clips`.
        skip_bad: go on without what cannot be read, see `FileData`.
        workers: threads that read.
    """
    choice("split", split, SPLITS)
    bad: list[str] | None = [] if skip_bad else None
    clips = LAYOUT.clips(Path(root), split, bad)
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


def classes_listed(root: Path) -> list[str]:
    """The classes that the training listing names, sorted."""
    rows = listing_rows(root / "trainSet.txt", COLUMNS[:2], "&", [])
    return sorted({fields[0] for _, fields in rows} - {"Category"})


def read_set(path: Path, split: str, classes: list[str], bad: list[str] | None) -> list[Clip]:
    """The clips of a listing class & id & quality & start & end; a heading is passed over."""
    clips = []
    for where, (event, name, *_) in listing_rows(path, COLUMNS[:2], "&", bad):
        if event == "Category":
            continue
        label = label_of(event, classes, where, bad)
        if label is not None:
            clips.append(Clip(name, label, name, name, None, where))
    return clips


LAYOUT = Layout(
    name="ave",
    audio="Audio-1004-SE",
    image="Image-01-FPS-SE",
    listings={split: f"{split}Set.txt" for split in SPLITS},
    classes=classes_listed,
    read=read_set,
    counts={"train": 3339, "val": 402, "test": 402},
    class_count=28,
)
