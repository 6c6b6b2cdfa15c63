"""The label-transport loss: the student's cross-entropy minus kappa times that of the teacher's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.label_transport import label_transport_loss as reference
from ..reference.label_transport import mean_of_rows
from . import _devices, checks, transforms
from ._label import Grads, LabelOptions, Logits, Made

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
    named = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    for name, z in named.items():
        checks.tensor(name, z, "(n, K)", 2, half=True)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "student_logits and teacher_logits must have the same shape (n, K): one row a sample, one column a "
            f"class; got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if 0 in student_logits.shape:
        raise ValueError(
            f"student_logits must have at least one row and one class, got {tuple(student_logits.shape)}"
        )
    options = checked(named, target, LabelOptions(kappa, label_smoothing, ignore_index, reduction))
    call = OfLogits(target, options, _devices.door(student_logits))
    kernels = call.door.KERNELS
    if kernels and transforms.direct(student_logits, teacher_logits, target):
        loss: Tensor = transforms.applied(LabelTransport)(call, student_logits, teacher_logits)
        return loss
    if not kernels:
        _devices.warn_without_kernels(student_logits.device)
    if not kernels or transforms.by_torch():
        return call.by_torch(student_logits, teacher_logits)
    loss, _, _ = _transformed(
        student_logits, teacher_logits, target, ignore_index, options.label_smoothing, kappa == "live"
    )
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else mean_of_rows(loss.sum(), (target != ignore_index).sum())


def checked(tensors: Mapping[str, Tensor | None], target: Any, asked: LabelOptions) -> LabelOptions:
    """What both forms of the loss ask beside the shapes of their tensors, the first of which has a row per target."""
    given = [z for z in tensors.values() if z is not None]
    n = given[0].shape[0]
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor of shape (n,), got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be of dtype int64, got {str(target.dtype).removeprefix('torch.')}")
    if target.shape != (n,):
        raise ValueError(f"target must have shape ({n},), got {tuple(target.shape)}")
    device, dtype = target.device, given[0].dtype
    if [z for z in given if z.dtype is not dtype or z.device != device]:  # a small call must not feel it
        checks.same_device(**tensors, target=target)
        checks.common_dtype(**tensors)
    kappa, label_smoothing, ignore_index, reduction = asked
    checks.choice("kappa", kappa, KAPPAS)
    checks.choice("reduction", reduction, REDUCTIONS)
    if not 0 <= checks.number_at_least_zero("label_smoothing", label_smoothing) <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")
    return LabelOptions(kappa, float(label_smoothing), ignore_index, reduction)


class Call(NamedTuple):
    """A call of `LabelTransport` beside the tensors that have gradients."""

    target: Tensor
    options: LabelOptions
    door: Any


class OfLogits(Call):
    """Of both logits (student, teacher), (n, K) each."""

    def loss(self, tensors: Sequence[Tensor], needs: Sequence[bool]) -> Made:
        """The loss, with gradients where the door makes them along with it."""
        made: Made = self.door.label.loss(Logits(tensors[0], tensors[1], self.target), self.options, needs)
        return made

    def gradients(
        self, tensors: Sequence[Tensor], needs: Sequence[bool], count: Any, upstream: Tensor
    ) -> Grads:
        """Those that are not there: never made, or taken by an earlier backward."""
        logits = Logits(tensors[0], tensors[1], self.target)
        grads: Grads = self.door.label.gradients(logits, self.options, needs, count, upstream)
        return grads

    def by_torch(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, differentiable to any order."""
        dtype = torch.promote_types(student.dtype, torch.float32)
        return reference(student.to(dtype), teacher.to(dtype), self.target, **self.options._asdict())


class LabelTransport(torch.autograd.Function):
    """Of logits (`OfLogits`) or of a feature and two heads (`linear_label_transport.OfHeads`).

    Gradients that are made along with the loss are scaled and handed over by the first backward; a second one through
    the same graph makes them again.
    """

    @staticmethod
    def forward(ctx: Any, call: Any, *tensors: Tensor | None) -> Tensor:  # noqa: D102
        loss: Tensor
        loss, ctx.grads, ctx.count = call.loss(tensors, ctx.needs_input_grad[1:])
        ctx.save_for_backward(call.target, *tensors)
        ctx.call = call
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        call, (_, *tensors) = ctx.call, ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *transforms.differentiate(lambda *z: (call.by_torch(*z),), tensors, (upstream,))
        grads, ctx.grads = ctx.grads, ()
        if grads:
            grads = call.door.label.scale_owned_(grads, upstream, ctx.count)
        else:
            grads = call.gradients(tensors, ctx.needs_input_grad[1:], ctx.count, upstream)
        pairs = zip(grads, tensors, strict=True)
        return None, *[g if g is None or g.dtype is z.dtype else g.to(z.dtype) for g, z in pairs]


@torch.library.custom_op("ucmkd_fast::label_transport_forward", mutates_args=())
def label_transport_forward(
    student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int, smoothing: float, live: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row and both gradients of it."""
    call = _of_rows(student, target, ignore_index, smoothing, live)
    logits = Logits(student, teacher, target)
    logits = logits.readable(logits.wide)
    grads = logits.student.new_empty(student.shape), logits.student.new_empty(student.shape)
    return call.door.label.rows(logits, call.options, grads).rows, *grads


def _of_rows(student: Tensor, target: Tensor, ignore_index: int, smoothing: float, live: bool) -> OfLogits:
    """Of the registered op, whose gradients are those of the sum."""
    options = LabelOptions("live" if live else "detached", smoothing, ignore_index, "sum")
    return OfLogits(target, options, _devices.door(student))


@label_transport_forward.register_fake
def _(
    student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int, smoothing: float, live: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, shape = torch.promote_types(student.dtype, torch.float32), student.shape
    loss, ds, dt = (student.new_empty(size, dtype=dtype) for size in (shape[:1], shape, shape))
    return loss, ds, dt


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    student, teacher, target, *ctx.options = inputs
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
    if up_ds is not None or up_dt is not None:
        call = _of_rows(student, target, *ctx.options)

        def gradients(student: Tensor, teacher: Tensor) -> Grads:
            wide = student.to(ds.dtype), teacher.to(ds.dtype)
            return transforms.vjp(lambda *z: (call.by_torch(*z),), wide, (ds.new_ones(()),))

        second: list[Any] = transforms.vjp(gradients, (student, teacher), (up_ds, up_dt))
        found = [s if f is None else f + s for f, s in zip(found, second, strict=True)]
    return *found, *[None] * 4


def _rule(call: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """Rows do not know of each other: those of all problems are one call."""
    folded = transforms.fold(info, in_dims[:3], *args[:3])
    outputs = call(*folded, *args[3:])
    return tuple(z.unflatten(0, (info.batch_size, -1)) for z in outputs), (0, 0, 0)


_transformed = transforms.register_backward(label_transport_forward, _setup_context, _backward, _rule)
