"""A finished run for tests of what is made of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from digit_runs import run_settings
from speech_folders import write_folder


def finished_run(root: Path, **changes) -> Path:
    """The folder of a run of a second, every epoch's student kept; ``changes`` at dotted paths, . as __."""
    pytest.importorskip("sklearn", reason="scikit-learn, which has the handwritten digits, is not installed")
    from ucmkd_fast.run import RunConfig
    from ucmkd_fast.run.job import distill
    from ucmkd_fast.run.settings import with_changes

    audio = root / "audio"
    if not audio.exists():
        write_folder(audio, speakers=("ann", "bob", "cat"), takes=3)
    asked = {"train.keep_weights_every": 1, "train.trackers": []}
    asked |= {name.replace("__", "."): value for name, value in changes.items()}
    config = RunConfig.read(with_changes(run_settings(audio), asked))
    folder = root / f"run-{len(list(root.iterdir()))}"
    distill(config, folder)
    return folder
