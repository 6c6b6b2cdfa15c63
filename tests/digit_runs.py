"""Small runs on tones instead of words, for tests of runs and comparisons."""

from __future__ import annotations

from pathlib import Path


def run_settings(audio: Path) -> dict:
    """A run that takes about a second, its teacher included."""
    return {
        "teacher": {
            "data": "digits",
            "model": {"name": "digit-cnn", "width": 8},
            "train": {"lr": 0.05, "epochs": 1, "steps_per_epoch": 4, "progress": False, "trackers": []},
            "cache_features": True,
        },
        "student": {
            "data": {"name": "spoken-digits", "shares": [1, 1, 1], "root": str(audio), "labels_per_class": 2},
            "model": {"name": "speech-cnn", "width": 8},
        },
        "method": {"name": "ucmkd", "max_iter": 5},
        "train": {
            "lr": 0.05, "epochs": 2, "steps_per_epoch": 2, "batch_size": 16, "restore_best": False, "progress": False,
            "trackers": [],
        },
    }  # fmt: skip
