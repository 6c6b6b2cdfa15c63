"""What must hold of the label-transport loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

import ucmkd_fast as uk
from ucmkd_fast.reference.label_transport import label_transport_loss as reference_loss

from .transport import apart


@dataclass(frozen=True)
class Logits:
    """Student's and teacher's logits (n, classes) and labels, some of them ignored."""

    n: int
    classes: int
    spread: float  # of the logits
    ignored: bool
    smoothing: float
    kappa: str
    seed: int

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Student's (n, classes), teacher's (n, classes) in float64, exact in float32; labels (n,)."""
        generator = torch.Generator().manual_seed(self.seed)
        student, teacher = (
            (self.spread * torch.randn(self.n, self.classes, generator=generator)).double() for _ in range(2)
        )
        target = torch.randint(self.classes, (self.n,), generator=generator)
        if self.ignored and self.n > 1:
            target[1::2] = -100
        return student, teacher, target

    @property
    def options(self) -> dict:
        """Of the loss."""
        return {"label_smoothing": self.smoothing, "kappa": self.kappa}


LOGITS = st.builds(
    Logits,
    n=st.integers(1, 40),
    classes=st.integers(1, 70),
    spread=st.sampled_from([0.0, 1e-6, 1.0, 30.0, 1e4, 1e30]),
    ignored=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    kappa=st.sampled_from(["detached", "live"]),
    seed=st.integers(0, 10**6),
)


def label_loss_agrees_with_float64(case: Logits) -> None:
    """Value and both gradients, in both types."""
    student, teacher, target = case.tensors()
    size = max(student.abs().max().item(), teacher.abs().max().item(), 1.0)

    def all_of(loss, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (student, teacher)]
        value = loss(*leaves, target, **case.options)
        return value, *torch.autograd.grad(value, leaves)

    want = all_of(reference_loss, torch.float64)
    for dtype in (torch.float64, torch.float32):
        got = all_of(uk.label_transport_loss, dtype)
        eps = torch.finfo(dtype).eps
        assert apart(got[0], want[0], size) <= 20 * eps
        assert apart(got[1], want[1], 1.0) <= 20 * eps * min(size, 1 / eps)
        assert apart(got[2], want[2], size) <= 20 * eps * min(size, 1 / eps)


def kappa_is_bounded(case: Logits) -> None:
    """kappa log p_T lies in [-1/e, 0]: the loss lies between CE - 1/e and CE (no smoothing)."""
    student, teacher, target = case.tensors()
    loss = uk.label_transport_loss(student, teacher, target, reduction="none")
    ce = F.cross_entropy(student, target, reduction="none")
    part = torch.where(target == -100, 0, loss - ce)
    slack = 1e-12 * max(student.abs().max().item(), 1.0)
    assert part.max() <= slack and part.min() >= -1 / math.e - slack


def rows_do_not_see_each_other(case: Logits) -> None:
    """A row's loss is the same alone, in any order, and its gradient at reduction="sum" too: the same bits."""
    student, teacher, target = case.tensors()
    student.requires_grad_(), teacher.requires_grad_()
    together = uk.label_transport_loss(student, teacher, target, reduction="none", **case.options)
    turned = uk.label_transport_loss(
        student.flip(0), teacher.flip(0), target.flip(0), reduction="none", **case.options
    )
    assert torch.equal(together, turned.flip(0))
    alone = uk.label_transport_loss(student[:1], teacher[:1], target[:1], reduction="none", **case.options)
    assert torch.equal(together[:1], alone)


CLAIMS = {
    label_loss_agrees_with_float64: LOGITS,
    kappa_is_bounded: LOGITS,
    rows_do_not_see_each_other: LOGITS,
}
