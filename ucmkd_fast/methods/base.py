"""The contract of a distillation method, and the registry.

A method turns one batch into gradients on the student's parameters. It never
steps the student's optimiser, never synchronises with the host (no ``.item()``)
and never changes a frozen teacher.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..alignment import Transport
from ..bilevel.temporary_point import clear_gradients
from ..data.batch import Batch
from ..models.maps import encode_with_maps
from ..models.precision import dtype_of, inputs_for, loss_dtype, seen_in
from ..names import did_you_mean

_REGISTRY: dict[str, type[Method]] = {}
_MethodType = TypeVar("_MethodType", bound="type[Method]")


@dataclass
class Step:
    """What a method needs from the loop: the models and the loop's own ways of doing things."""

    student: Any  # nn.Module with encode and head (models/contract.py)
    # None for methods with uses_teacher = False, a TrainedTeacher for those with trains_teacher = True.
    teacher: FrozenTeacher | TrainedTeacher | None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    # Average the given gradients over processes, in place; identity on one process.
    reduce_gradients: Callable[[list[Tensor]], None] = field(default=lambda gradients: None)
    # Rows (n, D) of this process -> rows of all processes, so that transport sees the global batch.
    # Its backward hands this process its rows' gradient times the number of processes: the average
    # that reduce_gradients takes is then the gradient of the global loss. Identity on one process.
    gather_rows: Callable[[Tensor], Tensor] = field(default=lambda rows: rows)
    # The processes that share a batch, for ops that work on their shares; None on one process.
    group: Any = None
    # Keeps FA's potentials from step to step (`data.WarmStart`), where the run asks for it.
    warm_start: Any = None
    # Share of the training's steps that are done, from 0; read only by options that follow it.
    progress: float = 1.0
    # The student's learning rate at this step; read only by options that follow it.
    learning_rate: float | None = None
    # Whether somebody watches step by step: then figures are noted that cost a pass over the weights.
    watched: bool = False
    # What a step noted beside the parts that it returns; the loop empties it before each step.
    notes: dict[str, Tensor] = field(default_factory=dict)

    def note(self, name: str, value: Tensor) -> None:
        """Keep a figure of this step, by the first of equal names: no inner step but the first is told of."""
        self.notes.setdefault(name, value.detach())

    @property
    def required_teacher(self) -> FrozenTeacher:
        """The frozen teacher; ValueError where there is none."""
        if isinstance(self.teacher, FrozenTeacher):
            return self.teacher
        found = "None" if self.teacher is None else "a TrainedTeacher"
        raise ValueError(f"this method needs a teacher: Step.teacher must be a FrozenTeacher, got {found}")

    @property
    def trained_teacher(self) -> TrainedTeacher:
        """The teacher that learns as well; ValueError where there is none."""
        if isinstance(self.teacher, TrainedTeacher):
            return self.teacher
        found = "None" if self.teacher is None else "a FrozenTeacher"
        raise ValueError(
            f"this method trains the teacher: Step.teacher must be a TrainedTeacher, got {found}"
        )


class _Teacher:
    """A model that gives features, maps and logits in one dtype, whatever its weights are in (`models.precision`).

    Args:
        model: has ``encode`` and ``head``.
        dtype: of what it gives: that of the student's losses; None: its own, float32 at least.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None):
        self.model: Any = model
        self._asked = dtype
        self._view: tuple[Any, Any] = (None, None)  # for which dtypes, and the model as it is seen

    @property
    def dtype(self) -> torch.dtype:
        """Of features, maps and logits."""
        return self._asked or loss_dtype(self.model)

    @property
    def seen(self) -> Any:
        """The model, its outputs cast where they need it."""
        own = dtype_of(self.model), self.dtype
        if self._view[0] != own:  # the first time, or the owner has cast the model since
            self._view = own, seen_in(self.model, self.dtype)
        return self._view[1]

    def inputs(self, batch: Batch) -> Tensor:
        """The batch's teacher samples (m, ...) as the model takes them; ValueError where it has none."""
        if batch.teacher_x is None:
            raise ValueError(
                "this method runs the teacher on its samples, so the batch must have teacher_x; cached features "
                "do not serve"
            )
        return inputs_for(self.model, batch.teacher_x)


class FrozenTeacher(_Teacher):
    """A teacher in eval mode, without gradients to its weights, run once per batch at most.

    Its parameters get ``requires_grad = False`` and it is put into eval mode. Whatever it is stored in, it gives
    features, cached ones too, maps and logits in one dtype (`models.precision`).

    Args:
        model: has ``encode`` and ``head``.
        dtype: of what it gives: that of the student's losses; None: its own, float32 at least.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None):
        super().__init__(model.eval(), dtype)
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    @property
    def head(self) -> nn.Module:
        """The teacher's head in eval mode; differentiable with respect to its input."""
        if self.model.head.training:  # the model's owner may have called train() since
            self.model.head.eval()
        head: nn.Module = self.seen.head
        return head

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Features (m, D) of the batch's teacher samples, from the cache where there is one."""
        if batch.teacher_feature is None:
            if batch.teacher_x is None:
                raise ValueError("the batch has neither teacher_x nor teacher_feature")
            if self.model.training:
                self.model.eval()
            batch.teacher_feature = self.seen.encode(self.inputs(batch))
        batch.teacher_feature = batch.teacher_feature.to(self.dtype)
        return batch.teacher_feature

    @torch.no_grad()
    def maps(self, batch: Batch) -> list[Tensor]:
        """Feature maps (m, C, ...) of the batch's teacher samples, shallow to deep; these are not cached.

        The features of the same pass are kept in the batch. TypeError where the model has no
        ``encode_with_maps``, ValueError where the batch holds cached features alone.
        """
        if self.model.training:
            self.model.eval()
        batch.teacher_feature, maps = encode_with_maps(self.seen, self.inputs(batch), "the teacher")
        return maps


class TrainedTeacher(_Teacher):
    """A teacher that learns beside the student: in train mode, with gradients, run on every batch.

    ValueError where none of its parameters requires a gradient (a `FrozenTeacher` may have frozen it). ``dtype`` as
    in `FrozenTeacher`.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                "this method trains the teacher, but none of its parameters requires a gradient: "
                "call teacher.requires_grad_(True)"
            )
        super().__init__(model.train(), dtype)

    @property
    def head(self) -> nn.Module:
        """The teacher's head."""
        head: nn.Module = self.seen.head
        return head

    def features(self, batch: Batch) -> Tensor:
        """Features (m, D) of the batch's teacher samples, with a graph."""
        feature: Tensor = self.seen.encode(self.inputs(batch))
        return feature

    def features_and_maps(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Features (m, D) and feature maps (m, C, ...), shallow to deep, with a graph."""
        return encode_with_maps(self.seen, self.inputs(batch), "the teacher")


class Method(nn.Module):
    """Base class. Subclasses set ``name`` and implement `backward`.

    A method that owns modules (a projector, fusion layers) creates them in `setup`
    and returns their optimisers from `own_optimizers`; its ``state_dict`` then holds
    their weights. It may register forward hooks on student and teacher in `setup`.
    """

    name: str = ""
    published_name: str = ""  # in the authors' repository, where it has one
    uses_teacher: bool = True
    trains_teacher: bool = False  # then the step's teacher is a TrainedTeacher
    # How teacher samples must be drawn, of "independent", "class-matched", "paired"; empty: any way.
    required_draw: tuple[str, ...] = ()
    needs_equal_widths: bool = False  # of features: True where student and teacher features meet
    marginal_fa: Transport | None = (
        None  # how FA is computed, of methods that move features whatever their class
    )
    uses_unlabelled: bool = False  # samples of the student's modality without labels
    # How FA between whole batches is computed (an `alignment.Transport`), where its potentials may be kept.
    warm_transport: Any = None
    bank_size: int = 0  # teacher's samples, of all classes together, that the loop hands over once

    def setup(
        self, student: nn.Module, teacher: FrozenTeacher | TrainedTeacher | None, example: Batch
    ) -> None:
        """Called once, before the first step, to make modules of one's own on the student's device.

        ``example`` holds at least one sample of each modality, from which sizes can be seen.
        """

    def receive_bank(self, feature: Tensor, labels: Tensor) -> None:
        """Called once, after `setup`, where ``bank_size`` is not 0: teacher features (M, D) and labels (M,)."""

    def own_optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Optimisers of the method's own modules: the loop steps and saves them beside the student's."""
        return ()

    def learning_rate(self, scheduled: float, epoch: int, step: int) -> float:
        """The student's learning rate in a step of an epoch, both from 0; ``scheduled`` is the loop's own."""
        return scheduled

    def backward(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """Replace ``.grad`` of the student's (and the method's own) parameters; return 0-d tensors to log.

        The keys are the same at every step; ``"loss"`` is always among them.
        """
        raise NotImplementedError

    def check_draw(self, draw: str) -> None:
        """Raise ValueError when teacher samples drawn this way are of no use to the method."""
        if self.required_draw and draw not in self.required_draw:
            allowed = " or ".join(repr(d) for d in self.required_draw)
            raise ValueError(
                f"method {self.name!r} compares a student's sample with a teacher's sample by index, "
                f"so the teacher's samples must be drawn {allowed}; got {draw!r}"
            )


class LossMethod(Method):
    """A method that is one differentiable loss."""

    def loss(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """Named parts, 0-d; ``"loss"`` is the one that is minimised."""
        raise NotImplementedError

    def backward(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """Backward through ``loss``."""
        parameters = [*step.student.parameters(), *self.parameters()]
        if self.trains_teacher:
            parameters += step.trained_teacher.model.parameters()
        clear_gradients(parameters)
        with step.autocast():
            parts = self.loss(step, batch)
        parts["loss"].backward()
        step.reduce_gradients([p.grad for p in parameters if p.grad is not None])
        return {key: value.detach() for key, value in parts.items()}


def register(cls: _MethodType) -> _MethodType:
    """Class decorator: make a method available by its ``name``."""
    if not cls.name or cls.name in _REGISTRY:
        raise ValueError(f"method name {cls.name!r} is empty or taken")
    _REGISTRY[cls.name] = cls
    return cls


def available_methods() -> list[str]:
    """Names of the registered methods, sorted."""
    return sorted(_REGISTRY)


def method_class(name: str) -> type[Method]:
    """The class registered under a name; ValueError when there is none."""
    if isinstance(name, str) and name in _REGISTRY:
        return _REGISTRY[name]
    ours = [cls.name for cls in _REGISTRY.values() if cls.published_name == name]
    hint = did_you_mean(name, _REGISTRY)
    if ours:
        hint = f" (the published code's {name!r} is called {ours[0]!r} here)"
    raise ValueError(f"method must be one of {available_methods()}, got {name!r}{hint}")


def build_method(name: str, **options: Any) -> Method:
    """A method by name; options go to its constructor. ValueError on an unknown name or option."""
    cls = method_class(name)
    known = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise ValueError(f"method {name!r} has no option {unknown[0]!r}; its options are {known}{hint}")
    return cls(**options)
