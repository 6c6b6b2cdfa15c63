"""RAVDESS: 24 actors speak and sing in eight emotions.

``aud_features/*.npy`` (log-mel spectrograms: mels x frames), ``vid_features/`` (pictures),
``data_file/spa_{dl,val,test}.csv`` without a header: audio, image, label. A label is a number from 0 to 7
or an emotion's name. A file's name ends with its actor: ``03-01-05-01-02-01-12``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..ops.checks import choice
from .clips import SPLITS, Clip, Layout, by_actor, label_of, listing_rows, open_clips
from .files import FileData
from .images import ImageTransform

CLASSES = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]
MEAN, DEVIATION = -10.59, 85.66  # of the published log-mel features

_NAME = re.compile(
    r"(?:\d\d-)?(\d\d-\d\d-\d\d-\d\d-\d\d-(\d\d))"
)  # modality, then what both modalities share


def open_ravdess(
    *,
    root: str | Path,
    modality: str,
    split: str = "train",
    splits: str = "published",
    seed: int = 0,
    frames: int = 1,
    image_size: int = 224,
    augment: str = "random-crop",
    mask: bool = True,
    size: Sequence[int] | None = None,
    preprocessing: str = "corrected",
    skip_bad: bool = False,
    workers: int | None = None,
) -> FileData:
    """RAVDESS as the published code reads it; see `clips.open_clips`.

    Args:
        root: the folder.
        modality: "audio" or "image".
        split: "train", "val" or "test".
        splits: "published": the listings; "actors": all clips split anew by actor, 80, 10 and 10 %.
        seed: draws the actors.
        frames: pictures of a clip.
        image_size: pixels of each side.
        augment: of pictures in training, see `ImageTransform`.
        mask: SpecAugment in training.
        size: of spectrograms; None: as they are.
        preprocessing: "corrected" or "published-code", see `clips.open_clips`.
        skip_bad: go on without what cannot be read, see `FileData`.
        workers: threads that read.
    """
    choice("split", split, SPLITS)
    choice("splits", splits, ("published", "actors"))
    bad: list[str] | None = [] if skip_bad else None
    if splits == "published":
        clips = LAYOUT.clips(Path(root), split, bad)
    else:
        everyone = [clip for part in SPLITS for clip in LAYOUT.clips(Path(root), part, bad)]
        clips = by_actor(everyone, split, seed)
    return open_clips(
        LAYOUT,
        root,
        clips,
        modality=modality,
        frames=frames,
        transform=ImageTransform(image_size, augment),
        normalise=(MEAN, DEVIATION),
        mask=mask,
        size=size,
        preprocessing=preprocessing,
        bad_lines=bad,
        workers=workers,
    )


def _read(path: Path, split: str, classes: list[str], bad: list[str] | None) -> list[Clip]:
    clips = []
    for where, (audio, image, emotion, *_) in listing_rows(path, ["audio", "image", "label"], ",", bad):
        number = re.fullmatch(r"\d+(\.0)?", emotion)
        name = classes[int(float(emotion))] if number and float(emotion) < len(classes) else emotion
        label = label_of(name, classes, where, bad)
        if label is not None:
            found = _NAME.search(PurePosixPath(audio).stem)
            clip_id, actor = (found[1], found[2]) if found else (PurePosixPath(audio).stem, None)
            clips.append(Clip(clip_id, label, _inside(audio), _inside(image), actor, where))
    return clips


def _inside(name: str) -> str:
    """A listed path without the folder that it may begin with."""
    return re.sub(r"^(.*/)?(aud|vid)_features/", "", name)


LAYOUT = Layout(
    name="ravdess",
    audio="aud_features",
    image="vid_features",
    listings={
        "train": "data_file/spa_dl.csv",
        "val": "data_file/spa_val.csv",
        "test": "data_file/spa_test.csv",
    },
    classes=lambda root: CLASSES,
    read=_read,
    counts={},
    class_count=8,
)
