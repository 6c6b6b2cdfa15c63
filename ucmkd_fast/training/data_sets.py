"""The data of one run: what a user hands to `Distiller.fit`, read and checked against the models and the method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..config import TrainConfig
from ..data import UNLABELLED, Batch, LabelledData, TensorData
from ..methods import Method
from .metrics import check_labels, output_sizes
from .run_folder import digest


@dataclass(frozen=True)
class DataSets:
    """Each a data set, or None where there is none."""

    student_train: LabelledData
    teacher_train: LabelledData | None
    student_val: LabelledData | None
    unlabelled: LabelledData | None  # of the student's modality; its labels are not read

    @classmethod
    def of(cls, student_train: Any, teacher_train: Any, student_val: Any, unlabelled: Any) -> DataSets:
        """From data sets and tensors, see `Distiller.fit`.

        Raises:
            TypeError: neither of them.
        """
        return cls(
            as_data(student_train),
            None if teacher_train is None else as_data(teacher_train),
            None if student_val is None else as_data(student_val),
            None if unlabelled is None else as_unlabelled(unlabelled),
        )

    def example(self) -> Batch:
        """The first sample of each modality, twice, for `Method.setup`."""
        first = torch.zeros(2, dtype=torch.int64)
        example = Batch(*self.student_train.batch(first))
        if self.teacher_train is not None:
            x = self.teacher_train.batch(first)[0]
            name = "teacher_feature" if self.teacher_train.holds_features else "teacher_x"
            example = replace(example, **{name: x})
        if self.unlabelled is not None:
            example.unlabelled_x = self.unlabelled.batch(first)[0]
        return example

    def described(self) -> dict[str, Any]:
        """What tells these data from others, for `run_folder.identity_of`."""
        data = {
            "student_train": self.student_train,
            "teacher_train": self.teacher_train,
            "student_val": self.student_val,
        }
        described = {
            role: None if one is None else {"samples": len(one.labels), "labels": digest([one.labels])}
            for role, one in data.items()
        }
        if self.unlabelled is not None:
            described["student_unlabelled"] = {"samples": len(self.unlabelled.labels)}
        return described

    def check(
        self, student: Any, teacher: Any, method: Method, name: str, config: TrainConfig, device: torch.device
    ) -> tuple[int, int | None, int]:
        """The student's width, the teacher's where it is used, and the number of classes, seen on one sample of each.

        Raises:
            ValueError: models, method and data do not fit each other.
        """
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise ValueError("the student must have a parameter that requires a gradient, found none")
        width, classes = output_sizes(student, self.student_train, device)
        for data in (self.student_train, self.student_val):
            if data is not None:
                check_labels(data, classes)
        self._check_unlabelled(student, method, name, config, device)
        if not method.uses_teacher or teacher is None:
            return width, None, classes
        if self.teacher_train is None:
            raise ValueError(f"method {name!r} needs teacher_train, got None")
        teacher_width, teacher_classes = output_sizes(teacher.model, self.teacher_train, device)
        if classes != teacher_classes:
            raise ValueError(
                f"student and teacher must know the same classes: the student's head has {classes}, "
                f"the teacher's {teacher_classes}"
            )
        check_labels(self.teacher_train, classes, all_labelled=False)
        check_widths(method, name, width, teacher_width)
        return width, teacher_width, classes

    def _check_unlabelled(self, student: Any, method: Method, name: str, config: TrainConfig, device) -> None:
        if method.uses_unlabelled and self.unlabelled is None:
            raise ValueError(f"method {name!r} needs student_unlabelled, got None")
        if self.unlabelled is not None:
            if not method.uses_unlabelled:
                raise ValueError(f"method {name!r} does not use student_unlabelled: leave it out")
            output_sizes(student, self.unlabelled, device)
        elif config.unlabelled_batch_size is not None:
            raise ValueError(
                f"unlabelled_batch_size={config.unlabelled_batch_size} needs student_unlabelled, got None"
            )


def check_widths(method: Method, name: str, width: int, teacher_width: int) -> None:
    """Raise ValueError where a method compares features of two widths."""
    if method.needs_equal_widths and width != teacher_width:
        raise ValueError(
            f"method {name!r} compares features, so both encoders must give one width: the student's is "
            f"{width}, the teacher's {teacher_width} (ucmkd_fast.models.with_width(student, {teacher_width}) "
            "adds a projection)"
        )


def as_data(data: Any) -> LabelledData:
    """A data set; a pair of tensors (x, y) is made one."""
    if isinstance(data, tuple) and len(data) == 2:
        return TensorData(*data)
    if isinstance(data, LabelledData):
        return data
    raise TypeError(f"data must be a LabelledData or a pair of tensors (x, y), got {type(data).__name__}")


def as_unlabelled(data: Any) -> LabelledData:
    """A data set whose labels are not read; a tensor of samples is made one."""
    if isinstance(data, torch.Tensor):
        return TensorData(data, torch.full((len(data),), UNLABELLED))
    return as_data(data)
