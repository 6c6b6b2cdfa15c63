"""The label-transport loss: the student's cross-entropy minus kappa times that of the teacher's head."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from .._native import _C
from ..reference.label_transport import label_transport_loss as reference
from ..reference.label_transport import mean_of_rows
from . import _autograd, _devices, _label_cuda, _pieces, _solve_cuda, _transforms, checks, refusals

KAPPAS = ("detached", "live")
REDUCTIONS = ("mean", "sum", "none")


def run(student, teacher, target, ignore_index, smoothing, live, ds, dt, first_row=0, mean=False):
    """Loss of each row (n,), the total and the number of rows kept; gradients go into ds, dt (n, K) where given.

    Logits and gradients have unit column stride; a gradient may lie over its logits. The gradients are those of
    the total, or on a CPU with ``mean`` those of the mean. On a GPU the rows stand for the total, and nothing is
    counted: that is `_label_cuda.total`.
    """
    n, k = student.shape
    if _solve_cuda.runs_on(student):
        loss = _label_cuda.run(student, teacher, target, ignore_index, smoothing, live, ds, dt, first_row)
        return loss, loss, None
    loss = student.new_empty(n)
    grad = ds if ds is not None else dt
    total, kept, bad = _C.label_transport_forward(
        student.dtype == torch.float64, n, k, student.data_ptr(), student.stride(0), teacher.data_ptr(),
        teacher.stride(0), target.data_ptr(), ignore_index, smoothing, live, mean, loss.data_ptr(),
        0 if ds is None else ds.data_ptr(), 0 if dt is None else dt.data_ptr(), 0 if grad is None else grad.stride(0),
    )  # fmt: skip
    if bad >= 0:
        raise ValueError(
            f"target must hold classes 0 to {k - 1} or ignore_index ({ignore_index}), "
            f"got {int(target[bad])} in row {first_row + bad}"
        )
    return loss, total, kept


def is_nan(total) -> bool:
    """Whether a total is NaN (`run`); on a GPU only under UCMKD_CHECK=1, as the look waits for the device."""
    if isinstance(total, Tensor):
        return os.environ.get("UCMKD_CHECK") == "1" and bool(total.isnan().any())
    return math.isnan(total)


def refuse_logits(student, teacher, target, ignore_index, smoothing, first_row=0) -> NoReturn:
    """Raise ValueError for logits (n, K) whose loss is NaN: what is there, and in which row."""
    counts = (target != ignore_index)[:, None]
    at_label = torch.zeros_like(student, dtype=torch.bool).scatter_(
        1, torch.where(counts, target[:, None], 0), True
    )
    named = (("student_logits", student), ("teacher_logits", teacher))
    tests: list[tuple[str, Any]] = [
        ("must not hold NaN or +inf", lambda z: z.isnan() | (z == torch.inf)),
        ("must have a class above -inf in every row", lambda z: (z == -torch.inf).all(1, keepdim=True).expand_as(z)),
    ]  # fmt: skip
    if smoothing:
        tests.append(
            ("must be above -inf in every class with label_smoothing > 0", lambda z: z == -torch.inf)
        )
    for expected, bad in tests:
        for name, z in named:
            _refuse_logit(name, z, bad(z) & counts, expected, first_row)
    _refuse_logit(
        "teacher_logits", teacher, (teacher == -torch.inf) & at_label & counts,
        "must be above -inf at the label (other classes may be masked so)", first_row,
    )  # fmt: skip
    raise ValueError("student_logits and teacher_logits must stay in range, got a loss that is NaN")


def _refuse_logit(name: str, z: Tensor, bad: Tensor, expected: str, first_row: int) -> None:
    if bool(bad.any()):
        row, k = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name} {expected}, got {refusals.spelled(z[row, k].item())} in row {first_row + row}, class {k}"
        )


def _kernel_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    """What the kernels are given: on a GPU both logits of one half precision as they are, else float32 or float64."""
    if _solve_cuda.runs_on(student) and student.dtype == teacher.dtype:
        return student.dtype
    return torch.promote_types(student.dtype, torch.float32)


def _rows(logits: Tensor) -> Tensor:
    """Logits (n, K) with unit column stride."""
    return logits if logits.stride(1) == 1 and len(logits) > 1 else logits.contiguous()


def _forward(student, teacher, target, ignore_index, smoothing, live, need_student, need_teacher, mean=False):
    """`run` on logits of any strides, with gradients of its own."""
    n, k = student.shape
    student, teacher = _rows(student), _rows(teacher)
    ds = student.new_empty(n, k) if need_student else None
    dt = student.new_empty(n, k) if need_teacher else None
    loss, total, kept = run(
        student, teacher, target.contiguous(), ignore_index, smoothing, live, ds, dt, 0, mean
    )
    if is_nan(total):
        refuse_logits(student, teacher, target, ignore_index, smoothing)
    return loss, ds, dt, total, kept


def value_of(total, kept, reduction: str, dtype: torch.dtype) -> Tensor:
    """The loss () from the total and the number of rows kept; the mean of none is NaN. On a GPU it is there already."""
    if isinstance(total, Tensor):
        return total
    return torch.tensor(total if reduction == "sum" else (total / kept if kept else math.nan), dtype=dtype)


def _is_one(number: Tensor) -> bool:
    return number.dtype in checks.FLOATS and _C.is_one(number.dtype == torch.float64, number.data_ptr())


def hand_over(gradients: Iterable[Tensor | None], upstream: Tensor, divisor: Any) -> list[Tensor | None]:
    """Gradients that nobody else holds, times ``upstream`` (over ``divisor`` where there is one), in place.

    A divisor of 0 counts no rows: their gradients are 0 and stay so.
    """
    if divisor is not None:
        upstream = upstream / (divisor.clamp_min(1) if isinstance(divisor, Tensor) else max(divisor, 1))
    elif upstream.dim() == 0 and upstream.is_cpu and _is_one(upstream):
        return list(gradients)
    return [None if g is None else _pieces.scale_(g, upstream) for g in gradients]


class LabelTransport(torch.autograd.Function):
    """Gradients are made in the forward, which has both rows of logits at hand, and handed over by the backward.

    A second backward through the same graph finds them gone and makes them again. On a GPU each backward makes them.
    """

    @staticmethod
    def forward(ctx: Any, student, teacher, target, ignore_index, smoothing, kappa, reduction):  # noqa: D102
        ctx.options = (ignore_index, smoothing, kappa, reduction)
        loss, total, kept = LabelTransport.solve(ctx, student, teacher, target)
        ctx.save_for_backward(student, teacher, target)
        if reduction == "none":
            return loss
        return value_of(total, kept, reduction, torch.promote_types(student.dtype, torch.float32))

    @staticmethod
    def solve(ctx: Any, student, teacher, target):
        """Rows, total and number kept; the gradients stay in ``ctx.grads``.

        On a GPU the total is the loss, and the gradients are left to the backward, with what they want dividing by.
        """
        ignore_index, smoothing, kappa, reduction = ctx.options
        dtype = _kernel_dtype(student, teacher)
        later = _solve_cuda.runs_on(student)
        need_student, need_teacher = (need and not later for need in ctx.needs_input_grad[:2])
        mean = reduction == "mean"
        loss, ds, dt, total, kept = _forward(
            student.detach().to(dtype), teacher.detach().to(dtype), target, ignore_index, smoothing,
            kappa == "live", need_student, need_teacher, mean,
        )  # fmt: skip
        ctx.grads, ctx.divisor = (ds, dt), None
        if later and reduction != "none":
            total, kept = _label_cuda.total(loss, target.contiguous(), ignore_index, mean)
            ctx.divisor = kept if mean else None
        return loss, total, kept

    @staticmethod
    def backward(ctx: Any, upstream):  # noqa: D102
        student, teacher, target = ctx.saved_tensors
        ignore_index, smoothing, kappa, reduction = ctx.options
        if torch.is_grad_enabled():
            dtype = torch.promote_types(student.dtype, torch.float32)

            def again(student, teacher):
                loss = reference(
                    student.to(dtype), teacher.to(dtype), target, kappa=kappa, label_smoothing=smoothing,
                    ignore_index=ignore_index, reduction=reduction,
                )  # fmt: skip
                return (loss,)

            return *_autograd.differentiate(again, (student, teacher), (upstream,)), *[None] * 5
        grads = LabelTransport.gradients(ctx, student, teacher, target, upstream)
        ds, dt = (
            None if g is None else g.to(z.dtype) for g, z in zip(grads, (student, teacher), strict=True)
        )
        return ds, dt, *[None] * 5

    @staticmethod
    def gradients(ctx: Any, student, teacher, target, upstream):
        """Of both logits, in the type that the kernels are given."""
        ignore_index, smoothing, kappa, reduction = ctx.options
        if _solve_cuda.runs_on(student):
            dtype = _kernel_dtype(student, teacher)
            return _label_cuda.gradients(
                _rows(student.to(dtype)), _rows(teacher.to(dtype)), target.contiguous(), ignore_index, smoothing,
                kappa == "live", ctx.needs_input_grad[:2], upstream, ctx.divisor,
            )  # fmt: skip
        if ctx.grads is None:
            LabelTransport.solve(ctx, student, teacher, target)
        grads, ctx.grads = ctx.grads, None
        return hand_over(grads, upstream[:, None] if reduction == "none" else upstream, ctx.divisor)


@torch.library.custom_op("ucmkd_fast::label_transport_forward", mutates_args=())
def label_transport_forward(
    student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int, smoothing: float, live: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row and both gradients of it."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(dtype), teacher.to(dtype)
    loss, ds, dt, _, _ = _forward(student, teacher, target, ignore_index, smoothing, live, True, True)
    return loss, ds, dt


@label_transport_forward.register_fake
def _(student, teacher, target, ignore_index, smoothing, live):
    dtype = torch.promote_types(student.dtype, torch.float32)
    return (
        student.new_empty(student.shape[:1], dtype=dtype),
        student.new_empty(student.shape, dtype=dtype),
        student.new_empty(student.shape, dtype=dtype),
    )


def _setup_context(ctx, inputs, output):
    student, teacher, target, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(student, teacher, target, *output[1:])


def _backward(ctx, upstream, up_ds, up_dt):
    """Of the rows' losses, and of their gradients where these are differentiated again."""
    student, teacher, target, ds, dt = ctx.saved_tensors
    found: list[Tensor | None] = [None, None]
    if upstream is not None:
        found = [(ds * upstream[:, None]).to(student.dtype), (dt * upstream[:, None]).to(teacher.dtype)]
    if up_ds is None and up_dt is None:
        return *found, *[None] * 4
    ignore_index, smoothing, live = ctx.options

    def total(student, teacher):
        loss = reference(
            student.to(ds.dtype), teacher.to(ds.dtype), target, kappa="live" if live else "detached",
            label_smoothing=smoothing, ignore_index=ignore_index, reduction="sum",
        )  # fmt: skip
        return (loss,)

    def gradients(student, teacher):
        wide = student.to(ds.dtype), teacher.to(ds.dtype)
        return _transforms.vjp(total, wide, (ds.new_ones(()),))

    second = _transforms.vjp(gradients, (student, teacher), (up_ds, up_dt))
    return *(s if f is None else f + s for f, s in zip(found, second, strict=True)), *[None] * 4


def _rule(call, info, in_dims, *args):
    """Rows do not know of each other: those of all problems are one call."""
    folded = _transforms.fold(info, in_dims[:3], *args[:3])
    outputs = call(*folded, *args[3:])
    return tuple(z.unflatten(0, (info.batch_size, -1)) for z in outputs), (0, 0, 0)


_transformed = _autograd.register_backward(label_transport_forward, _setup_context, _backward, _rule)


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
    checks.same_device(student_logits=student, teacher_logits=teacher, target=target)
    checks.common_dtype(student_logits=student, teacher_logits=teacher)


def check_target(target: Any, n: int) -> None:
    """Classes (n,) of dtype int64; their range is checked by the kernel."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor of shape (n,), got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be of dtype int64, got {str(target.dtype).removeprefix('torch.')}")
    if target.shape != (n,):
        raise ValueError(f"target must have shape ({n},), got {tuple(target.shape)}")


def check_options(kappa: Any, label_smoothing: Any, ignore_index: Any, reduction: Any) -> None:
    """The options that both forms share."""
    checks.choice("kappa", kappa, KAPPAS)
    checks.choice("reduction", reduction, REDUCTIONS)
    if not 0 <= checks.number_at_least_zero("label_smoothing", label_smoothing) <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")


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
    check_options(kappa, label_smoothing, ignore_index, reduction)
    label_smoothing = float(label_smoothing)
    kernels = _devices.has_kernels(student_logits)
    direct = kernels and _autograd.direct(student_logits, teacher_logits, target)
    if not kernels:
        _devices.warn_without_kernels(student_logits.device)
    if not kernels or (not direct and _transforms.by_torch()):
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        return reference(
            student_logits.to(dtype), teacher_logits.to(dtype), target, kappa=kappa,
            label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction,
        )  # fmt: skip
    if direct:
        return LabelTransport.apply(
            student_logits, teacher_logits, target, ignore_index, label_smoothing, kappa, reduction
        )
    loss, _, _ = _transformed(
        student_logits, teacher_logits, target, ignore_index, label_smoothing, kappa == "live"
    )
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else mean_of_rows(loss.sum(), (target != ignore_index).sum())
