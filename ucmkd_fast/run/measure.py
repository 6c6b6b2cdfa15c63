"""How a trained student's features lie to its teacher's: what a comparison shows beside accuracy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data import FeatureBank, LabelledData
from ..models.precision import head_in
from ..ops.sinkhorn import sinkhorn_loss
from ..report.agreement import LEAST_CLASSES, class_agreement, shared_classes
from ..report.theory import BoundParts, bound_parts

FA_METRIC, FA_REG, FA_ITER = "cosine", 0.1, 100  # of the FA that tables show, whatever the method trained on


@torch.no_grad()
def alignment(
    student_head: Any, teacher_head: Any, student: FeatureBank, teacher: FeatureBank
) -> tuple[dict[str, float], BoundParts]:
    """FA, LA and the teacher's reading of student features, and the parts of Theorem 2.6.

    Args:
        student_head: in eval mode.
        teacher_head: in eval mode; it must read features of the student's width.
        student: features of test samples.
        teacher: features of samples that the teacher did not train on.

    Returns:
        ``fa`` (cosine cost), ``la`` (nats), ``teacher_reads`` (accuracy of the teacher's head on student
        features, 0 to 1), of four classes or more ``class_agreement`` and ``class_agreement_p``
        (`ucmkd_fast.report.class_agreement`); and the bound.
    """
    device = next(student_head.parameters()).device
    dtype = torch.promote_types(student.x.dtype, torch.float32)
    student_head, teacher_head = head_in(student_head, dtype), head_in(teacher_head.to(device), dtype)
    x, y, teacher_x, teacher_y = (
        one.to(device) for one in (student.x.to(dtype), student.labels, teacher.x.to(dtype), teacher.labels)
    )
    bound = bound_parts(student_head, teacher_head, x, y, teacher_x, teacher_y)
    fa = sinkhorn_loss(x, teacher_x, metric=FA_METRIC, reg=FA_REG, max_iter=FA_ITER)
    assert isinstance(fa, Tensor)
    read = teacher_head(x).argmax(1) == y
    reads = read.float().mean().item()
    figures = {"fa": fa.item(), "la": bound.label_alignment, "teacher_reads": reads}
    if int(shared_classes(student, teacher).sum()) >= LEAST_CLASSES:
        agreement = class_agreement(student, teacher)
        figures |= {"class_agreement": agreement.correlation, "class_agreement_p": agreement.p_value}
    return figures, bound


def draw(data: LabelledData, most: int) -> LabelledData:
    """All samples, or ``most`` drawn ones, the same at every call."""
    if len(data) <= most:
        return data
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:most]
    return data.subset(rows.sort().values)


def features_of(model: Any, data: LabelledData, most: int) -> FeatureBank:
    """Features of all samples, or of ``most`` drawn ones, by the model's encoder unless they are features already.

    In float32, whatever they are kept in: heads and costs are computed in it.
    """
    drawn = draw(data, most)
    bank = drawn if isinstance(drawn, FeatureBank) else FeatureBank.from_model(model, drawn)
    return bank.in_dtype(torch.float32)
