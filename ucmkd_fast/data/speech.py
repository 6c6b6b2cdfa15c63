"""Spoken digits from wherever they can be had, and which place that was."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..ops.checks import choice
from ..training.checkpoint import write_weights
from .cache import cache_dir
from .digits import CLASSES
from .frontend import LogMel
from .fsdd import digit_and_speaker, read_recordings, recording_files
from .fsdd_download import download_fsdd
from .labelled import TensorData
from .synthetic_speech import VOICES, speak_digits

SOURCES = ("folder", "download", "synthetic")


class SpokenDigits(TensorData):
    """Log-mel spectrograms (n, 1, mels, frames) of spoken digits; ``groups`` are the speakers.

    Attributes:
        source: "folder", "download" or "synthetic".
        description: one sentence that says where the recordings are from.
    """

    def __init__(self, x: Tensor, y: Tensor, groups: list[str], source: str, description: str):
        super().__init__(x, y, CLASSES, groups)
        self.source = source
        self.description = description


def spoken_digits(
    audio: str | Path | None = None,
    source: str | None = None,
    *,
    front_end: LogMel | None = None,
    cache: Path | None = None,
) -> SpokenDigits:
    """Spoken digits: the given folder, or else a download, or else synthetic speech.

    Args:
        audio: a folder of the FSDD layout, see `fsdd`.
        source: "folder", "download" or "synthetic" to have that and no other; None: the first that is there.
        front_end: makes spectrograms of waves; None: `LogMel()`.
        cache: where downloads, synthetic speech and spectrograms are kept; None: `cache_dir`.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a recording is broken or wrongly named; arguments that do not fit each other.
        ConnectionError: the download was asked for, and there is no network.
        ImportError: there is no other source than synthetic speech, and eSpeak NG is not installed.
    """
    if source is not None:
        choice("source", source, SOURCES)
    if source == "folder" and audio is None:
        raise ValueError("source 'folder' needs audio, the folder's path, got None")
    if audio is not None and source not in (None, "folder"):
        raise ValueError(f"audio names a folder of recordings: it does not go with source {source!r}")
    cache = cache or cache_dir()
    if audio is not None:
        source, folder, description = "folder", Path(audio), f"recordings in {audio}"
    else:
        source, folder, description = _without_folder(source, cache)
    x, y, speakers = _spectrograms(recording_files(folder), front_end or LogMel(), cache)
    description = f"{len(y):,} spoken digits by {len(set(speakers))} voices: {description}."
    return SpokenDigits(x, y, speakers, source, description)


def open_spoken_digits(root: str | Path | None = None, source: str | None = None) -> SpokenDigits:
    """`spoken_digits` as a description in a run's settings names it: ``root`` is the folder of recordings."""
    return spoken_digits(root, source)


def _without_folder(source: str | None, cache: Path) -> tuple[str, Path, str]:
    """Source, folder of recordings, and what they are."""
    reason = "asked for"
    if source != "synthetic":
        try:
            description = "the Free Spoken Digit Dataset (CC BY-SA 4.0), downloaded and checked"
            return "download", download_fsdd(cache), description
        except (ConnectionError, ValueError) as error:
            if source == "download":
                raise
            why = getattr(error.__cause__, "reason", None) or error  # without the address, on a screen
            reason = f"recordings could not be downloaded ({why})"
    try:
        folder = speak_digits(cache)
    except ImportError as error:
        raise ImportError(f"{error}; or give a folder of recordings ({reason})") from error
    return "synthetic", folder, f"synthetic speech by eSpeak NG, {len(VOICES)} of its voices; {reason}"


def _spectrograms(files: list[Path], front_end: LogMel, cache: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Spectrograms (n, 1, mels, frames), labels (n,) and speakers, from the cache where they are there."""
    labels, speakers = zip(*map(digit_and_speaker, files), strict=True)
    path = cache / f"log-mel-{_key(files, front_end)}.safetensors"
    x = _cached(path)
    if x is None:
        x = torch.stack([front_end(wave, rate) for wave, rate in read_recordings(files)])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_weights(path, {"x": x}, {})
        except OSError as error:
            warnings.warn(f"spectrograms are not kept for the next time: {error}", stacklevel=3)
    return x, torch.tensor(labels), list(speakers)


def _key(files: list[Path], front_end: LogMel) -> str:
    """Changes when a file, the front end's settings or its code do."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    code = [
        Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("frontend.py", "waves.py")
    ]
    return hashlib.sha256(json.dumps([stats, repr(front_end), code]).encode()).hexdigest()[:16]


def _cached(path: Path) -> Tensor | None:
    """The spectrograms that were kept; None where there are none, or the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("x")
    except (OSError, SafetensorError):
        return None
