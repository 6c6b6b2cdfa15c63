"""Whether distillation can help: looked at once an epoch, beside the training, and said once, with advice."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignment import Transport
from ..data.batch import Batch
from ..methods import FrozenTeacher, Method, Step
from ..ops.sinkhorn import sinkhorn_loss
from .metrics import evaluating

_ENOUGH = 3  # a finding must hold in each of the last so many epochs
_LEARNED = 0.25  # share of the epochs that must be done before it is said that something was not learned
_FELL = 0.75  # of its first value: then FA fell
_MARGINS_MET = 0.05  # of the mass may be missing from columns, and as much be too much in others
_PULLS = 1e-3  # of cross-entropy's gradient, at least, for FA to move anything
_PARTNERS = 1.5  # effective number of the teacher's samples that a student's sample is moved to

Epoch = dict[str, float]


def diagnose(step: Step, batch: Batch, transport: Transport | None = None) -> dict[str, Tensor]:
    """Figures of one batch, of all processes together; the student in eval mode, nothing is changed.

    * ``probe_head_accuracy``: how often the teacher's head names the class of a student's feature.
    * ``probe_kappa_10``, ``_50``, ``_90``: quantiles of kappa = p_T(y | z) over the student's samples.
    * ``probe_fa``: cosine transport cost between the batch's features, reg 0.1.
    * ``probe_confusion``: share of that plan's mass that goes to another class; where the teacher's
      labels are known. For K balanced classes a plan that knows nothing has 1 - 1/K.

    With ``transport``, how the method computes FA, also:

    * ``probe_fa_pull``: norm of FA's gradient at the student's features over that of cross-entropy's.
    * ``probe_partners``: exp of the mean entropy of the plan's rows: the number of the teacher's samples that
      a student's sample is moved to.
    """
    with torch.no_grad():
        teacher = step.required_teacher
        with evaluating(step.student), step.autocast():
            own = step.student.encode(batch.x)
            logits = teacher.head(own).float()
        theirs = step.gather_rows(teacher.features(batch))
        feature, y, logits = step.gather_rows(own), step.gather_rows(batch.y), step.gather_rows(logits)
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
    if transport is not None:
        figures |= _pull_and_partners(step, feature, theirs, y, transport)
    return figures


def _pull_and_partners(
    step: Step, feature: Tensor, theirs: Tensor, y: Tensor, transport: Transport
) -> dict[str, Tensor]:
    with evaluating(step.student), torch.enable_grad():
        z = feature.to(torch.promote_types(feature.dtype, torch.float32)).requires_grad_()
        with step.autocast():
            ce = F.cross_entropy(step.student.head(z).float(), y)
        result: Any = sinkhorn_loss(z, theirs.to(z.dtype), **transport._asdict(), return_result=True)
        pulls = [torch.autograd.grad(loss, z)[0].norm() for loss in (result.value, ce)]
    with torch.no_grad():
        plan = result.plan()
        shares = plan / plan.sum(1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
        entropy = -torch.special.xlogy(shares, shares).sum(1)
    return {
        "probe_fa_pull": pulls[0] / pulls[1].clamp_min(torch.finfo(z.dtype).tiny),
        "probe_partners": entropy.mean().exp(),
    }


def can_diagnose(step: Step, width: int, teacher_width: int) -> bool:
    """Whether both encoders' features can be compared."""
    return isinstance(step.teacher, FrozenTeacher) and width == teacher_width


class CannotHelp(UserWarning):
    """What is seen of the alignment says that it cannot help as it is."""


class ClassesMixedUp(CannotHelp):
    """The alignment goes down between the wrong classes."""


class Diagnosis:
    """Looks at a run's epochs and warns of what it finds, of each thing once.

    Args:
        method: which decides what may be expected: of a method that compares no features, nothing is said.
        classes: K.
        samples: in the batch that `diagnose` looks at, of all processes.
        epochs: of the whole training.
    """

    def __init__(self, method: Method, classes: int, samples: int, epochs: int):
        self._epochs = epochs
        self._aligns = method.needs_equal_widths
        self._classes = classes
        chance = 1 / classes
        # What a head that guesses stays below, at a batch of so many: two standard errors.
        self._chance_seen = chance + 2 * math.sqrt(chance * (1 - chance) / samples)
        self._said: set[Callable[..., Any]] = set()

    def look(self, history: Sequence[Epoch]) -> None:
        """Warn of what the epochs until now show, the newest last."""
        if not self._aligns or len(history) < _ENOUGH:
            return
        checks = [self._margins, self._pull, self._partners]
        if len(history) >= _LEARNED * self._epochs:
            checks += [self._reading, self._nothing_to_carry]
        for check in checks:
            if check not in self._said and (found := check(history)) is not None:
                self._said.add(check)
                sentence, kind = found
                warnings.warn(sentence, kind, stacklevel=3)

    def _reading(self, history: Sequence[Epoch]) -> tuple[str, type[CannotHelp]] | None:
        read = _last(history, "probe_head_accuracy")
        if read is None or max(read) > self._chance_seen:
            return None
        seen = (
            f"the teacher's head names the class of only {100 * read[-1]:.0f} % of the student's features (chance: "
            f"{100 / self._classes:.0f} %)"
        )
        first, last = next(e["probe_fa"] for e in history if "probe_fa" in e), history[-1]["probe_fa"]
        if last <= _FELL * first:
            return (
                f"FA fell from {first:.2f} to {last:.2f}, but {seen}: clusters are matched to the wrong classes. "
                "Transport class by class: method 'label-aware-fa' or 'ucmkd-plus'"
            ), ClassesMixedUp
        return (
            f"{seen}, and FA has not fallen ({first:.2f} to {last:.2f}): the student's features do not come to where "
            "the teacher's are, so its head has nothing to say about them. Raise FA's weight (fa_weight, or lambda1, "
            "n1 and inner_lr of 'ucmkd'), train longer, or take a method that compares logits class by class ('kd')"
        ), CannotHelp

    def _nothing_to_carry(self, history: Sequence[Epoch]) -> tuple[str, type[CannotHelp]] | None:
        kappa = _last(history, "probe_kappa_90")
        if kappa is None or "la" not in history[-1] or max(kappa) > 0.1 / self._classes:
            return None
        return (
            f"kappa is below {kappa[-1]:.1g} for nine of ten of the student's samples (chance: "
            f"{1 / self._classes:.2g}): label alignment is then the student's own cross-entropy, and nothing of the "
            "teacher's. A teacher whose head is less sure (label smoothing, fewer epochs), or features that its head "
            "can read (method 'label-aware-fa'), would give it a weight"
        ), CannotHelp

    def _margins(self, history: Sequence[Epoch]) -> tuple[str, type[CannotHelp]] | None:
        error = _last(history, "marginal_error")
        if error is None or min(error) <= _MARGINS_MET:
            return None
        iterations = history[-1]["fa_iterations"]
        return (
            f"after {iterations:.0f} iterations FA's plan misses the teacher's marginals by {error[-1]:.2g} of 2 (sum "
            "of absolute differences): its cost is not that of a transport. Raise max_iter, or reg, or take a metric "
            "of bounded cost ('cosine', 'chordal')"
        ), CannotHelp

    def _pull(self, history: Sequence[Epoch]) -> tuple[str, type[CannotHelp]] | None:
        pull = _last(history, "probe_fa_pull")
        if pull is None or max(pull) >= _PULLS:
            return None
        return (
            f"FA's gradient at the student's features is {pull[-1]:.1g} of cross-entropy's: it moves nothing. Features "
            "of large norm do this under 'cosine' and 'chordal' (normalise them), and so does a cost far above reg "
            "or far below it; otherwise raise FA's weight"
        ), CannotHelp

    def _partners(self, history: Sequence[Epoch]) -> tuple[str, type[CannotHelp]] | None:
        partners = _last(history, "probe_partners")
        if partners is None or max(partners) >= _PARTNERS:
            return None
        return (
            f"FA moves a student's sample to {partners[-1]:.1f} of the teacher's samples: the batch is too small for "
            "this reg, and which sample is near is chance. Raise reg to the order of the cost's differences, or "
            "teacher_batch_size"
        ), CannotHelp


def _last(history: Sequence[Epoch], name: str) -> list[float] | None:
    """A figure in the epochs that count; None where one of them does not have it."""
    recent = history[-_ENOUGH:]
    return [epoch[name] for epoch in recent] if all(name in epoch for epoch in recent) else None
