"""What several methods share: FA as they compute it, and how the teacher's head reads student features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .ops.class_conditional import class_conditional_loss
from .ops.result import Convergence
from .ops.sinkhorn import sinkhorn_loss

if TYPE_CHECKING:
    from .data.batch import Batch
    from .methods.base import Step


class Transport(NamedTuple):
    """How FA is computed; the arguments of `sinkhorn_loss` of the same names."""

    metric: str
    reg: float
    max_iter: int
    unbalanced: tuple[float, float] | None = None


#: Elements of the cost from which processes share it; below, an all-reduce an iteration costs more than computing
#: the whole problem everywhere (benchmarks/bench_large.py, "processes").
SHARED_FROM = 1 << 24


def feature_alignment(
    step: Step, batch: Batch, feature: Tensor, teacher_feature: Tensor, transport: Transport
) -> Tensor:
    """FA: entropic transport cost between features (n, D) and (m, D) of all processes; notes how it converged."""
    convergence = Convergence()
    options: dict[str, Any] = {**transport._asdict(), "convergence": convergence}
    size = 1 if step.group is None else dist.get_world_size(step.group)
    elements = len(feature) * len(teacher_feature) * size * size
    shared = size > 1 and elements >= SHARED_FROM and feature.device.type == "cpu"
    if not shared:
        feature, teacher_feature = step.gather_rows(feature), step.gather_rows(teacher_feature)
    if step.warm_start is not None:
        rows, teacher_rows = _indices(batch)
        if not shared:
            rows, teacher_rows = step.gather_rows(rows), step.gather_rows(teacher_rows)
        loss = step.warm_start(
            feature, rows, teacher_feature, teacher_rows, group=step.group if shared else None
        )
        convergence.take(step.warm_start.last_marginal_error, step.warm_start.last_n_iter)
    else:
        group = {"group": step.group} if shared else {}
        loss = cast("Tensor", sinkhorn_loss(feature, teacher_feature, **group, **options))
    _note_convergence(step, convergence)
    # A shared loss's gradient is the global one's; the factor undoes the average over processes that comes later.
    return loss.detach() + size * (loss - loss.detach()) if shared else loss


def _indices(batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.rows is None or batch.teacher_rows is None:
        raise ValueError(
            "a warm start needs to know which samples are in the batch: batch.rows and batch.teacher_rows"
        )
    return batch.rows, batch.teacher_rows


def _note_convergence(step: Step, convergence: Convergence) -> None:
    step.note("marginal_error", convergence.marginal_error)
    step.note("fa_iterations", convergence.n_iter)


#: Bins of the histogram of kappa over [0, 1], where steps are watched.
KAPPA_BINS = 20


@torch.no_grad()
def teacher_reading(step: Step, teacher_logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """How well the teacher's head reads student features: mean kappa = p_T(y | z), and accuracy.

    Near 1/K and chance level, LA carries nothing. Where steps are watched, the shares of the samples in
    equal bins of kappa are noted, ``kappa_histogram`` (KAPPA_BINS,).
    """
    teacher_logits = teacher_logits.detach()
    kappa = F.cross_entropy(teacher_logits, y, reduction="none").neg_().exp_()
    if step.watched:
        place = (kappa * KAPPA_BINS).long().clamp_(max=KAPPA_BINS - 1)
        bins = place[:, None] == torch.arange(KAPPA_BINS, device=place.device)
        step.note("kappa_histogram", bins.float().mean(0))
    return {
        "kappa": kappa.mean(),
        "teacher_head_accuracy": (teacher_logits.argmax(-1) == y).float().mean(),
    }


def class_conditional_alignment(
    step: Step, feature: Tensor, batch: Batch, classes: int, transport: Transport
) -> Tensor:
    """FA class by class, between features (n, D) and the teacher's of the batch, of all processes.

    Raises:
        ValueError: the batch does not say the classes of the teacher's samples.
    """
    if batch.teacher_y is None:
        raise ValueError(
            "alignment class by class needs the labels of the teacher's samples: batch.teacher_y"
        )
    convergence = Convergence()
    loss = class_conditional_loss(
        step.gather_rows(feature),
        step.gather_rows(step.required_teacher.features(batch)),
        step.gather_rows(batch.y),
        step.gather_rows(batch.teacher_y),
        classes=classes,
        **transport._asdict(),
        convergence=convergence,
    )
    _note_convergence(step, convergence)
    return loss


class TeacherBank(NamedTuple):
    """Labelled teacher features to transport to."""

    feature: Tensor  # (M, D)
    labels: Tensor  # (M,)
    mass: Tensor  # (M,), sum 1

    @classmethod
    def balanced(cls, feature: Tensor, labels: Tensor) -> TeacherBank:
        """Masses that make every class as heavy as any other."""
        mass = 1 / torch.bincount(labels)[labels].to(torch.promote_types(feature.dtype, torch.float32))
        return cls(feature, labels, mass / mass.sum())


def labelling_transport(
    step: Step, feature: Tensor, log_p: Tensor, bank: TeacherBank, transport: Transport
) -> Tensor:
    """<P, C> of unlabelled features (u, D), log-probabilities (u, K) and a bank; the plan held constant.

    C_ij = d(z_i, b_j) - log p(k_j | x_i). Its second part is the cross-entropy of the plan's soft
    labels, which are never formed: their gradient is the plan summed by class.
    """
    return _labelling(step, step.gather_rows(feature), -step.gather_rows(log_p), bank, transport)


def labelling_plan(
    step: Step, feature: Tensor, log_p: Tensor, bank: TeacherBank, transport: Transport
) -> tuple[Tensor, Tensor]:
    """`labelling_transport`, and the plan's soft labels (u, K) of all processes: constant, rows of sum 1.

    With the plan held constant, the gradient to W is the plan summed by class: so the backward pass, run at
    once, makes the labels, and the loss handed back is linear with the gradient that it found.
    """
    feature, log_p = step.gather_rows(feature), step.gather_rows(log_p)
    with torch.enable_grad():
        z, class_cost = feature.detach().requires_grad_(), (-log_p).detach().requires_grad_()
        loss = _labelling(step, z, class_cost, bank, transport)
        pull, soft = torch.autograd.grad(loss, (z, class_cost))
    change = ((feature - z.detach()) * pull).sum() - ((log_p + class_cost.detach()) * soft).sum()  # 0
    return loss.detach() + change, len(soft) * soft


def _labelling(
    step: Step, feature: Tensor, class_cost: Tensor, bank: TeacherBank, transport: Transport
) -> Tensor:
    convergence = Convergence()
    loss = sinkhorn_loss(
        feature,
        bank.feature,
        b=bank.mass,
        **transport._asdict(),
        grad="envelope",
        class_cost=class_cost,
        y_labels=bank.labels,
        convergence=convergence,
    )
    step.note("labelling_marginal_error", convergence.marginal_error)
    return cast("Tensor", loss)


def class_means(z: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Means (K, D) of rows (n, D) by class; a class without samples has zeros."""
    count = torch.bincount(labels, minlength=classes).clamp_min(1)[:, None]
    return z.new_zeros(classes, z.shape[1]).index_add(0, labels, z) / count
