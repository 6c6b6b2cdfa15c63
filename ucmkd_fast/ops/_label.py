"""What the label-transport losses hand to the doors of devices and get back, and what is told of bad input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .refusals import spelled

Grads = Sequence[Tensor | None]
Made = tuple[
    Tensor, Grads, Any
]  # a loss, gradients that were made with it, and what these are to be divided by


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
    again: Callable[[], Any] | None = None  # makes them anew, for messages: gradients may lie over them

    @property
    def wide(self) -> torch.dtype:
        """In which the loss is computed: float32 or float64."""
        return torch.promote_types(self.student.dtype, torch.float32)

    def readable(self, dtype: torch.dtype) -> Logits:
        """As kernels read them: in this dtype, with unit column stride."""
        student, teacher, target, first_row, again = self
        return Logits(_rows(student, dtype), _rows(teacher, dtype), target.contiguous(), first_row, again)


def _rows(logits: Tensor, dtype: torch.dtype) -> Tensor:
    if logits.dtype != dtype:
        logits = logits.to(dtype)
    return logits if logits.stride(1) == 1 and logits.shape[0] > 1 else logits.contiguous()


class Losses(NamedTuple):
    """What a kernel found."""

    rows: Tensor  # (n,) 0 where ignored
    total: float = 0.0  # sum of them, and how many count; on a GPU only `total` of its door finds these
    kept: int = 0


def refuse(logits: Logits, options: LabelOptions) -> NoReturn:
    """Raise ValueError for a target that is no class, or logits whose loss is NaN: what is there, and in which row."""
    student, teacher, target, first_row, again = logits
    k, counts = student.shape[1], target != options.ignore_index
    outside = counts & ((target < 0) | (target >= k))
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"target must hold classes 0 to {k - 1} or ignore_index ({options.ignore_index}), "
            f"got {int(target[row])} in row {first_row + row}"
        )
    if again is not None:
        again()
    named = {"student_logits": student, "teacher_logits": teacher}
    masked = {name: z == -torch.inf for name, z in named.items()}
    faults = [("not hold NaN or +inf", name, z.isnan() | (z == torch.inf)) for name, z in named.items()]
    expected = "have a class above -inf in every row"
    faults += [(expected, name, z.all(1, keepdim=True)) for name, z in masked.items()]
    if options.label_smoothing:
        expected = "be above -inf in every class with label_smoothing > 0"
        faults += [(expected, name, z) for name, z in masked.items()]
    at_label = torch.arange(k, device=target.device) == target[:, None]
    expected = "be above -inf at the label (other classes may be masked so)"
    faults.append((expected, "teacher_logits", masked["teacher_logits"] & at_label))
    for expected, name, bad in faults:
        places = (bad & counts[:, None]).nonzero()
        if len(places):
            row, column = places[0].tolist()
            got = spelled(named[name][row, column].item())
            raise ValueError(f"{name} must {expected}, got {got} in row {first_row + row}, class {column}")
    raise ValueError("student_logits and teacher_logits must stay in range, got a loss that is NaN")
