"""A run as one mapping: teacher, student, method, training, seed. Typed, validated, to and from YAML.

::

    seed: 0                        # split, first weights and batches of the student
    output: runs/digits
    teacher:
      data: digits     # a name, or a mapping with name and options
      model: {name: digit-cnn, width: 64}
      train: {lr: 0.05, epochs: 20}      # or checkpoint: a run's folder, or weights
    student:
      data: {name: spoken-digits, labels_per_class: 5}
      model: speech-cnn
    method: {name: ucmkd, preset: paper, lambda1: 0.5}
    train: {lr: 0.05, epochs: 30, steps_per_epoch: 5}
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..config import BOOKKEEPING, TrainConfig, check_keys, flag, integer, kind, one_of
from ..methods import Method, build_method, method_class
from ..training.method_settings import method_settings, settled_draw
from .settings import at, load_settings, with_changes
from .sources import DataSpec, Named, check_model_spec

CONTROLS = ("permuted", "untrained")
HEADS = ("own", "teacher", "teacher-frozen")

_seed = integer(0, 2**31 - 1)


@dataclass(frozen=True)
class TeacherConfig:
    """Whose knowledge it is.

    Attributes:
        data: a data source.
        model: a model.
        train: how it is trained; None where there is a checkpoint.
        checkpoint: the folder of a finished run, or a file of weights.
        seed: of its split, first weights and batches; not that of the run, so that all students of a
            comparison have one teacher.
        cache_features: run its encoder once over its data and keep the features. Exact where inputs are
            not augmented.
        control: "permuted": every class renamed to another, as accurate as before and wrong about what
            classes mean to the student; "untrained": first weights. None: the real one.
    """

    data: DataSpec
    model: Named
    train: TrainConfig | None = None
    checkpoint: str | None = None
    seed: int = 0
    cache_features: bool = False
    control: str | None = None

    @classmethod
    def read(cls, values: Any) -> TeacherConfig:
        """From plain values."""
        _check_mapping(values, cls)
        seed = _seed("seed", values.get("seed", 0))
        checkpoint, control = values.get("checkpoint"), values.get("control")
        if checkpoint is not None and not isinstance(checkpoint, str):
            raise TypeError(f"checkpoint must be a path, got {kind(checkpoint)}")
        if control is not None:
            one_of(*CONTROLS)("control", control)
        if values.get("train") is None and checkpoint is None:
            raise ValueError(
                "expected either train, settings to train the teacher with, or checkpoint, its weights; got neither"
            )
        if values.get("train") is not None and checkpoint is not None:
            train = values["train"]
            said = ", ".join(map(str, train)) if isinstance(train, Mapping) else kind(train)
            raise ValueError(
                "expected either train, settings to train the teacher with, or checkpoint, its weights; got both, "
                f"checkpoint {checkpoint!r} and train with {said}: where train comes "
                "from a file that these settings build on, say train: null beside checkpoint"
            )
        return cls(
            data=_data(values),
            model=_model(values),
            train=None if values.get("train") is None else _train(values["train"], seed),
            checkpoint=checkpoint,
            seed=seed,
            cache_features=flag("cache_features", values.get("cache_features", False)),
            control=control,
        )

    def plain(self) -> dict[str, Any]:
        """What `read` reads back."""
        return {
            "data": self.data.plain(),
            "model": self.model.plain(),
            "train": None if self.train is None else _plain_train(self.train),
            "checkpoint": self.checkpoint,
            "seed": self.seed,
            "cache_features": self.cache_features,
            "control": self.control,
        }

    def as_run(self) -> RunConfig:
        """The teacher's own training: a student without a teacher.

        Raises:
            ValueError: it is read from a checkpoint.
        """
        if self.train is None:
            raise ValueError(f"the teacher is read from {self.checkpoint}, so there is nothing to train")
        student = StudentConfig(self.data, self.model)
        train = self.train.updated(draw=settled_draw(build_method("ce"), self.train.draw))
        return RunConfig(student, Named("ce"), train, seed=self.seed)


@dataclass(frozen=True)
class StudentConfig:
    """Who learns, and from what.

    Attributes:
        data: a data source.
        model: a model.
        head: its first weights: "own", drawn; "teacher", those of the teacher's head; "teacher-frozen", the same,
            and they stay (`ucmkd_fast.models.reuse_head`).
    """

    data: DataSpec
    model: Named
    head: str = "own"

    @property
    def reuses_head(self) -> bool:
        """Whether it has the teacher's."""
        return self.head != "own"

    @classmethod
    def read(cls, values: Any) -> StudentConfig:
        """From plain values."""
        _check_mapping(values, cls)
        head = values.get("head", "own")
        one_of(*HEADS)("head", head)
        return cls(_data(values), _model(values), head)

    def plain(self) -> dict[str, Any]:
        """What `read` reads back."""
        return {"data": self.data.plain(), "model": self.model.plain(), "head": self.head}


@dataclass(frozen=True)
class RunConfig:
    """A run. ValueError on whatever is unknown, of a wrong type or out of range; the message says where."""

    student: StudentConfig
    method: Named
    train: TrainConfig
    teacher: TeacherConfig | None = None
    seed: int = 0
    output: str | None = None
    measure_alignment: bool = False  # FA, LA, the teacher's reading, the bound: on test data, after training

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> RunConfig:
        """From plain values."""
        with at("run"):
            _check_mapping(values, cls)
            for needed in ("student", "method"):
                if values.get(needed) is None:
                    raise ValueError(f"expected {needed}, there is none")
            seed = _seed("seed", values.get("seed", 0))
            output = values.get("output")
            if output is not None and not isinstance(output, str):
                raise TypeError(f"output must be a path, got {kind(output)}")
            measured = flag("measure_alignment", values.get("measure_alignment", False))
        with at("method"):
            named = Named.read(values["method"])
            method = checked_method(named)
        with at("train"):
            train = _train(values.get("train") or {}, seed)
            train = train.updated(draw=settled_draw(method, train.draw))
        teacher = None
        if values.get("teacher") is not None:
            with at("teacher"):
                teacher = TeacherConfig.read(values["teacher"])
        if method.uses_teacher and teacher is None:
            raise ValueError(f"teacher: method {named.name!r} needs one, there is none")
        with at("student"):
            student = StudentConfig.read(values["student"])
            if student.reuses_head and teacher is None:
                raise ValueError(f"head {student.head!r} needs a teacher, there is none")
        return cls(student, named, train, teacher, seed, output, measured)

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, Any] | None = None) -> RunConfig:
        """From a YAML file, with changes at dotted paths."""
        return cls.read(with_changes(load_settings(path), changes or {}))

    def plain(self) -> dict[str, Any]:
        """Every setting that the run depends on, resolved; `read` reads it back to an equal object."""
        return {
            "seed": self.seed,
            "output": self.output,
            "measure_alignment": self.measure_alignment,
            "teacher": None if self.teacher is None else self.teacher.plain(),
            "student": self.student.plain(),
            "method": self.method.plain(),
            "train": _plain_train(self.train),
        }

    @property
    def uses_teacher(self) -> bool:
        """Whether the method has a teacher at all."""
        return method_class(self.method.name).uses_teacher

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher must be there: to teach, to give its head, or to be measured against."""
        return self.teacher is not None and (self.learns_from_teacher or self.measure_alignment)

    @property
    def learns_from_teacher(self) -> bool:
        """Whether another teacher would make another student."""
        return self.uses_teacher or self.student.reuses_head

    def identity(self) -> dict[str, Any]:
        """The settings that the numbers depend on, as JSON has them: not where it is kept, or what is shown."""
        plain = self.plain()
        del plain["output"]
        if not self.needs_teacher:
            plain["teacher"] = None
        if not self.student.reuses_head:
            del plain["student"]["head"]  # runs from before there was a choice stay what they are
        for train in (plain["train"], (plain["teacher"] or {}).get("train") or {}):
            for name in BOOKKEEPING:
                train.pop(name, None)
        return json.loads(json.dumps(plain))


def preset_and_options(method: Named) -> tuple[str, dict[str, Any]]:
    """A method's options as `Distiller` takes them."""
    options = dict(method.options)
    return str(options.pop("preset", "paper")), options


def checked_method(named: Named) -> Method:
    """The method itself; ValueError for options that it does not take."""
    preset, options = preset_and_options(named)
    settings = method_settings(named.name, preset, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when it runs
        return build_method(named.name, **settings["options"])


def _check_mapping(values: Any, cls: type) -> None:
    if not isinstance(values, Mapping):
        raise TypeError(f"expected a mapping of names to values, got {kind(values)}")
    check_keys(values, (f.name for f in fields(cls)), "setting")


def _data(values: Mapping[str, Any]) -> DataSpec:
    with at("data"):
        return DataSpec.read(values.get("data"))


def _model(values: Mapping[str, Any]) -> Named:
    with at("model"):
        named = Named.read(values.get("model"))
        check_model_spec(named)
    return named


def _train(values: Any, seed: int) -> TrainConfig:
    with at("train"):
        if isinstance(values, Mapping) and "seed" in values:
            raise ValueError(
                "seed is not said here but one level up, as it also draws splits and first weights"
            )
        return TrainConfig.from_dict({"seed": seed, **values} if isinstance(values, Mapping) else values)


def _plain_train(train: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in train.to_dict().items() if key != "seed"}
