"""What a data set offers: samples by index, their labels at once, the classes' names, who made each.

Labels and groups are known without reading a sample, so splits and draws never
touch the samples. A data set in memory gives a batch by one indexing; one that
reads files implements `LabelledData.__getitem__` alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..ops.refusals import first_not_finite
from .mapped import MappedRows

Own = TypeVar("Own", bound="TensorData")

UNLABELLED = -100  # the label of a sample that has none: torch's ignore_index
_MOST_CLASSES = 2**20  # that labels alone may number


class LabelledData(Dataset):
    """Base class of map-style data sets of (x, y).

    Attributes:
        labels: (n,) int64, each from 0 to K - 1, or `UNLABELLED`.
        classes: the K classes' names; student and teacher name the same class alike.
        groups: who made each sample (its speaker, its actor), n names; None where nobody knows.
        ids: the samples' names; the same clip has the same one in every modality; None where there are none.
        holds_features: True where x is already a feature of the encoder, so that none has to run.
        reads_files: True where a batch takes time to read, so that the loader reads one ahead.
    """

    labels: Tensor
    classes: list[str]
    groups: list[str] | None = None
    ids: list[str] | None = None
    holds_features: bool = False
    reads_files: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample x (...) and its label, 0-d int64."""
        raise NotImplementedError

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (n, ...) and labels (n,) at indices (n,) int64."""
        return torch.stack([self[int(i)][0] for i in indices]), self.labels[indices]

    def drawn_batch(self, indices: Tensor, key: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch to train on: augmented, where the data set does that, by random numbers of the key."""
        return self.batch(indices)

    def subset(self, indices: Tensor | Sequence[int]) -> LabelledData:
        """The samples at the given indices, in that order, as a data set."""
        return _Subset(self, _as_indices(indices, len(self)))


class TensorData(LabelledData):
    """A data set in memory, or in one memory-mapped array.

    Args:
        x: (n, ...) samples, of any floating dtype, which a model gets in its own, or integers; a memory map of NumPy
            stays on the disk, in subsets too, and is never written to. They are constants: a graph that x carries is
            left behind.
        y: (n,) integer labels; None where no sample has one.
        classes: the classes' names; None: "0", "1", ... up to the largest label.
        groups: who made each sample, n names.

    Raises:
        TypeError: x or y is not a tensor (x: nor a memory map), or y not of an integer dtype.
        ValueError: empty, complex, NaN or inf in x, or numbers beyond float32; lengths that differ, a label without a
            class.
    """

    def __init__(
        self,
        x: Tensor | np.memmap,
        y: Tensor | None = None,
        classes: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
    ):
        self._samples = MappedRows(x) if isinstance(x, np.memmap) else x
        _check_samples(self._samples)
        if isinstance(self._samples, Tensor) and self._samples.requires_grad:
            self._samples = self._samples.detach()
        if y is None:
            y = torch.full((len(x),), UNLABELLED)
        _check_labels(y, len(x))
        self.classes = numbered_classes(y) if classes is None else list(classes)
        _check_classes(y, self.classes)
        if groups is not None and len(groups) != len(x):
            raise ValueError(f"groups must hold a name for each of {len(x)} samples, got {len(groups)}")
        self.labels = y.long()
        self.groups = None if groups is None else list(groups)

    @property
    def x(self) -> Tensor:
        """All samples (n, ...); those of a memory map are read into memory."""
        samples = self._samples
        return samples if isinstance(samples, Tensor) else samples[torch.arange(len(samples))]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample x (...) and its label, 0-d int64."""
        return self._samples[index], self.labels[index]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (n, ...) and labels (n,) at indices (n,) int64."""
        return self._samples[indices], self.labels[indices]

    def subset(self: Own, indices: Tensor | Sequence[int]) -> Own:
        """The samples at the given indices, copied; those of a memory map stay there."""
        rows = _as_indices(indices, len(self))
        part, samples = copy.copy(self), self._samples
        part._samples = samples[rows] if isinstance(samples, Tensor) else samples.take(rows)
        part.labels = self.labels[rows]
        part.groups, part.ids = _pick(self.groups, rows), _pick(self.ids, rows)
        return part

    def with_labels(self: Own, y: Tensor, classes: Sequence[str] | None = None) -> Own:
        """The same samples under other labels (noise, permuted classes), of other classes where given; x is shared."""
        other = copy.copy(self)
        other.classes = self.classes if classes is None else list(classes)
        _check_labels(y, len(self))
        _check_classes(y, other.classes)
        other.labels = y.long()
        return other


class _Subset(LabelledData):
    """Some samples of a data set that reads its samples when asked."""

    def __init__(self, data: LabelledData, indices: Tensor):
        self.data, self.indices = data, indices
        self.labels = data.labels[indices]
        self.classes = data.classes
        self.groups = _pick(data.groups, indices)
        self.holds_features = data.holds_features
        self.reads_files = data.reads_files
        self.ids = _pick(data.ids, indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data[int(self.indices[index])]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.data.batch(self.indices[indices])

    def drawn_batch(self, indices: Tensor, key: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.data.drawn_batch(self.indices[indices], key)

    @property
    def bad(self) -> dict[int, str]:
        """Index -> why that sample was replaced; see `FileData`."""
        own = getattr(self.data, "bad", {})
        return {i: own[k] for i, k in enumerate(self.indices.tolist()) if k in own}


def numbered_classes(y: Tensor) -> list[str]:
    """The names "0", "1", ... of the classes of labels (n,), up to the largest.

    Raises:
        ValueError: a label so large that it is no label: an id, a time, -1 in an unsigned type.
    """
    largest = int(y.max())
    if largest >= _MOST_CLASSES:
        raise ValueError(
            f"y must hold labels from 0 on, at most {_MOST_CLASSES:,} classes, got the label {largest}: number the "
            "classes from 0, or use names"
        )
    return [str(k) for k in range(largest + 1)]


def _pick(names: list[str] | None, rows: Tensor) -> list[str] | None:
    return None if names is None else [names[i] for i in rows.tolist()]


def _as_indices(indices: Tensor | Sequence[int], samples: int) -> Tensor:
    rows = torch.as_tensor(indices)
    if rows.dim() != 1 or not len(rows) or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ValueError(f"indices must be a list of integers, got {rows.dtype} {tuple(rows.shape)}")
    if int(rows.min()) < 0 or int(rows.max()) >= samples:
        raise ValueError(
            f"indices must be from 0 to {samples - 1}, got {int(rows.min())} to {int(rows.max())}"
        )
    return rows.long()


def _check_samples(x: Tensor | MappedRows) -> None:
    if not isinstance(x, (Tensor, MappedRows)):
        raise TypeError(f"x must be a torch.Tensor of shape (n, ...), got {type(x).__name__}")
    if len(x.shape) < 2 or 0 in x.shape:
        raise ValueError(f"x must hold samples (n, ...) with n > 0, got shape {tuple(x.shape)}")
    if x.dtype.is_complex:
        raise ValueError(
            f"x must be real, got {str(x.dtype).removeprefix('torch.')}: take its parts or its size"
        )
    if not x.dtype.is_floating_point:
        return
    first = 0
    for block in _blocks(x):
        finite = torch.isfinite(block.float())  # models compute in float32, mostly
        if not finite.all():
            row = int((~finite).flatten(1).any(1).nonzero()[0])
            sample = block[row]
            what = "a number beyond float32" if torch.isfinite(sample).all() else first_not_finite(sample)
            raise ValueError(f"x must be finite, got {what} in sample {first + row}")
        first += len(block)


def _blocks(x: Tensor | MappedRows) -> Iterator[Tensor]:
    return iter([x]) if isinstance(x, Tensor) else x.blocks()


def _check_classes(y: Tensor, classes: list[str]) -> None:
    wrong = y[(y < 0) & (y != UNLABELLED) | (y >= len(classes))]
    if len(wrong):
        known = f"from 0 to {len(classes) - 1} ({len(classes)} classes)" if classes else "from 0 on"
        raise ValueError(
            f"y must hold labels {known}, or {UNLABELLED} for a sample without one; got {int(wrong[0])}"
        )


def _check_labels(y: Tensor, samples: int) -> None:
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a torch.Tensor of integer labels, got {type(y).__name__}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"y must be of an integer dtype, got {str(y.dtype).removeprefix('torch.')}")
    if y.shape != (samples,):
        raise ValueError(f"y must be of shape ({samples},), one label a sample, got {tuple(y.shape)}")
