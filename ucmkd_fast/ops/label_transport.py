"""The label-transport loss: the student's cross-entropy minus kappa times that of the teacher's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.label_transport import label_transport_loss as reference
from ..reference.label_transport import mean_of_rows
from . import _devices, _transforms, checks
from ._label import LabelDoor, LabelOptions, Logits, as_given, refuse_logits

KAPPAS = ("detached", "live")
REDUCTIONS = ("mean", "sum", "none")


def label_transport_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    kappa: str = "detached",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """UCMKD's label alignment (paper, LA and Appendix D).

    L_i = CE(s_i, y_i) - kappa_i CE(t_i, y_i), kappa_i = softmax(t_i)[y_i].

    Mind what it does: with kappa detached the teacher's probability of the label on student features is
    pushed *down*; with kappa live, towards 1/e.

    Args:
        student_logits: (n, K) s; float32, float64, or half precision (then computed in float32).
        teacher_logits: (n, K) t, the teacher's head on the student's features; with or without gradient.
        target: (n,) int64 classes y.
        kappa: ``"detached"``, a constant weight; ``"live"``, differentiated as well.
        label_smoothing: share of each target that is spread over all classes, in both cross-entropies.
        ignore_index: rows with this target count for nothing.
        reduction: ``"mean"`` over the rows that count, ``"sum"``, or ``"none"``: (n,), 0 where ignored.

    Returns:
        The loss, () or (n,); float32 or float64. The mean of no rows is NaN, as in torch.

    Raises:
        TypeError: not a tensor, integer logits, float64 with float32, a target that is not int64.
        ValueError: shapes or class counts that differ, labels out of range, NaN, unknown options.
    """
    _check_logits(student_logits, teacher_logits, target)
    options = checked_options(kappa, label_smoothing, ignore_index, reduction)
    door = _devices.door(student_logits)
    if not door.KERNELS:
        _devices.warn_without_kernels(student_logits.device)
    elif _transforms.direct(student_logits, teacher_logits, target):
        loss: Tensor = LabelTransport.apply(student_logits, teacher_logits, target, options, door.label)
        return loss
    if not door.KERNELS or _transforms.by_torch():
        return _by_torch(student_logits, teacher_logits, target, options)
    loss, _, _ = _transformed(
        student_logits, teacher_logits, target, ignore_index, options.label_smoothing, kappa == "live"
    )
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else mean_of_rows(loss.sum(), (target != ignore_index).sum())


def _check_logits(student: Any, teacher: Any, target: Any) -> None:
    checks.tensor("student_logits", student, "(n, K)", 2, half=True)
    checks.tensor("teacher_logits", teacher, "(n, K)", 2, half=True)
    if student.shape != teacher.shape:
        raise ValueError(
            "student_logits and teacher_logits must have the same shape (n, K): one row a sample, one column a "
            f"class; got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if 0 in student.shape:
        raise ValueError(
            f"student_logits must have at least one row and one class, got {tuple(student.shape)}"
        )
    check_target(target, student.shape[0])
    if not student.device == teacher.device == target.device:
        checks.same_device(student_logits=student, teacher_logits=teacher, target=target)
    if student.dtype != teacher.dtype:
        checks.common_dtype(student_logits=student, teacher_logits=teacher)


def check_target(target: Any, n: int) -> None:
    """Classes (n,) of dtype int64; their range is checked by the kernel."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor of shape (n,), got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be of dtype int64, got {str(target.dtype).removeprefix('torch.')}")
    if target.shape != (n,):
        raise ValueError(f"target must have shape ({n},), got {tuple(target.shape)}")


def checked_options(kappa: Any, label_smoothing: Any, ignore_index: Any, reduction: Any) -> LabelOptions:
    """The options that both forms share."""
    checks.choice("kappa", kappa, KAPPAS)
    checks.choice("reduction", reduction, REDUCTIONS)
    if not 0 <= checks.number_at_least_zero("label_smoothing", label_smoothing) <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")
    return LabelOptions(kappa, float(label_smoothing), ignore_index, reduction)


def _by_torch(student: Tensor, teacher: Tensor, target: Tensor, options: LabelOptions) -> Tensor:
    """Differentiable to any order."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    return reference(student.to(dtype), teacher.to(dtype), target, **options._asdict())


class LabelTransport(torch.autograd.Function):
    """What the forward leaves to the backward, the device's door decides (`_label.Prepared`)."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, student: Tensor, teacher: Tensor, target: Tensor, options: LabelOptions, label: LabelDoor
    ) -> Tensor:
        loss, ctx.prepared = label.loss(Logits(student, teacher, target), options, ctx.needs_input_grad[:2])
        ctx.save_for_backward(student, teacher, target)
        ctx.options, ctx.label = options, label
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        student, teacher, target = ctx.saved_tensors
        if torch.is_grad_enabled():

            def again(student: Tensor, teacher: Tensor) -> tuple[Tensor]:
                return (_by_torch(student, teacher, target, ctx.options),)

            return *_transforms.differentiate(again, (student, teacher), (upstream,)), None, None, None
        logits, needs = Logits(student, teacher, target), ctx.needs_input_grad[:2]
        grads = ctx.label.gradients(logits, ctx.options, needs, ctx.prepared, upstream)
        return *as_given(grads, (student, teacher)), None, None, None


@torch.library.custom_op("ucmkd_fast::label_transport_forward", mutates_args=())
def label_transport_forward(
    student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int, smoothing: float, live: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row and both gradients of it."""
    logits = Logits(student, teacher, target)
    logits = logits.readable(logits.wide)
    options = LabelOptions("live" if live else "detached", smoothing, ignore_index, "none")
    grads = logits.student.new_empty(student.shape), logits.student.new_empty(student.shape)
    label: LabelDoor = _devices.door(student).label
    losses = label.rows(logits, options, grads)
    if label.is_nan(losses):
        refuse_logits(logits, options)
    return losses.rows, *grads


@label_transport_forward.register_fake
def _(
    student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int, smoothing: float, live: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, shape = torch.promote_types(student.dtype, torch.float32), student.shape
    loss, ds, dt = (student.new_empty(size, dtype=dtype) for size in (shape[:1], shape, shape))
    return loss, ds, dt


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    student, teacher, target, ignore_index, smoothing, live = inputs
    ctx.options = LabelOptions("live" if live else "detached", smoothing, ignore_index, "sum")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(student, teacher, target, *output[1:])


def _backward(
    ctx: Any, upstream: Tensor | None, up_ds: Tensor | None, up_dt: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Of the rows' losses, and of their gradients where these are differentiated again."""
    student, teacher, target, ds, dt = ctx.saved_tensors
    found: list[Tensor | None] = [None, None]
    if upstream is not None:
        found = [(ds * upstream[:, None]).to(student.dtype), (dt * upstream[:, None]).to(teacher.dtype)]
    if up_ds is None and up_dt is None:
        return *found, *[None] * 4

    def total(student: Tensor, teacher: Tensor) -> tuple[Tensor]:
        return (_by_torch(student, teacher, target, ctx.options),)

    def gradients(student: Tensor, teacher: Tensor) -> Sequence[Tensor | None]:
        wide = student.to(ds.dtype), teacher.to(ds.dtype)
        return _transforms.vjp(total, wide, (ds.new_ones(()),))

    second = _transforms.vjp(gradients, (student, teacher), (up_ds, up_dt))
    return *(f if s is None else s if f is None else f + s for f, s in zip(found, second, strict=True)), *[
        None
    ] * 4


def _rule(call: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """Rows do not know of each other: those of all problems are one call."""
    folded = _transforms.fold(info, in_dims[:3], *args[:3])
    outputs = call(*folded, *args[3:])
    return tuple(z.unflatten(0, (info.batch_size, -1)) for z in outputs), (0, 0, 0)


_transformed = _transforms.register_backward(label_transport_forward, _setup_context, _backward, _rule)
