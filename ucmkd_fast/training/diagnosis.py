"""Whether alignment aligns the right classes: looked at once an epoch, on one batch, beside the training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.batch import Batch
from ..methods import FrozenTeacher, Step
from ..ops.sinkhorn import sinkhorn_loss
from .metrics import evaluating

_ENOUGH = 2  # epochs before anything is said
_FELL = 0.75  # of its first value: then FA fell
_NEAR_CHANCE = 1.5  # times 1 / K


@torch.no_grad()
def diagnose(step: Step, batch: Batch) -> dict[str, Tensor]:
    """Figures of one batch, of all processes together; the student in eval mode, nothing is changed.

    * ``probe_head_accuracy``: how often the teacher's head names the class of a student's feature.
    * ``probe_kappa_10``, ``_50``, ``_90``: quantiles of kappa = p_T(y | z) over the student's samples.
    * ``probe_fa``: cosine transport cost between the batch's features, reg 0.1.
    * ``probe_confusion``: share of that plan's mass that goes to another class; where the teacher's
      labels are known. For K balanced classes a plan that knows nothing has 1 - 1/K.
    """
    teacher = step.required_teacher
    with evaluating(step.student), step.autocast():
        feature = step.student.encode(batch.x)
        logits = teacher.head(feature).float()
    theirs = step.gather_rows(teacher.features(batch))
    feature, y, logits = step.gather_rows(feature), step.gather_rows(batch.y), step.gather_rows(logits)
    kappa = logits.softmax(-1).gather(1, y[:, None])[:, 0]
    low, middle, high = kappa.quantile(torch.tensor([0.1, 0.5, 0.9], device=kappa.device))
    plan: Any = sinkhorn_loss(feature, theirs, return_result=True)
    figures = {
        "probe_head_accuracy": (logits.argmax(-1) == y).float().mean(),
        "probe_kappa_10": low,
        "probe_kappa_50": middle,
        "probe_kappa_90": high,
        "probe_fa": plan.value,
    }
    if batch.teacher_y is not None:
        other = y[:, None] != step.gather_rows(batch.teacher_y)
        figures["probe_confusion"] = (plan.plan() * other).sum()
    return figures


def can_diagnose(step: Step, width: int, teacher_width: int) -> bool:
    """Whether both encoders' features can be compared."""
    return isinstance(step.teacher, FrozenTeacher) and width == teacher_width


class ClassesMixedUp(UserWarning):
    """The alignment goes down between the wrong classes."""


def warn_where_classes_are_mixed_up(history: Sequence[dict[str, float]], classes: int) -> bool:
    """Warn where FA has fallen while the teacher's head reads nothing; whether it did."""
    seen = [epoch for epoch in history if "probe_fa" in epoch]
    if len(seen) <= _ENOUGH:
        return False
    first, last = seen[0], seen[-1]
    read = last["probe_head_accuracy"]
    if last["probe_fa"] > _FELL * first["probe_fa"] or read > _NEAR_CHANCE / classes:
        return False
    warnings.warn(
        f"FA fell from {first['probe_fa']:.2f} to {last['probe_fa']:.2f}, but the teacher's head names the class "
        f"of only {100 * read:.0f} % of the student's features (chance: {100 / classes:.0f} %): clusters are matched "
        "to the wrong classes. Transport class by class: method 'label-aware-fa' or 'ucmkd-plus'",
        ClassesMixedUp,
        stacklevel=2,
    )
    return True
