"""Small folders in the layouts of the four data sets of clips, made of noise."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import wavfile

EMOTIONS = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]


def picture(path: Path, random: np.random.Generator, width: int = 48, height: int = 36) -> None:
    """Smooth colours, as JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(random.integers(0, 255, size=(5, 6, 3), dtype=np.uint8))
    small.resize((width, height)).save(path, quality=90)


def sound(path: Path, random: np.random.Generator, shape: tuple[int, int] = (257, 40)) -> None:
    """A spectrogram of numbers, as .npy or .pkl, or a recording, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".wav":
        wavfile.write(path, 16000, (random.normal(size=4000) * 4000).astype(np.int16))
        return
    array = random.normal(size=shape).astype(np.float32)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        path.write_bytes(pickle.dumps(array))


def write_crema_d(root: Path, suffix: str = ".pkl", shape: tuple[int, int] = (257, 40)) -> Path:
    """Five actors, three classes, two takes: 18 clips to train, 12 to test, actors in both."""
    random = np.random.default_rng(0)
    classes, lines = ["ANG", "HAP", "SAD"], {"train": [], "test": []}
    for actor in range(1001, 1006):
        for emotion in classes:
            for take in ("XX", "HI"):
                name = f"{actor}_DFA_{emotion}_{take}"
                sound(root / "Audio-1004" / f"{name}{suffix}", random, shape)
                for k in range(4):
                    picture(root / "Image-01-FPS" / name / f"frame_{k}.jpg", random)
                lines["test" if actor > 1003 else "train"].append(f"{name},{emotion}")
    lines["test"][0], lines["train"][0] = lines["train"][0], lines["test"][0]  # actors in both
    for split, rows in lines.items():
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    (root / "stat.csv").write_text("\n".join(classes) + "\n")
    return root


def write_ave(root: Path, suffix: str = ".pkl", splits: tuple[str, ...] = ("train", "val", "test")) -> Path:
    """Three classes, four clips each to train, two each in the other listings."""
    random = np.random.default_rng(1)
    for split in splits:
        rows = ["Category&VideoID&Quality&StartTime&EndTime"] if split == "train" else []
        for event in ("Church bell", "Bark", "Male speech, man speaking"):
            for k in range(4 if split == "train" else 2):
                name = f"{split}-{event[:4].strip()}-{k}"
                rows.append(f"{event}&{name}&good&0&10")
                sound(root / "Audio-1004-SE" / f"{name}{suffix}", random)
                for frame in range(3):
                    picture(root / "Image-01-FPS-SE" / name / f"{frame}.jpg", random)
        (root / f"{split}Set.txt").write_text("\n".join(rows) + "\n")
    return root


def write_ravdess(root: Path) -> Path:
    """Six actors, eight emotions; two actors to a listing."""
    random = np.random.default_rng(2)
    (root / "data_file").mkdir(parents=True)
    for k, listing in enumerate(("dl", "val", "test")):
        rows = []
        for actor in (2 * k + 1, 2 * k + 2):
            for label in range(8):
                stem = f"01-{label + 1:02d}-01-01-01-{actor:02d}"
                sound(root / "aud_features" / f"03-{stem}.npy", random, (20, 30))
                picture(root / "vid_features" / f"01-{stem}.jpg", random)
                said = str(label) if k else EMOTIONS[label]
                rows.append(f"aud_features/03-{stem}.npy,01-{stem}.jpg,{said}")
        (root / "data_file" / f"spa_{listing}.csv").write_text("\n".join(rows) + "\n")
    return root
