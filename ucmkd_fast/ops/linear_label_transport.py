"""The label-transport loss of two linear heads on one feature, without ever storing their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _devices, _transforms, checks
from ._label import LabelDoor, LabelOptions, Logits, Prepared, as_given, refuse_logits
from ._products import product
from .label_transport import check_target, checked_options, label_transport_loss


def linear_label_transport_loss(
    feature: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    target: Tensor,
    *,
    kappa: str = "detached",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`label_transport_loss` of two linear heads on one feature, in chunks of rows: logits are never stored.

    s = feature @ student_weight.T + student_bias, t likewise with the teacher's; see `label_transport_loss`
    for the formula and the options.

    Args:
        feature: (n, D) student features; float32, float64, or half precision: then computed in float32, on a CUDA
            device from products of half precision that are summed in float32.
        student_weight: (K, D).
        student_bias: (K,) or None.
        teacher_weight: (K, D).
        teacher_bias: (K,) or None.
        target: (n,) int64 classes.
        kappa: ``"detached"`` or ``"live"``.
        label_smoothing: share of each target that is spread over all classes.
        ignore_index: rows with this target count for nothing.
        reduction: ``"mean"`` or ``"sum"``; ``"none"`` stores the logits, as its gradient needs them.

    Returns:
        The loss, () or (n,); float32 or float64.

    Raises:
        TypeError: not a tensor, integers, float64 with float32, a target that is not int64.
        ValueError: shapes that do not fit, labels out of range, NaN, unknown options.
    """
    heads = Heads(feature, student_weight, student_bias, teacher_weight, teacher_bias)
    _check(heads, target)
    options = checked_options(kappa, label_smoothing, ignore_index, reduction)
    door = _devices.door(feature)
    if reduction != "none" and door.KERNELS and _transforms.direct(*heads, target):
        loss: Tensor = LinearLabelTransport.apply(target, options, door.label, *heads)
        return loss
    return _from_logits(heads, target, options)


class Heads(NamedTuple):
    """Both linear heads and their feature."""

    feature: Tensor  # (n, D)
    student_weight: Tensor  # (K, D)
    student_bias: Tensor | None  # (K,)
    teacher_weight: Tensor  # (K, D)
    teacher_bias: Tensor | None  # (K,)

    @property
    def wide(self) -> torch.dtype:
        """In which logits and sums are: float32 or float64."""
        return torch.promote_types(self.feature.dtype, torch.float32)


def _check(heads: Heads, target: Any) -> None:
    feature, sw, sb, tw, tb = heads
    checks.tensor("feature", feature, "(n, D)", 2, half=True)
    checks.tensor("student_weight", sw, "(K, D)", 2, half=True)
    checks.tensor("teacher_weight", tw, "(K, D)", 2, half=True)
    if 0 in feature.shape or 0 in sw.shape:
        raise ValueError(
            "feature and weights must have at least one row and one column, got "
            f"{tuple(feature.shape)} and {tuple(sw.shape)}"
        )
    if sw.shape != tw.shape or sw.shape[1] != feature.shape[1]:
        raise ValueError(
            f"both weights must have shape (K, {feature.shape[1]}) for a feature of width {feature.shape[1]}, "
            f"got {tuple(sw.shape)} and {tuple(tw.shape)}"
        )
    for name, b in (("student_bias", sb), ("teacher_bias", tb)):
        if b is not None and checks.tensor(name, b, "(K,)", 1, half=True).shape[0] != sw.shape[0]:
            raise ValueError(f"{name} must have shape ({sw.shape[0]},), got {tuple(b.shape)}")
    check_target(target, feature.shape[0])
    named = heads._asdict()
    checks.same_device(**named, target=target)
    checks.common_dtype(**named)


def _from_logits(heads: Heads, target: Tensor, options: LabelOptions) -> Tensor:
    """With the logits (n, K) of both heads: for what the chunked form does not do."""
    feature, sw, sb, tw, tb = (None if z is None else z.to(heads.wide) for z in heads)
    assert feature is not None and sw is not None and tw is not None
    return label_transport_loss(
        F.linear(feature, sw, sb), F.linear(feature, tw, tb), target, **options._asdict()
    )


class LinearLabelTransport(torch.autograd.Function):
    """Gradients are made chunk by chunk in the forward, and scaled and handed over by the backward.

    A second backward through the same graph finds them gone and makes them again.
    """

    @staticmethod
    def forward(ctx: Any, target: Tensor, options: LabelOptions, label: LabelDoor, *tensors: Any) -> Tensor:  # noqa: D102
        loss, ctx.prepared = _by_chunks(Heads(*tensors), target, options, label, ctx.needs_input_grad[3:])
        ctx.save_for_backward(target, *tensors)
        ctx.options, ctx.label = options, label
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        target, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():

            def again(*tensors: Tensor) -> tuple[Tensor]:
                return (_from_logits(Heads(*tensors), target, ctx.options),)

            return None, None, None, *_transforms.differentiate(again, tensors, (upstream,))
        options, label, needs = ctx.options, ctx.label, ctx.needs_input_grad[3:]
        grads = ctx.prepared.take() or _by_chunks(Heads(*tensors), target, options, label, needs)[1].take()
        grads = label.scale_owned_(grads, upstream, ctx.prepared.count)
        return None, None, None, *as_given(grads, tensors)


def _by_chunks(
    heads: Heads, target: Tensor, options: LabelOptions, label: LabelDoor, needs: Sequence[bool]
) -> tuple[Tensor, Prepared]:
    """The loss, and the gradients of the sum over its rows where ``needs`` asks for one."""
    target, k = target.contiguous(), len(heads.student_weight)
    factors = label.factors(heads.feature, heads.student_weight, heads.teacher_weight)
    products, each = _Products(heads, needs, factors), options._replace(reduction="sum")
    rows = label.chunk_rows(len(target), k)
    room = products.bias.new_empty(rows, 2 * k)
    found = []
    for begin in range(0, len(target), rows):
        part = slice(begin, begin + rows)
        x = heads.feature[part].to(factors)
        z = products.logits(x, room[: len(x)])
        logits = Logits(z[:, :k], z[:, k:], target[part], begin)
        losses = label.rows(logits, each, products.over(logits))
        if label.is_nan(losses):  # gradients lie over the logits: these are made again
            products.logits(x, z)
            refuse_logits(logits, options)
        found.append(losses)
        products.add_gradients(part, x, z)
    loss, count = label.total(found, target, options)
    return loss, Prepared(products.gradients(), count)


class _Products:
    """Both heads as one: the logits of a chunk, and the gradients of feature and heads from those of the logits.

    Logits and sums are float32 or float64. Where features and heads of half precision are multiplied as they are, the
    gradients of the logits are rounded to their type before they are.
    """

    def __init__(self, heads: Heads, needs: Sequence[bool], factors: torch.dtype):
        feature, sw, sb, tw, tb = heads
        (n, d), k = feature.shape, len(sw)
        self.weight = torch.cat([sw, tw]).to(factors)  # (2K, D)
        self.bias = feature.new_zeros(2 * k, dtype=heads.wide)
        for half, b in zip(self.bias.chunk(2), (sb, tb), strict=True):
            if b is not None:
                half.copy_(b)
        self._needs, self._k = needs, k
        of_feature, of_sw, of_sb, of_tw, of_tb = needs
        self._student, self._teacher = of_feature or of_sw or of_sb, of_feature or of_tw or of_tb
        # Only the half of the heads that needs a gradient enters the products backwards.
        self._columns = slice(0 if self._student else k, 2 * k if self._teacher else k)
        width = self._columns.stop - self._columns.start
        self._feature = self.bias.new_empty(n, d) if of_feature else None
        self._weight = self.bias.new_zeros(width, d) if of_sw or of_tw else None
        self._bias = self.bias.new_zeros(width) if of_sb or of_tb else None

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        """Of a chunk (R, D), into ``out`` (R, 2K)."""
        if x.dtype == out.dtype:
            return torch.addmm(self.bias, x, self.weight.t(), out=out)
        return product(x, self.weight, out).add_(self.bias)

    def over(self, logits: Logits) -> tuple[Tensor | None, Tensor | None]:
        """Where the gradients of a chunk's logits go: over them, where needed."""
        return logits.student if self._student else None, logits.teacher if self._teacher else None

    def add_gradients(self, part: slice, x: Tensor, z: Tensor) -> None:
        """Of a chunk (R, D), from those of its logits (R, 2K)."""
        grad = z[:, self._columns]
        if self._bias is not None:
            self._bias += grad.sum(0)
        grad = grad.to(x.dtype)
        if self._feature is not None:
            product(grad, self.weight[self._columns].t(), self._feature[part])
        if self._weight is not None and x.dtype == z.dtype:
            torch.addmm(self._weight, grad.t(), x, out=self._weight)
        elif self._weight is not None:
            self._weight += product(grad.t(), x.t(), torch.empty_like(self._weight))

    def gradients(self) -> list[Tensor | None]:
        """In the order of `Heads`."""
        halves = (slice(self._k), slice(-self._k, None))
        of_heads = [None if z is None else z[half] for half in halves for z in (self._weight, self._bias)]
        return [g if need else None for g, need in zip([self._feature, *of_heads], self._needs, strict=True)]
