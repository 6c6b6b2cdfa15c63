"""Curves for TensorBoard, W&B and the others that accelerate knows: of every step and of every epoch.

A step's figures stay on the device; they are read together once an interval, so no step waits for the host.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor

from ..names import did_you_mean
from .distributed import average, world

PROJECT = "ucmkd"

Figures = dict[str, "float | list[float]"]  # a list: shares of equal bins over [0, 1]


def check_trackers(names: Sequence[str], *, has_folder: bool) -> None:
    """Raise ValueError for a tracker that is unknown, not installed, or has nowhere to write."""
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            hint = did_you_mean(name, LOGGER_TYPE_TO_CLASS)
            raise ValueError(f"trackers must be among {sorted(LOGGER_TYPE_TO_CLASS)}, got {name!r}{hint}")
        if name not in available:
            raise ValueError(
                f"tracker {name!r} was asked for and its package is not installed: install it, or leave it "
                f"out of trackers (installed: {available or 'none'})"
            )
        if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory and not has_folder:
            raise ValueError(f"tracker {name!r} writes files: it needs an output_dir")


class Tracking:
    """The accelerator's trackers, open for one run. A context manager.

    Args:
        accelerator: whose trackers.
        active: whether it has any; the same on every process.
        done: outer steps done before.
        every: steps after which figures are read.
        samples: the student's samples in a step, of all processes.
    """

    def __init__(self, accelerator: Accelerator, *, active: bool, done: int, every: int, samples: int):
        self._accelerator, self._active, self._every, self._samples = accelerator, active, every, samples
        self._done = done  # steps whose figures are logged
        self._rows: list[Tensor] = []
        self._sizes: dict[str, int] = {}
        self._since = 0.0

    def begin(self) -> None:
        """Training begins, or goes on after something else: the clock of the throughput starts."""
        self._since = time.perf_counter()

    def step(self, figures: Mapping[str, Tensor]) -> None:
        """A step's figures: 0-d tensors, and histograms (bins,) of shares; every step has the same."""
        if not self._active:
            return
        self._sizes = {name: value.numel() for name, value in figures.items()}
        device = self._accelerator.device
        flat = [value.detach().reshape(-1).to(device, torch.float32) for value in figures.values()]
        self._rows.append(torch.cat(flat))
        if len(self._rows) == self._every:
            self._read()

    def epoch(self, figures: Mapping[str, float]) -> None:
        """The figures of an epoch, logged at the steps that are done by then."""
        self._read()
        self._log({f"epoch/{name}": value for name, value in figures.items()}, self._done)
        self._flush()

    def _read(self) -> None:
        """Log the steps that wait; here the host waits for the device."""
        if not self._rows:
            return
        rows = torch.stack(self._rows)
        if world().size > 1:
            average([rows])
        values = rows.tolist()
        rate = len(values) * self._samples / (time.perf_counter() - self._since)
        for row in values:
            self._done += 1
            figures: Figures = {}
            at = 0
            for name, size in self._sizes.items():
                figures[f"step/{name}"] = row[at] if size == 1 else row[at : at + size]
                at += size
            if row is values[-1]:
                figures["step/samples_per_second"] = rate
            self._log(figures, self._done)
        self._flush()
        self._rows.clear()
        self.begin()

    def _log(self, figures: Figures, step: int) -> None:
        if self._accelerator.is_main_process:
            for tracker in self._accelerator.trackers:
                _LOG.get(tracker.name, _log_scalars)(tracker, figures, step)

    def _flush(self) -> None:
        if self._accelerator.is_main_process:
            for tracker in self._accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.tracker.flush()

    def __enter__(self) -> Tracking:
        # What a killed run logged after its last checkpoint is hidden by what comes again.
        options = {"tensorboard": {"purge_step": self._done + 1}}
        self._accelerator.init_trackers(PROJECT, init_kwargs=options)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Not accelerator.end_training(): it would take the process group down as well.
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers.clear()


def _edges(shares: Sequence[float]) -> list[float]:
    return [k / len(shares) for k in range(len(shares) + 1)]


def _log_tensorboard(tracker: Any, figures: Figures, step: int) -> None:
    # Not tracker.log: it writes to the disk at each call.
    for name, value in figures.items():
        if not isinstance(value, list):
            tracker.tracker.add_scalar(name, value, step)
            continue
        edges = _edges(value)
        middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
        tracker.tracker.add_histogram_raw(
            name,
            min=0.0,
            max=1.0,
            num=sum(value),
            sum=sum(m * v for m, v in zip(middles, value, strict=True)),
            sum_squares=sum(m * m * v for m, v in zip(middles, value, strict=True)),
            bucket_limits=edges[1:],
            bucket_counts=value,
            global_step=step,
        )


def _log_wandb(tracker: Any, figures: Figures, step: int) -> None:
    import numpy as np
    import wandb

    def known(value: float | list[float]) -> Any:
        if not isinstance(value, list):
            return value
        return wandb.Histogram(np_histogram=(np.asarray(value), np.asarray(_edges(value))))

    tracker.log({name: known(value) for name, value in figures.items()}, step=step)


def _log_scalars(tracker: Any, figures: Figures, step: int) -> None:
    """To a tracker of which no histograms are known: a curve for each bin, named by its lower edge."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, list):
            flat |= {f"{name}/{edge:.2f}": v for edge, v in zip(_edges(value), value, strict=False)}
        else:
            flat[name] = value
    tracker.log(flat, step=step)


_LOG = {"tensorboard": _log_tensorboard, "wandb": _log_wandb}
