"""The bi-level step (paper: Algorithm 1; ``reference/bilevel.py`` states the first order by deepcopy).

The student moves to a temporary point by ``n1`` steps on FA and ``n2`` on LA; the
gradient of its cross-entropy there is what its optimiser gets. No copy of the
model is made: its own parameters move in place and are put back. With ``order=2`` the
gradient goes back through the inner steps as well, see `second_order`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..alignment import Transport, feature_alignment, teacher_reading
from ..ops.label_transport import label_transport_loss
from ..training.distributed import world
from .second_order import FunctionalStudent, descend, write_gradients
from .shared_pass import SharedPass
from .temporary_point import FreshAdamW, TemporaryPoint, clear_gradients, clip_, joint_norm, sgd_step_

if TYPE_CHECKING:
    from ..data.batch import Batch
    from ..methods.base import FrozenTeacher, Step

PRESETS = ("paper", "published-code")
ENCODER_PASSES = ("auto", "separate")

Parts = dict[str, Tensor]  # name -> 0-d tensor to log


@dataclass(frozen=True)
class BilevelOptions:
    """The knobs of a bi-level step, already checked; `methods.ucmkd.UCMKD` has their meaning and defaults."""

    preset: str
    transport: Transport
    n1: int = 1
    n2: int = 1
    lambda1: float = 1.0
    lambda2: float = 1.0
    inner_lr: float | str = 0.005  # or "outer"
    inner_wd: float = 0.0
    inner_clip: float = math.inf
    kappa: str = "detached"
    label_smoothing: float = 0.0
    encoder_passes: str = "auto"
    order: int = 1  # 2: "paper" only


class BilevelStep:
    """Bi-level gradients of one student, batch after batch."""

    def __init__(self, student: Any, options: BilevelOptions):
        self.student = student
        self.options = options
        self._parameters: list[nn.Parameter] = []
        self._seen: list[tuple[int, torch.device]] | None = None
        self._adamw = FreshAdamW()

    def backward(self, step: Step, batch: Batch) -> Parts:
        """Replace the student's ``.grad``; return ``loss``, ``ce`` and what the inner steps saw, 0-d.

        ``fa`` (where n1 > 0) and ``la``, ``kappa``, ``teacher_head_accuracy`` (where n2 > 0)
        are those of the first FA and the first LA step. If anything raises, the parameters
        are back where they were and have no gradient.
        """
        parameters = self._attach()
        run = self._paper if self.options.preset == "paper" else self._published_code
        if self.options.order == 2:
            run = self._exact
        teacher = step.required_teacher
        with step.autocast():
            target = teacher.features(batch)  # (m, D)
        try:
            with self._point:
                parts = run(step, batch, teacher, target)
            step.reduce_gradients([p.grad for p in parameters if p.grad is not None])
        except BaseException:
            clear_gradients(parameters)
            raise
        return parts

    def _attach(self) -> list[nn.Parameter]:
        """The trainable parameters as they are now, without gradients; prepare anew only what changed."""
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        clear_gradients(parameters)
        seen = [(id(p), p.device) for p in parameters]
        if seen != self._seen:
            self._seen, self._parameters = seen, parameters
            self._head_parameters = set(self.student.head.parameters())
            self._point = TemporaryPoint(parameters)
            self._shared = SharedPass(self.student)
            self._may_share = self.options.encoder_passes == "auto"
        return self._parameters

    def _paper(self, step: Step, batch: Batch, teacher: FrozenTeacher, target: Tensor) -> Parts:
        """Algorithm 1: SGD steps on lambda1 FA and lambda2 LA; LA moves encoder and head."""
        options, lr = self.options, self._inner_lr(step)
        parts: Parts = {}
        for _ in range(options.n1):
            fa = self._feature_loss(step, batch, target, parts)
            self._sgd_step(step, "fa", fa, lr * options.lambda1)
        for _ in range(options.n2):
            with step.autocast():
                feature = self.student.encode(batch.x)
                la = self._label_loss(step, feature, teacher.head(feature), batch, parts)
            self._sgd_step(step, "la", la, lr * options.lambda2)
        with step.autocast():
            ce = self._cross_entropy(self.student.encode(batch.x), batch)
        ce.backward()
        return {"loss": ce.detach(), "ce": ce.detach(), **parts}

    def _exact(self, step: Step, batch: Batch, teacher: FrozenTeacher, target: Tensor) -> Parts:
        """As `_paper`, the outer gradient taken through the inner steps."""
        if world().size > 1:
            raise ValueError(
                "order=2 needs one process: inner gradients are not differentiated across processes"
            )
        options, lr = self.options, self._inner_lr(step)
        names = {id(p): name for name, p in self.student.named_parameters()}
        weights: dict[str, Tensor] = {names[id(p)]: p for p in self._parameters}
        parts: Parts = {}

        def label_loss(student: Any) -> Tensor:
            with step.autocast():
                feature = student.encode(batch.x)
                return self._label_loss(step, feature, teacher.head(feature), batch, parts)

        def watch(name: str) -> Callable[[Tensor], None] | None:
            return partial(step.note, f"inner_{name}_grad_norm") if step.watched else None

        with FunctionalStudent(self.student) as run:
            for _ in range(options.n1):
                fa = run(weights, lambda _: self._feature_loss(step, batch, target, parts))
                weights = descend(weights, fa, lr * options.lambda1, options.inner_clip, watch("fa"))
            for _ in range(options.n2):
                la = run(weights, label_loss)
                weights = descend(weights, la, lr * options.lambda2, options.inner_clip, watch("la"))
            with step.autocast():
                ce = run(weights, lambda student: self._cross_entropy(student.encode(batch.x), batch))
            write_gradients(ce, self._parameters)
            run.keep_buffers()
        return {"loss": ce.detach(), "ce": ce.detach(), **parts}

    def _published_code(self, step: Step, batch: Batch, teacher: FrozenTeacher, target: Tensor) -> Parts:
        """Steps of one new AdamW; to LA feature and teacher are constants, so it moves the head only."""
        options, student = self.options, self.student
        self._adamw.start(self._inner_lr(step), options.inner_wd)
        parts: Parts = {}
        for i in range(options.n1):
            fa = self._feature_loss(step, batch, target, parts)
            reached, gradients = self._gradients(step, "fa", fa)
            tied = any(p in self._head_parameters for p in reached)  # LA moves these again
            self._adamw.step_(reached, gradients, last=i + 1 == options.n1 and not tied)
        shared = False
        for i in range(options.n2):
            if not shared:
                feature, shared = self._encode_watched(step, batch.x)
                with torch.no_grad(), step.autocast():
                    teacher_logits = teacher.head(feature)
            with step.autocast():
                la = self._label_loss(step, feature.detach(), teacher_logits, batch, parts)
            self._adamw.step_(*self._gradients(step, "la", la), last=i + 1 == options.n2)
        with step.autocast():
            ce = self._cross_entropy(feature if shared else student.encode(batch.x), batch)
        ce.backward()
        if shared:
            self._shared.repeat(options.n2)
        return {"loss": ce.detach(), "ce": ce.detach(), **parts}

    def _encode_watched(self, step: Step, x: Tensor) -> tuple[Tensor, bool]:
        """Features of x, and whether the pass may stand for all others at these encoder weights."""
        if not self._may_share:
            with torch.no_grad(), step.autocast():
                return self.student.encode(x), False
        self._shared.start()
        with step.autocast():
            feature = self.student.encode(x)
        self._may_share = self._shared.repeatable(feature)
        return feature, self._may_share

    def _feature_loss(self, step: Step, batch: Batch, target: Tensor, parts: Parts) -> Tensor:
        with step.autocast():
            feature = self.student.encode(batch.x)
            fa = feature_alignment(step, batch, feature, target, self.options.transport)
        parts.setdefault("fa", fa.detach())
        return fa

    def _label_loss(
        self, step: Step, feature: Tensor, teacher_logits: Tensor, batch: Batch, parts: Parts
    ) -> Tensor:
        options = self.options
        logits = self.student.head(feature)
        la = label_transport_loss(
            logits, teacher_logits, batch.y, kappa=options.kappa, label_smoothing=options.label_smoothing
        )
        if "la" not in parts:
            parts.update(la=la.detach(), **teacher_reading(step, teacher_logits, batch.y))
        return la

    def _cross_entropy(self, feature: Tensor, batch: Batch) -> Tensor:
        logits = self.student.head(feature)
        return F.cross_entropy(logits, batch.y, label_smoothing=self.options.label_smoothing)

    def _inner_lr(self, step: Step) -> float:
        if self.options.inner_lr != "outer":
            return float(self.options.inner_lr)
        if step.learning_rate is None:
            raise ValueError("inner_lr='outer' needs the outer learning rate: Step.learning_rate is None")
        return step.learning_rate

    def _gradients(self, step: Step, name: str, loss: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that the loss reaches and its gradients there, averaged over processes.

        Where steps are watched, their norm, unclipped, is noted as that of the loss of this name.
        """
        if not loss.requires_grad:  # all that it reaches is frozen
            return [], []
        loss.backward()
        reached: list[Tensor] = [p for p in self._parameters if p.grad is not None]
        gradients = [p.grad for p in reached if p.grad is not None]
        clear_gradients(reached)
        step.reduce_gradients(gradients)
        if step.watched and gradients:
            step.note(f"inner_{name}_grad_norm", joint_norm(gradients))
        return reached, gradients

    def _sgd_step(self, step: Step, name: str, loss: Tensor, lr: float) -> None:
        reached, gradients = self._gradients(step, name, loss)
        clip_(gradients, self.options.inner_clip)
        sgd_step_(reached, gradients, lr)
