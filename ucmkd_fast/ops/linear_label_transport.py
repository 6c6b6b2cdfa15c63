"""The label-transport loss of two linear heads on one feature, without ever storing their logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _autograd, _devices, _label_cuda, _solve_cuda, checks
from ._cost_cuda import product
from .label_transport import (
    check_options,
    check_target,
    hand_over,
    is_nan,
    label_transport_loss,
    refuse_logits,
    run,
    value_of,
)

# Logits of both heads that are alive at a time. Small enough for the second-level cache to help, large
# enough for the matrix products to run at full speed (`ucmkd bench label_transport`).
CHUNK_ELEMENTS = 1 << 20
# On a CUDA device, as many or CUDA_ROWS rows: the gradient of the heads is read and written once for each chunk.
CUDA_CHUNK_ELEMENTS, CUDA_ROWS = 1 << 23, 512


def composite(inputs, target, **options) -> Tensor:
    """The same from the logits, (n, K) twice: for what the chunked form does not do."""
    feature, student_weight, student_bias, teacher_weight, teacher_bias = inputs
    student = F.linear(feature, student_weight, student_bias)
    teacher = F.linear(feature, teacher_weight, teacher_bias)
    return label_transport_loss(student, teacher, target, **options)


def _rows(n: int, k: int, on_device: bool) -> int:
    """Of a chunk."""
    if on_device:
        return min(n, max(CUDA_ROWS, CUDA_CHUNK_ELEMENTS // (2 * k)))
    return min(n, max(1, CHUNK_ELEMENTS // (2 * k)))


def _factors(feature: Tensor, *weights: Tensor) -> torch.dtype:
    """What the products multiply: half precision on a device that sums them in float32, else what they sum in."""
    half = feature.dtype in checks.HALVES and _solve_cuda.runs_on(feature)
    if half and all(w.dtype == feature.dtype for w in weights):
        return feature.dtype
    return torch.promote_types(feature.dtype, torch.float32)


def _chunked(inputs, target, ignore_index, smoothing, kappa, needs):
    """The total of the losses (`run`), and its gradients where ``needs`` asks for one, chunk by chunk.

    Logits and sums are float32 or float64. Where features and heads of half precision are multiplied as they are, the
    gradients of the logits are rounded to their type before they are.
    """
    feature, sw, sb, tw, tb = inputs
    dtype, factors = torch.promote_types(feature.dtype, torch.float32), _factors(feature, sw, tw)
    (n, d), k = feature.shape, sw.shape[0]
    need_feature, need_sw, need_sb, need_tw, need_tb = needs
    need_student, need_teacher = need_feature or need_sw or need_sb, need_feature or need_tw or need_tb
    heads = torch.cat([sw, tw]).to(factors)  # (2K, D): both heads in one product
    bias = heads.new_zeros(2 * k, dtype=dtype)
    for half, b in ((bias[:k], sb), (bias[k:], tb)):
        if b is not None:
            half.copy_(b)
    # Only the half of the heads that needs a gradient enters the products backwards.
    columns = slice(0 if need_student else k, 2 * k if need_teacher else k)
    width = columns.stop - columns.start
    d_feature = bias.new_empty(n, d) if need_feature else None
    d_weight = bias.new_zeros(width, d) if need_sw or need_tw else None
    d_bias = bias.new_zeros(width) if need_sb or need_tb else None
    rows = _rows(n, k, _solve_cuda.runs_on(heads))
    logits = bias.new_empty(rows, 2 * k)
    total, parts = 0.0, []
    for begin in range(0, n, rows):
        x = feature[begin : begin + rows].to(factors)
        z = logits[: len(x)]
        _logits(bias, x, heads, z)
        s, t = z[:, :k], z[:, k:]
        _, part, _ = run(
            s, t, target[begin : begin + rows], ignore_index, smoothing, kappa == "live",
            s if need_student else None, t if need_teacher else None, begin,
        )  # fmt: skip
        if is_nan(part):  # gradients lie over the logits: these are made again
            _logits(bias, x, heads, z)
            refuse_logits(s, t, target[begin : begin + rows], ignore_index, smoothing, begin)
        if isinstance(part, Tensor):
            parts.append(part)
        else:
            total += part
        grad = z[:, columns]  # lies over the logits now
        if d_bias is not None:
            d_bias += grad.sum(0)
        grad = grad.to(factors)
        if d_feature is not None:
            product(grad, heads[columns].t(), d_feature[begin : begin + rows])
        if d_weight is not None and factors == dtype:
            torch.addmm(d_weight, grad.t(), x, out=d_weight)
        elif d_weight is not None:
            d_weight += product(grad.t(), x.t(), torch.empty_like(d_weight))
    student, teacher = slice(0, k), slice(k if need_student else 0, None)
    return torch.cat(parts) if parts else total, (
        d_feature,
        d_weight[student] if need_sw else None,
        d_bias[student] if need_sb else None,
        d_weight[teacher] if need_tw else None,
        d_bias[teacher] if need_tb else None,
    )


def _logits(bias: Tensor, x: Tensor, heads: Tensor, out: Tensor) -> None:
    if heads.dtype == out.dtype:
        torch.addmm(bias, x, heads.t(), out=out)
    else:
        product(x, heads, out).add_(bias)


class LinearLabelTransport(torch.autograd.Function):
    """Gradients are made chunk by chunk in the forward, and scaled and handed over by the backward.

    A second backward through the same graph finds them gone and makes them again.
    """

    @staticmethod
    def forward(ctx: Any, feature, sw, sb, tw, tb, target, ignore_index, smoothing, kappa, reduction):  # noqa: D102
        inputs = tuple(None if z is None else z.detach() for z in (feature, sw, sb, tw, tb))
        needs = ctx.needs_input_grad[:5]
        target = target.contiguous()
        total, ctx.grads = _chunked(inputs, target, ignore_index, smoothing, kappa, needs)
        kept: Tensor | int
        if isinstance(total, Tensor):
            total, kept = _label_cuda.total(total, target, ignore_index, reduction == "mean")
        else:
            kept = int((target != ignore_index).sum())
        ctx.save_for_backward(feature, sw, sb, tw, tb, target)
        ctx.options = (ignore_index, smoothing, kappa, reduction)
        ctx.divisor = kept if reduction == "mean" else None
        return value_of(total, kept, reduction, torch.promote_types(feature.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, upstream):  # noqa: D102
        *inputs, target = ctx.saved_tensors
        ignore_index, smoothing, kappa, reduction = ctx.options
        if torch.is_grad_enabled():
            dtype = torch.promote_types(inputs[0].dtype, torch.float32)

            def again(*inputs):
                wide = [None if z is None else z.to(dtype) for z in inputs]
                loss = composite(
                    wide, target, kappa=kappa, label_smoothing=smoothing, ignore_index=ignore_index,
                    reduction=reduction,
                )  # fmt: skip
                return (loss,)

            return *_autograd.differentiate(again, inputs, (upstream,)), *[None] * 5
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            needs = ctx.needs_input_grad[:5]
            _, grads = _chunked(inputs, target.contiguous(), ignore_index, smoothing, kappa, needs)
        scaled = hand_over(grads, upstream, ctx.divisor)
        cast = (None if g is None else g.to(z.dtype) for g, z in zip(scaled, inputs, strict=True))
        return *cast, *[None] * 5


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
    named = {
        "feature": feature,
        "student_weight": sw,
        "student_bias": sb,
        "teacher_weight": tw,
        "teacher_bias": tb,
    }
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
    _check(feature, student_weight, student_bias, teacher_weight, teacher_bias, target)
    check_options(kappa, label_smoothing, ignore_index, reduction)
    inputs = (feature, student_weight, student_bias, teacher_weight, teacher_bias)
    if reduction == "none" or not _devices.has_kernels(feature) or not _autograd.direct(*inputs, target):
        dtype = torch.promote_types(feature.dtype, torch.float32)
        wide = [None if z is None else z.to(dtype) for z in inputs]
        return composite(
            wide, target, kappa=kappa, label_smoothing=label_smoothing, ignore_index=ignore_index,
            reduction=reduction,
        )  # fmt: skip
    return LinearLabelTransport.apply(*inputs, target, ignore_index, float(label_smoothing), kappa, reduction)
