"""The teacher's head under the student's encoder: classes lie to each other as they do for the teacher."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from .contract import check_model
from .weights import load_state, state_of

Model = TypeVar("Model", bound=nn.Module)


def reuse_head(student: Model, teacher: Any, *, frozen: bool = False) -> Model:
    """Copy the weights of the teacher's head into the student's; no sample of the teacher is needed.

    A head holds how near classes are to each other. Where they have structure that both modalities share, a
    student that starts from it learns faster than from a head of its own, and further with few labels. (After
    the reused classifier of Chen et al., CVPR 2022, arXiv 2203.14001, which fits paired features beside it.)

    Args:
        student: has ``encode`` and ``head``; changed in place.
        teacher: likewise, for the same classes in the same order; of the same width D of features.
        frozen: the head is not trained: all that the student learns is to encode.

    Returns:
        The student.

    Raises:
        TypeError: a model that does not keep the contract.
        ValueError: heads whose parameters differ in name or shape.
    """
    check_model(student, "student")
    check_model(teacher, "teacher")
    ours, theirs = _shapes(student), _shapes(teacher)
    if ours != theirs:
        raise ValueError(
            f"the student's head must have the parameters of the teacher's to reuse them, {theirs}: got {ours} "
            "(with_width gives a student features of the teacher's width)"
        )
    head: Any = student.head
    load_state(head, teacher.head.state_dict())
    head.requires_grad_(not frozen)
    return student


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state_of(model.head).items()}
