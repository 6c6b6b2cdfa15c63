"""What the label-transport losses hand to the doors of devices and get back, and what is told of bad input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from .refusals import spelled

Grads = Sequence[Tensor | None]


class LabelOptions(NamedTuple):
    """What a call runs with, once checked; named as the public functions name it."""

    kappa: str
    label_smoothing: float
    ignore_index: int
    reduction: str


class Logits(NamedTuple):
    """Logits of a call, or of a chunk of its rows."""

    student: Tensor  # (n, K)
    teacher: Tensor  # (n, K)
    target: Tensor  # (n,) int64
    first_row: int = 0  # of the call, for messages

    @property
    def wide(self) -> torch.dtype:
        """In which the loss is computed: float32 or float64."""
        return torch.promote_types(self.student.dtype, torch.float32)

    def readable(self, dtype: torch.dtype) -> Logits:
        """As kernels read them: in this dtype, with unit column stride."""
        student, teacher, target, first_row = self
        return Logits(_rows(student, dtype), _rows(teacher, dtype), target.contiguous(), first_row)


def _rows(logits: Tensor, dtype: torch.dtype) -> Tensor:
    if logits.dtype != dtype:
        logits = logits.to(dtype)
    return logits if logits.stride(1) == 1 and logits.shape[0] > 1 else logits.contiguous()


class Losses(NamedTuple):
    """What a kernel found."""

    rows: Tensor  # (n,) 0 where ignored
    total: float = 0.0  # sum of them, and how many count; on a GPU only `total` finds these
    kept: int = 0


class Prepared:
    """What a forward leaves to the backward."""

    def __init__(self, grads: Grads = (), count: Any = None):
        """``grads`` are made along with the loss; ``count`` is what they are still to be divided by."""
        self._grads, self.count = grads, count

    def take(self) -> Grads:
        """The gradients, for the first who asks to own; then they are gone, and there are none."""
        grads, self._grads = self._grads, ()
        return grads


class LabelDoor(Protocol):
    """What the losses ask of a device: ``door(...).label``.

    A device may make gradients along with the loss, or leave them to the backward.
    """

    def chunk_rows(self, n: int, k: int) -> int:
        """Of the linear form: how many of n rows of logits (n, 2K) are made at a time."""

    def factors(self, feature: Tensor, *weights: Tensor) -> torch.dtype:
        """Of the linear form: what its products multiply; they are summed in float32 or float64."""

    def rows(self, logits: Logits, options: LabelOptions, grads: Grads) -> Losses:
        """Losses of `Logits.readable`; gradients of their reduction go into ``grads`` (n, K), of both or of one.

        A gradient may lie over its logits. Raises ValueError for a target that is no class, where that is known.
        """

    def is_nan(self, losses: Losses) -> bool:
        """Whether a loss is NaN, as far as that is known."""

    def total(self, parts: Sequence[Losses], target: Tensor, options: LabelOptions) -> tuple[Tensor, Any]:
        """Sum or mean () of the parts, and what the gradient of their sum is divided by; the mean of none is NaN."""

    def loss(self, logits: Logits, options: LabelOptions, needs: Sequence[bool]) -> tuple[Tensor, Prepared]:
        """The loss, () or (n,), and what its backward starts from."""

    def gradients(
        self,
        logits: Logits,
        options: LabelOptions,
        needs: Sequence[bool],
        prepared: Prepared,
        upstream: Tensor,
    ) -> Grads:
        """Of both logits, where needed, for that of the loss."""

    def scale_owned_(self, grads: Grads, upstream: Tensor, count: Any = None) -> Grads:
        """Gradients times ``upstream``, over ``count`` where there is one, in place: the caller must own them.

        A count of 0 is of no rows: their gradients are 0 and stay so.
        """


def as_given(grads: Grads, tensors: Grads) -> Grads:
    """Gradients in the dtypes of their tensors."""
    return [
        g if g is None or z is None or g.dtype == z.dtype else g.to(z.dtype)
        for g, z in zip(grads, tensors, strict=True)
    ]


def refuse_target(logits: Logits, options: LabelOptions, row: int) -> NoReturn:
    """Raise ValueError for the target of this row, which is no class."""
    raise ValueError(
        f"target must hold classes 0 to {logits.student.shape[1] - 1} or ignore_index ({options.ignore_index}), "
        f"got {int(logits.target[row])} in row {logits.first_row + row}"
    )


def refuse_logits(logits: Logits, options: LabelOptions) -> NoReturn:
    """Raise ValueError for logits whose loss is NaN: what is there, and in which row."""
    target, named = (
        logits.target[:, None],
        {"student_logits": logits.student, "teacher_logits": logits.teacher},
    )
    counts = target != options.ignore_index
    masked = {name: z == -torch.inf for name, z in named.items()}
    faults = [("must not hold NaN or +inf", name, z.isnan() | (z == torch.inf)) for name, z in named.items()]
    faults += [
        ("must have a class above -inf in every row", name, z.all(1, keepdim=True))
        for name, z in masked.items()
    ]
    if options.label_smoothing:
        faults += [
            ("must be above -inf in every class with label_smoothing > 0", name, z)
            for name, z in masked.items()
        ]
    at_label = torch.zeros_like(counts.expand_as(logits.student)).scatter_(
        1, torch.where(counts, target, 0), True
    )
    faults.append((
        "must be above -inf at the label (other classes may be masked so)", "teacher_logits",
        masked["teacher_logits"] & at_label,
    ))  # fmt: skip
    for expected, name, bad in faults:
        places = (bad & counts).nonzero()
        if len(places):
            row, k = places[0].tolist()
            raise ValueError(
                f"{name} {expected}, got {spelled(named[name][row, k].item())} in row {logits.first_row + row}, "
                f"class {k}"
            )
    raise ValueError("student_logits and teacher_logits must stay in range, got a loss that is NaN")
