"""Whether classes lie to each other alike for two models that share no sample: what a teacher could tell a student.

The similarities of class means, model against model (Kriegeskorte, Mur, Bandettini 2008, "Representational similarity
analysis"), with the permutation test of Mantel (1967).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignment import class_means
from ..data import FeatureBank

LEAST_CLASSES = 4  # of fewer there are so few permutations that nothing could be told


class ClassAgreement(NamedTuple):
    """How alike the similarities of classes are.

    Attributes:
        correlation: Spearman's, over pairs of classes, -1 to 1.
        p_value: share of renamings of the classes that agree as well or better.
        classes: that both have samples of.
    """

    correlation: float
    p_value: float
    classes: int


@torch.no_grad()
def class_agreement(
    student: FeatureBank, teacher: FeatureBank, *, permutations: int = 999, seed: int = 0
) -> ClassAgreement:
    """How alike the similarities between classes are in the features of two models.

    A student that was trained on its own labels alone (``ce``), against the teacher: where they agree, classes have
    structure that both modalities share, and the teacher knows more of it than few labels tell. Where they do not,
    little was seen to be had from a teacher that smoothing does not give (docs/does-it-help.md).

    Args:
        student: features (n, D) with labels; those of the labelled training samples will do.
        teacher: features (m, D') with labels, of any width; the same labels mean the same classes.
        permutations: random renamings.
        seed: of these.

    Raises:
        ValueError: fewer than four classes with samples on both sides.
    """
    both = shared_classes(student, teacher)
    count = int(both.sum())
    if count < LEAST_CLASSES:
        raise ValueError(
            f"expected at least {LEAST_CLASSES} classes with samples of both models, got {count}"
        )
    ours, theirs = (_ranks(class_means(z.x.double(), z.labels, len(both))[both]) for z in (student, teacher))
    found = (ours * theirs).sum()
    random = torch.Generator().manual_seed(seed)
    renamed = (torch.randperm(count, generator=random) for _ in range(permutations))
    as_well = sum(bool((ours * theirs[p][:, p]).sum() >= found - 1e-12) for p in renamed)
    return ClassAgreement(float(found / 2), (1 + as_well) / (1 + permutations), count)


def shared_classes(student: FeatureBank, teacher: FeatureBank) -> Tensor:
    """Which classes (K,) bool both have samples of."""
    classes = int(max(student.labels.max(), teacher.labels.max())) + 1
    return torch.stack([torch.bincount(z.labels, minlength=classes) > 0 for z in (student, teacher)]).all(0)


def _ranks(means: Tensor) -> Tensor:
    """Ranks (K, K) of the cosines between centred class means (K, D), of mean 0 and length 1 over the pairs."""
    unit = F.normalize(means - means.mean(0))
    cosines = unit @ unit.T
    row, column = torch.triu_indices(len(means), len(means), offset=1)
    ranks = cosines[row, column].argsort().argsort().double()
    ranks = F.normalize(ranks - ranks.mean(), dim=0)
    full = torch.zeros_like(cosines)
    full[row, column] = full[column, row] = ranks
    return full
