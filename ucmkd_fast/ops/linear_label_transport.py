"""The label-transport loss of two linear heads on one feature, without ever storing their logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _devices, checks, transforms
from ._label import Grads, LabelOptions, Logits, Made
from ._products import product
from .label_transport import Call, LabelTransport, checked, label_transport_loss


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
    named = {
        "feature": feature, "student_weight": student_weight, "student_bias": student_bias,
        "teacher_weight": teacher_weight, "teacher_bias": teacher_bias,
    }  # fmt: skip
    tensors = feature, student_weight, student_bias, teacher_weight, teacher_bias
    _check_shapes(*tensors)
    options = checked(named, target, LabelOptions(kappa, label_smoothing, ignore_index, reduction))
    call = OfHeads(target, options, _devices.door(feature))
    if reduction != "none" and call.door.KERNELS and transforms.direct(*tensors, target):
        loss: Tensor = transforms.applied(LabelTransport)(call, *tensors)
        return loss
    return call.by_torch(*tensors)


def _check_shapes(feature: Any, sw: Any, sb: Any, tw: Any, tb: Any) -> None:
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


class OfHeads(Call):
    """Of a feature and both heads, in the order of the public function."""

    def loss(self, tensors: Sequence[Any], needs: Sequence[bool]) -> Made:
        """The loss, with the gradients of the sum over its rows."""
        label, target, each = (
            self.door.label,
            self.target.contiguous(),
            self.options._replace(reduction="sum"),
        )
        products = _Products(tensors, needs, label.HALF_PRODUCTS)
        n, k = len(target), len(products.weight) // 2
        rows = min(n, max(label.CHUNK_ROWS, label.CHUNK_ELEMENTS // (2 * k)))
        room = products.bias.new_empty(rows, 2 * k)
        found = []
        for begin in range(0, n, rows):
            part = slice(begin, begin + rows)
            x = tensors[0][part].to(products.weight.dtype)
            z = products.logits(x, room[: len(x)])
            s, t = z.split(k, 1)
            over = [half if need else None for half, need in zip((s, t), products.halves, strict=True)]
            logits = Logits(s, t, target[part], begin, partial(products.logits, x, z))
            found.append(label.rows(logits, each, over))
            products.add_gradients(part, x, z)
        loss, count = label.total(found, target, self.options)
        return loss, products.gradients(), count

    def gradients(self, tensors: Sequence[Any], needs: Sequence[bool], count: Any, upstream: Tensor) -> Grads:
        """Those that an earlier backward has taken."""
        grads: Grads = self.door.label.scale_owned_(self.loss(tensors, needs)[1], upstream, count)
        return grads

    def by_torch(
        self, feature: Tensor, sw: Tensor, sb: Tensor | None, tw: Tensor, tb: Tensor | None
    ) -> Tensor:
        """With the logits (n, K) of both heads: for what the chunked form does not do."""
        dtype = torch.promote_types(feature.dtype, torch.float32)
        feature, sw, tw = feature.to(dtype), sw.to(dtype), tw.to(dtype)
        sb, tb = (None if z is None else z.to(dtype) for z in (sb, tb))
        s, t = F.linear(feature, sw, sb), F.linear(feature, tw, tb)
        return label_transport_loss(s, t, self.target, **self.options._asdict())


class _Products:
    """Both heads as one: the logits of a chunk, and the gradients of feature and heads from those of the logits.

    Logits and sums are float32 or float64. Where features and heads of half precision are multiplied as they are
    (``half``), the gradients of the logits are rounded to their type before they are.
    """

    def __init__(self, tensors: Sequence[Any], needs: Sequence[bool], half: bool):
        feature, sw, sb, tw, tb = tensors
        (n, d), k, wide = feature.shape, len(sw), torch.promote_types(feature.dtype, torch.float32)
        half = half and feature.dtype == sw.dtype == tw.dtype
        self.weight = torch.cat([sw, tw]).to(feature.dtype if half else wide)  # (2K, D)
        self.bias = torch.cat([sw.new_zeros(k, dtype=wide) if b is None else b.to(wide) for b in (sb, tb)])
        self._needs, self._k = needs, k
        of_feature, of_sw, of_sb, of_tw, of_tb = needs
        self.halves = (
            of_feature or of_sw or of_sb,
            of_feature or of_tw or of_tb,
        )  # that enter the products backwards
        self._columns = slice(0 if self.halves[0] else k, 2 * k if self.halves[1] else k)
        width = self._columns.stop - self._columns.start
        self._feature = self.bias.new_empty(n, d) if of_feature else None
        self._weight = self.bias.new_zeros(width, d) if of_sw or of_tw else None
        self._bias = self.bias.new_zeros(width) if of_sb or of_tb else None

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        """Of a chunk (R, D), into ``out`` (R, 2K)."""
        if x.dtype == out.dtype:
            return torch.addmm(self.bias, x, self.weight.t(), out=out)
        return product(x, self.weight, out).add_(self.bias)

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
        """In the order of the tensors."""
        halves = (slice(self._k), slice(-self._k, None))
        of_heads = [None if z is None else z[half] for half in halves for z in (self._weight, self._bias)]
        return [g if need else None for g, need in zip([self._feature, *of_heads], self._needs, strict=True)]
