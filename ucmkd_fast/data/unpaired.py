"""How batches are drawn from two data sets that have nothing but their classes in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.checks import choice, count_at_least_one
from .batch import Batch
from .class_names import check_same_names
from .labelled import LabelledData
from .prefetch import one_ahead

DRAWS = ("independent", "class-matched", "paired")
_STUDENT, _TEACHER, _UNLABELLED, _MATCH = range(4)  # each draws from a random stream of its own


class UnpairedLoader:
    """Batches of a student's samples, a teacher's, and the student's unlabelled ones, drawn apart.

    Every batch of an epoch has the same size. The student's samples come in passes over
    its data, each in a new random order; an epoch is one pass, whose last batch is filled up
    from the next one, or ``steps_per_epoch`` batches, over as many passes as that takes. A data set
    smaller than its batch size is a whole batch. A batch is a function of seed, epoch and
    step alone: a resumed run sees the same ones, and the shares of all processes, put
    together in the order of their ranks, are the batch that one process would have seen.

    Args:
        student_data: the student's labelled samples.
        teacher_data: the teacher's, or a bank of its features; None: batches without a teacher's part.
        batch_size: the student's samples in a batch, over all processes together.
        teacher_batch_size: the teacher's, likewise; None: ``batch_size``.
        draw: "independent": the teacher's samples come in passes of their own; "class-matched": sample
            i has the class of the student's sample i, and is otherwise random; "paired": the same index.
        seed: an integer >= 0.
        rank: this process.
        world_size: how many processes share each batch, in equal parts.
        drop_last: leave out the samples that do not fill a batch, instead of filling it up.
        steps_per_epoch: the length of an epoch in batches; None: one pass over the student's data.
        unlabelled: samples of the student's modality; their labels are not read.
        unlabelled_batch_size: None: ``batch_size``.

    Raises:
        ValueError: sizes that cannot be honoured; class names that differ; a class-matched draw where the
            teacher lacks a class of the student's; a paired one where lengths or labels differ.
    """

    def __init__(
        self,
        student_data: LabelledData,
        teacher_data: LabelledData | None = None,
        *,
        batch_size: int,
        teacher_batch_size: int | None = None,
        draw: str = "independent",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        steps_per_epoch: int | None = None,
        unlabelled: LabelledData | None = None,
        unlabelled_batch_size: int | None = None,
    ):
        choice("draw", draw, DRAWS)
        self.seed = _seed(seed)
        self.rank, self.world_size = _rank(rank, world_size)
        self.student_data, self.teacher_data, self.unlabelled = student_data, teacher_data, unlabelled
        self.draw = draw
        self.epoch = 0

        self._student = _Passes(student_data, self.seed, _STUDENT)
        self.batch_size = self._size("batch_size", batch_size, student_data)
        self.steps = _steps(len(student_data), self.batch_size, drop_last, steps_per_epoch)
        if unlabelled is not None:
            self._unlabelled = _Passes(unlabelled, self.seed, _UNLABELLED)
            asked = batch_size if unlabelled_batch_size is None else unlabelled_batch_size
            self.unlabelled_batch_size = self._size("unlabelled_batch_size", asked, unlabelled)
        elif unlabelled_batch_size is not None:
            raise ValueError(f"unlabelled_batch_size={unlabelled_batch_size} needs unlabelled data, got None")
        if teacher_data is None:
            if draw != "independent" or teacher_batch_size is not None:
                raise ValueError("draw and teacher_batch_size need teacher_data, got None")
            return
        check_same_classes(student_data, teacher_data)
        if draw == "independent":
            self._teacher = _Passes(teacher_data, self.seed, _TEACHER)
            asked = batch_size if teacher_batch_size is None else teacher_batch_size
            self.teacher_batch_size = self._size("teacher_batch_size", asked, teacher_data)
            return
        if teacher_batch_size not in (None, batch_size):
            raise ValueError(
                f"a {draw} draw gives every sample of the student one of the teacher's: teacher_batch_size "
                f"must be batch_size={batch_size}, got {teacher_batch_size}"
            )
        self.teacher_batch_size = self.batch_size
        if draw == "paired":
            _check_paired(student_data, teacher_data)
        else:
            self._by_class = _ByClass(student_data, teacher_data)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        if any(data is not None and data.reads_files for data in self._all_data):
            return one_ahead(lambda step: self.batch_at(epoch, step), self.steps)
        return (self.batch_at(epoch, step) for step in range(self.steps))

    @property
    def _all_data(self) -> tuple[LabelledData | None, ...]:
        return self.student_data, self.teacher_data, self.unlabelled

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through; it does not move on by itself."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self.epoch = epoch

    def batch_at(self, epoch: int, step: int) -> Batch:
        """This process's share of one batch."""
        rows = self._student.take(epoch, step * self.batch_size, self.batch_size)
        mine = self._share(rows)
        x, y = self.student_data.drawn_batch(mine, (self.seed, _STUDENT, epoch, step))
        batch = Batch(x=x, y=y, rows=mine)
        if self.teacher_data is not None:
            teacher_rows = self._share(self._teacher_rows(epoch, step, rows))
            key = (self.seed, _TEACHER, epoch, step)
            batch.teacher_rows = teacher_rows
            samples, batch.teacher_y = self.teacher_data.drawn_batch(teacher_rows, key)
            if self.teacher_data.holds_features:
                batch.teacher_feature = samples
            else:
                batch.teacher_x = samples
        if self.unlabelled is not None:
            size = self.unlabelled_batch_size
            extra = self._share(self._unlabelled.take(epoch, step * size, size))
            key = (self.seed, _UNLABELLED, epoch, step)
            batch.unlabelled_x = self.unlabelled.drawn_batch(extra, key)[0]
        return batch

    def _teacher_rows(self, epoch: int, step: int, rows: Tensor) -> Tensor:
        """The teacher's indices (m,) that go with the student's (n,), before they are shared out."""
        if self.draw == "paired":
            return rows
        if self.draw == "class-matched":
            random = np.random.default_rng([self.seed, _MATCH, epoch, step])
            return self._by_class.draw(self.student_data.labels[rows], random)
        return self._teacher.take(epoch, step * self.teacher_batch_size, self.teacher_batch_size)

    def _share(self, rows: Tensor) -> Tensor:
        """This process's part of the indices of a whole batch."""
        if self.world_size == 1:
            return rows
        part = len(rows) // self.world_size
        return rows[self.rank * part : (self.rank + 1) * part]

    def _size(self, name: str, size: Any, data: LabelledData) -> int:
        """Samples a batch, over all processes: as asked, or all there are."""
        size = min(count_at_least_one(name, size), len(data))
        if size % self.world_size:
            raise ValueError(
                f"{name} must share out equally over {self.world_size} processes; with {len(data)} samples "
                f"it is {size}: choose a multiple of {self.world_size} up to {len(data)}"
            )
        return size


class _Passes:
    """Endless passes over a data set, each in an order of its own, readable at any position."""

    def __init__(self, data: LabelledData, seed: int, stream: int):
        self.samples = len(data)
        if not self.samples:
            raise ValueError("expected a data set with at least one sample, got an empty one")
        self._key = (seed, stream)
        self._orders: dict[tuple[int, int], Tensor] = {}

    def take(self, epoch: int, start: int, count: int) -> Tensor:
        """Indices (count,) int64 from position ``start`` of an epoch; count <= samples."""
        number, offset = divmod(start, self.samples)
        if offset + count <= self.samples:
            return self._order(epoch, number)[offset : offset + count]
        both = torch.cat([self._order(epoch, number), self._order(epoch, number + 1)])
        return both[offset : offset + count]

    def _order(self, epoch: int, number: int) -> Tensor:
        if (epoch, number) not in self._orders:
            if len(self._orders) > 1:
                self._orders.pop(next(iter(self._orders)))  # the older of the two that a batch can need
            random = np.random.default_rng([*self._key, epoch, number])
            self._orders[epoch, number] = torch.from_numpy(random.permutation(self.samples))
        return self._orders[epoch, number]


class _ByClass:
    """The teacher's indices sorted by class, to draw from any class at once."""

    def __init__(self, student: LabelledData, teacher: LabelledData):
        self.order = torch.argsort(teacher.labels, stable=True)
        sorted_labels = teacher.labels[self.order]
        every = torch.arange(len(student.classes))
        self.first = torch.searchsorted(sorted_labels, every)
        self.count = torch.searchsorted(sorted_labels, every, right=True) - self.first
        if bool((student.labels < 0).any()):
            raise ValueError("a class-matched draw needs a label for every sample of the student")
        lacking = [student.classes[k] for k in student.labels.unique().tolist() if not self.count[k]]
        if lacking:
            raise ValueError(f"the teacher has no sample of class {', '.join(map(repr, lacking))}")

    def draw(self, labels: Tensor, random: np.random.Generator) -> Tensor:
        """A random index (n,) of the teacher's for each label (n,)."""
        count = self.count[labels]
        place = (torch.from_numpy(random.random(len(labels))) * count).long()
        return self.order[self.first[labels] + place.clamp_max(count - 1)]


def _steps(samples: int, batch_size: int, drop_last: bool, asked: int | None) -> int:
    """Batches an epoch."""
    if asked is None:
        return samples // batch_size if drop_last else -(-samples // batch_size)
    if drop_last:
        raise ValueError(f"steps_per_epoch={asked} goes on over the end of a pass: drop_last must be False")
    return count_at_least_one("steps_per_epoch", asked)


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    return seed


def _rank(rank: int, world_size: int) -> tuple[int, int]:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, got rank {rank} of {world_size}")
    return rank, world_size


def check_same_classes(student: LabelledData, teacher: LabelledData) -> None:
    """Raise ValueError where a label means one class to the student and another to the teacher.

    One may list more classes than the other, such as data of numbers whose last classes have no sample; that the
    models know as many is checked with them.
    """
    shared = min(len(student.classes), len(teacher.classes))
    if student.classes[:shared] != teacher.classes[:shared]:
        check_same_names(student.classes, teacher.classes)


def _check_paired(student: LabelledData, teacher: LabelledData) -> None:
    if len(student) != len(teacher):
        raise ValueError(
            f"a paired draw needs as many samples on both sides, got {len(student)} of the student "
            f"and {len(teacher)} of the teacher"
        )
    differ = torch.nonzero(student.labels != teacher.labels).flatten()
    if len(differ):
        raise ValueError(
            f"a paired draw needs the same label at the same index; index {int(differ[0])} is of class "
            f"{int(student.labels[differ[0]])} and {int(teacher.labels[differ[0]])}"
        )
