"""A data set under other labels, its samples shared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .class_names import check_same_names
from .labelled import UNLABELLED, LabelledData, TensorData


def relabelled(data: LabelledData, renamed: Tensor, classes: Sequence[str] | None = None) -> LabelledData:
    """The same samples, those of class k under the label ``renamed[k]``.

    Args:
        data: the samples.
        renamed: (K,) int64.
        classes: what the new labels are called; None: as the old ones.
    """
    labels = data.labels.clone()
    known = labels != UNLABELLED
    labels[known] = renamed[labels[known]]
    if isinstance(data, TensorData):
        return data.with_labels(labels, classes)
    return _Relabelled(data, labels, data.classes if classes is None else list(classes))


def in_classes(data: LabelledData, classes: Sequence[str], sides: tuple[str, str]) -> LabelledData:
    """The same samples under the labels that their classes have in another list.

    Args:
        data: the samples; where their classes have no names but numbers, their labels stay.
        classes: the other list; it may name more.
        sides: what to call the list and the data in messages.

    Raises:
        ValueError: a class of the data that the list does not name.
    """
    own = data.classes
    unnamed = own == [str(label) for label in range(len(own))] and len(own) <= len(classes)
    if own == list(classes) or unnamed:
        return data
    if not set(own) <= set(classes):
        check_same_names(classes, own, sides)
    return relabelled(data, torch.tensor([list(classes).index(name) for name in own]), classes)


class _Relabelled(LabelledData):
    """A data set that reads its samples when asked, under other labels."""

    def __init__(self, data: LabelledData, labels: Tensor, classes: list[str]):
        self.data, self.labels, self.classes = data, labels, classes
        self.groups, self.ids = data.groups, data.ids
        self.holds_features, self.reads_files = data.holds_features, data.reads_files

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data[index][0], self.labels[index]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.data.batch(indices)[0], self.labels[indices]

    def drawn_batch(self, indices: Tensor, key: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As the data set draws it, augmented where that is."""
        return self.data.drawn_batch(indices, key)[0], self.labels[indices]
