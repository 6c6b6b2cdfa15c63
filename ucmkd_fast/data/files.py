"""Data sets whose samples are read from files when they are asked for, by several threads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import processors
from .labelled import LabelledData

#: Reads the sample of an index; random numbers are given in training alone. Raises OSError or ValueError
#: with the file's name.
Reader = Callable[[int, "np.random.Generator | None"], Tensor]


class FileData(LabelledData):
    """Samples in files.

    A sample that cannot be read is an error with the file's name. With ``skip_bad`` the next good one of its
    class is given instead: indices, labels and pairs stay what they are, ``bad`` counts and names
    the replaced, and a warning says so once each.

    Args:
        read: gives sample x (...) of an index.
        labels: (n,) int64.
        classes: their names.
        ids: the samples' names; the same clip has the same name in every modality.
        groups: who made each sample.
        files: of each sample the file or folder that must exist, looked for now; None: found when read.
        skip_bad: go on without samples that cannot be read.
        workers: threads that read a batch; None: one a core, at most 8.

    Attributes:
        bad: index -> why that sample was replaced.

    Raises:
        FileNotFoundError: files are missing, without ``skip_bad``.
        ValueError: there is no sample.
    """

    reads_files = True
    ids: list[str]

    def __init__(
        self,
        read: Reader,
        labels: Tensor,
        classes: Sequence[str],
        *,
        ids: Sequence[str],
        groups: Sequence[str] | None = None,
        files: Sequence[Path] | None = None,
        skip_bad: bool = False,
        workers: int | None = None,
    ):
        if not len(labels):
            raise ValueError("expected at least one sample, found none")
        self.labels, self.classes, self.ids = labels, list(classes), list(ids)
        self.groups = None if groups is None else list(groups)
        self.skip_bad = skip_bad
        self.workers = min(8, processors.usable()) if workers is None else workers
        self.bad: dict[int, str] = {}
        self._read = read
        if files is not None:
            self._look_for(files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample x (...), not augmented, and its label, 0-d int64."""
        return self._sample(int(index), None), self.labels[index]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (n, ...), not augmented, and labels (n,) at indices (n,) int64."""
        return self._batch(indices, None)

    def drawn_batch(self, indices: Tensor, key: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Samples (n, ...), augmented by random numbers of the key and the index, and labels (n,)."""
        return self._batch(indices, tuple(key))

    def _batch(self, indices: Tensor, key: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
        def one(index: int) -> Tensor:
            return self._sample(index, None if key is None else np.random.default_rng([*key, index]))

        rows = indices.tolist()
        parallel = self.workers > 1 and len(rows) > 1
        samples = list((_threads(self.workers, os.getpid()).map if parallel else map)(one, rows))
        for index, sample in zip(rows, samples, strict=True):
            if sample.shape != samples[0].shape:
                raise ValueError(
                    f"{self.ids[index]}: shape {tuple(sample.shape)}, but {self.ids[rows[0]]} has "
                    f"{tuple(samples[0].shape)}: samples of one data set must have one shape (size= makes it so)"
                )
        return torch.stack(samples), self.labels[indices]

    def _sample(self, index: int, random: np.random.Generator | None) -> Tensor:
        if index not in self.bad:
            try:
                return self._read(index, random)
            except (OSError, ValueError) as error:
                if not self.skip_bad:
                    raise
                self.bad[index] = str(error)
                warnings.warn(f"{error}; another sample of its class takes its place", stacklevel=2)
        alike = torch.nonzero(self.labels == self.labels[index]).flatten()
        for other in torch.roll(alike, -int((alike == index).nonzero()[0])).tolist()[1:]:
            if other in self.bad:
                continue
            try:
                return self._read(other, random)
            except (OSError, ValueError) as error:
                self.bad[other] = str(error)
        raise ValueError(f"no sample of class {self._class(index)} can be read; {self.bad[index]}")

    def _class(self, index: int) -> str:
        label = int(self.labels[index])
        return repr(self.classes[label]) if label >= 0 else "None"

    def _look_for(self, files: Sequence[Path]) -> None:
        missing = [index for index, path in enumerate(files) if not path.exists()]
        if not missing:
            return
        first = f"{files[missing[0]]}: expected a sample, there is none"
        told = f"{first} ({len(missing)} of {len(files)} are missing)"
        if not self.skip_bad:
            raise FileNotFoundError(f"{told}; skip_bad goes on without them")
        self.bad |= {index: f"{files[index]}: expected a sample, there is none" for index in missing}
        warnings.warn(f"{told}; other samples of their classes take their place", stacklevel=3)


@lru_cache(maxsize=4)
def _threads(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: after a fork there are none of the parent's."""
    return ThreadPoolExecutor(workers, thread_name_prefix="ucmkd-read")
