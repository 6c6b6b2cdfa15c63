"""Curves for TensorBoard, W&B and the others that accelerate knows."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

PROJECT = "ucmkd"


def check_trackers(names: Sequence[str], *, has_folder: bool) -> None:
    """Raise ValueError for a tracker that is unknown, not installed, or has nowhere to write."""
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"trackers must be among {sorted(LOGGER_TYPE_TO_CLASS)}, got {name!r}")
        if name not in available:
            raise ValueError(
                f"tracker {name!r} was asked for and its package is not installed: install it, or leave it "
                f"out of trackers (installed: {available or 'none'})"
            )
        if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory and not has_folder:
            raise ValueError(f"tracker {name!r} writes files: it needs an output_dir")


class Tracking:
    """The accelerator's trackers, open for one run. A context manager."""

    def __init__(self, accelerator: Accelerator, first_epoch: int):
        self._accelerator, self._first_epoch = accelerator, first_epoch

    def log(self, figures: dict[str, float], epoch: int) -> None:
        """One epoch's figures, counted from 1."""
        self._accelerator.log(figures, step=epoch)

    def __enter__(self) -> Tracking:
        # What a killed run logged after its last checkpoint is hidden by what comes again.
        options = {"tensorboard": {"purge_step": self._first_epoch}}
        self._accelerator.init_trackers(PROJECT, init_kwargs=options)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Not accelerator.end_training(): it would take the process group down as well.
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers.clear()
