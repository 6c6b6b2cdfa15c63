"""The label-transport loss of two linear heads on one feature, without ever storing their logits."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _autograd, checks
from .label_transport import check_options, check_target, label_transport_loss, run

# Logits of both heads that are alive at a time. Small enough for the second-level cache to help, large
# enough for the matrix products to run at full speed (benchmarks/bench_label_transport.py, rows "chunk").
CHUNK_ELEMENTS = 1 << 20


def composite(feature, student_weight, student_bias, teacher_weight, teacher_bias, target, **options) -> Tensor:
    """The same from the logits, (n, K) twice: for what the chunked form does not do."""
    student = F.linear(feature, student_weight, student_bias)
    teacher = F.linear(feature, teacher_weight, teacher_bias)
    return label_transport_loss(student, teacher, target, **options)


class LinearLabelTransport(torch.autograd.Function):
    """Gradients of everything that needs one are made chunk by chunk in the forward and scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, feature, sw, sb, tw, tb, target, ignore_index, smoothing, kappa, reduction):  # noqa: D102
        dtype = torch.promote_types(feature.dtype, torch.float32)
        n, d = feature.shape
        k = sw.shape[0]
        need_feature, need_sw, need_sb, need_tw, need_tb = ctx.needs_input_grad[:5]
        need_student, need_teacher = need_feature or need_sw or need_sb, need_feature or need_tw or need_tb
        heads = torch.cat([sw.detach(), tw.detach()]).to(dtype)  # (2K, D): both heads in one product
        bias = heads.new_zeros(2 * k)
        for half, b in ((bias[:k], sb), (bias[k:], tb)):
            if b is not None:
                half.copy_(b.detach())
        target = target.contiguous()
        kept = int((target != ignore_index).sum())
        grads: dict[str, Tensor] = {}
        if need_feature:
            grads["feature"] = heads.new_empty(n, d)
        # Only the half of the heads that needs a gradient enters the products backwards.
        columns = slice(0 if need_student else k, 2 * k if need_teacher else k)
        if need_sw or need_tw:
            grads["weight"] = heads.new_zeros(columns.stop - columns.start, d)
        if need_sb or need_tb:
            grads["bias"] = heads.new_zeros(columns.stop - columns.start)
        rows = max(1, CHUNK_ELEMENTS // (2 * k))
        logits = heads.new_empty(min(rows, n), 2 * k)
        total = 0.0
        for begin in range(0, n, rows):
            x = feature.detach()[begin : begin + rows].to(dtype)
            z = logits[: len(x)]
            torch.addmm(bias, x, heads.t(), out=z)
            s, t = z[:, :k], z[:, k:]
            _, part, _ = run(
                s, t, target[begin : begin + rows], ignore_index, smoothing, kappa == "live",
                s if need_student else None, t if need_teacher else None, begin,
            )  # fmt: skip
            total += part
            g = z[:, columns]
            if need_feature:
                torch.mm(g, heads[columns], out=grads["feature"][begin : begin + rows])
            if "weight" in grads:
                grads["weight"].addmm_(g.t(), x)
            if "bias" in grads:
                grads["bias"] += g.sum(0)
        ctx.save_for_backward(feature, sw, sb, tw, tb, target)
        ctx.grads, ctx.k, ctx.split = grads, k, need_student
        ctx.options = (ignore_index, smoothing, kappa, reduction)
        ctx.divisor = kept if reduction == "mean" else 1
        value = total if reduction == "sum" else (total / kept if kept else math.nan)
        return torch.tensor(value, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, upstream):  # noqa: D102
        feature, sw, sb, tw, tb, target = ctx.saved_tensors
        needs = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():
            ignore_index, smoothing, kappa, reduction = ctx.options
            with torch.enable_grad():
                dtype = torch.promote_types(feature.dtype, torch.float32)
                wide = (None if z is None else z.to(dtype) for z in (feature, sw, sb, tw, tb))
                loss = composite(
                    *wide, target, kappa=kappa, label_smoothing=smoothing, ignore_index=ignore_index,
                    reduction=reduction,
                )  # fmt: skip
            return *_autograd._differentiate((loss,), (feature, sw, sb, tw, tb), (upstream,)), *[None] * 5
        factor = upstream / ctx.divisor
        scaled = {name: grad * factor for name, grad in ctx.grads.items()}
        student = slice(0, ctx.k)
        teacher = slice(ctx.k, None) if ctx.split else slice(0, ctx.k)
        found = (
            scaled["feature"] if needs[0] else None,
            scaled["weight"][student] if needs[1] else None,
            scaled["bias"][student] if needs[2] else None,
            scaled["weight"][teacher] if needs[3] else None,
            scaled["bias"][teacher] if needs[4] else None,
        )
        inputs = (feature, sw, sb, tw, tb)
        return *(None if g is None else g.to(z.dtype) for g, z in zip(found, inputs, strict=True)), *[None] * 5


def _check(feature: Any, sw: Any, sb: Any, tw: Any, tb: Any, target: Any) -> None:
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
    named = {"feature": feature, "student_weight": sw, "student_bias": sb, "teacher_weight": tw, "teacher_bias": tb}
    checks.same_device(**named, target=target)
    checks.common_dtype(**named)


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
        feature: (n, D) student features; float32, float64, or half precision (then computed in float32).
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
    _check(feature, student_weight, student_bias, teacher_weight, teacher_bias, target)
    check_options(kappa, label_smoothing, ignore_index, reduction)
    inputs = (feature, student_weight, student_bias, teacher_weight, teacher_bias)
    if reduction == "none" or feature.device.type != "cpu" or not _autograd.direct(*inputs, target):
        dtype = torch.promote_types(feature.dtype, torch.float32)
        wide = (None if z is None else z.to(dtype) for z in inputs)
        return composite(
            *wide, target, kappa=kappa, label_smoothing=label_smoothing, ignore_index=ignore_index,
            reduction=reduction,
        )  # fmt: skip
    return LinearLabelTransport.apply(*inputs, target, ignore_index, float(label_smoothing), kappa, reduction)
