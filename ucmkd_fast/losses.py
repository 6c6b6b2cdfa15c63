"""The two losses as modules: options once, tensors at each call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .ops.label_transport import label_transport_loss
from .ops.sinkhorn import Unbalanced, sinkhorn_loss


class FeatureAlignmentLoss(nn.Module):
    """`sinkhorn_loss` with its options kept; ``forward(x, y, a=None, b=None)`` on (N, D) and (M, D).

    The options are those of `sinkhorn_loss`, checked at the first call; with ``reg_scale="mean"``, reg is a factor of
    the mean cost of each call. With ``tol`` > 0 a call that does not reach it raises a `ConvergenceWarning`.
    """

    def __init__(
        self,
        metric: str = "cosine",
        reg: float = 0.1,
        max_iter: int = 100,
        tol: float = 0.0,
        objective: str = "transport",
        grad: str = "unrolled",
        accelerate: str | None = None,
        reg_scale: str | None = None,
        unbalanced: Unbalanced = None,
    ):
        super().__init__()
        self.options: dict[str, Any] = {
            "metric": metric, "reg": reg, "max_iter": max_iter, "tol": tol, "objective": objective, "grad": grad,
            "accelerate": accelerate, "reg_scale": reg_scale, "unbalanced": unbalanced,
        }  # fmt: skip

    def forward(self, x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        """The loss, ()."""
        loss = sinkhorn_loss(x, y, a, b, **self.options)
        assert isinstance(loss, Tensor)
        return loss

    def extra_repr(self) -> str:
        """The options, for repr."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class LabelTransportLoss(nn.Module):
    """`label_transport_loss` with its options kept; ``forward(student_logits, teacher_logits, target)``.

    The options are those of `label_transport_loss`, checked at the first call.
    """

    def __init__(
        self,
        kappa: str = "detached",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ):
        super().__init__()
        self.options: dict[str, Any] = {
            "kappa": kappa, "label_smoothing": label_smoothing, "ignore_index": ignore_index,
            "reduction": reduction,
        }  # fmt: skip

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """The loss, () or (n,)."""
        return label_transport_loss(student_logits, teacher_logits, target, **self.options)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
