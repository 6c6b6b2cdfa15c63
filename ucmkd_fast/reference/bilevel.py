"""The bi-level step by deepcopy, as slow and as obvious as possible (paper: Algorithm 1).

Per batch: a copy of the student takes ``n1`` steps on FA and ``n2`` on LA; the
gradient of the copy's cross-entropy is handed to the student. Two presets:

* ``"paper"``: the steps are SGD; LA moves encoder and head.
* ``"published-code"``: the steps are those of one new AdamW; in LA the feature is
  detached and the teacher's term has no gradient, so only the head moves.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .label_transport import label_transport_loss
from .sinkhorn import sinkhorn_loss


def bilevel_backward(
    student: Any,  # an nn.Module with encode and head
    teacher_head: nn.Module,
    x: Tensor,  # (n, ...)
    y: Tensor,  # (n,)
    teacher_feature: Tensor,  # (m, D)
    *,
    preset: str,
    n1: int = 1,
    n2: int = 1,
    lambda1: float = 1.0,
    lambda2: float = 1.0,
    inner_lr: float,
    inner_wd: float = 0.0,
    inner_clip: float = math.inf,
    metric: str,
    reg: float = 0.1,
    max_iter: int = 100,
    kappa: str = "detached",
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """Write ``.grad`` and the buffers of the student; return CE and the inner loop's first FA and LA."""
    inner = copy.deepcopy(student)
    parameters = [p for p in inner.parameters() if p.requires_grad]
    if preset == "paper":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=inner_lr)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=inner_lr, weight_decay=inner_wd, foreach=False)

    def descend(loss: Tensor, weight: float) -> None:
        if not loss.requires_grad:  # all that it reaches is frozen
            return
        optimizer.zero_grad()
        loss.backward()
        if preset == "paper":
            torch.nn.utils.clip_grad_norm_(parameters, inner_clip)
            for p in parameters:
                if p.grad is not None:
                    p.grad *= weight
        optimizer.step()

    fa_values, la_values = [], []
    for _ in range(n1):
        fa = sinkhorn_loss(inner.encode(x), teacher_feature, metric=metric, reg=reg, max_iter=max_iter)
        fa_values.append(fa.detach())
        descend(fa, lambda1)
    for _ in range(n2):
        feature = inner.encode(x)
        if preset == "published-code":
            feature = feature.detach()
        la = label_transport_loss(
            inner.head(feature), teacher_head(feature), y, kappa=kappa, label_smoothing=label_smoothing
        )
        la_values.append(la.detach())
        descend(la, lambda2)

    optimizer.zero_grad()
    ce = F.cross_entropy(inner.head(inner.encode(x)), y, label_smoothing=label_smoothing)
    ce.backward()
    for p, p_inner in zip(student.parameters(), inner.parameters(), strict=True):
        p.grad = p_inner.grad
    with torch.no_grad():
        for b, b_inner in zip(student.buffers(), inner.buffers(), strict=True):
            b.copy_(b_inner)
    parts = {"loss": ce.detach(), "ce": ce.detach()}
    if fa_values:
        parts["fa"] = fa_values[0]
    if la_values:
        parts["la"] = la_values[0]
    return parts
