"""Folders of recordings made by the tests: tones instead of words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import wavfile


def tone(digit: int, speaker: float, seconds: float = 0.4, rate: int = 8000) -> np.ndarray:
    """A rising tone whose pitch depends on the digit and the speaker, int16."""
    t = np.arange(int(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * (200 + 60 * digit + 25 * speaker) * t * (1 + t))
    return (12000 * wave).astype(np.int16)


def write_folder(folder: Path, *, speakers=("ann", "bob"), takes: int = 1) -> Path:
    """A folder of the FSDD layout: ten digits by each speaker."""
    folder.mkdir(parents=True)
    for s, speaker in enumerate(speakers):
        for digit in range(10):
            for take in range(takes):
                wave = tone(digit, s, 0.3 + 0.02 * digit + 0.05 * take)
                wavfile.write(folder / f"{digit}_{speaker}_{take}.wav", 8000, wave)
    return folder
