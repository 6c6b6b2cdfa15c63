"""What a comparison runs: methods x settings x seeds, each a run's settings with something changed.

::

    title: The ablation of Table 6 on digits
    baseline: ce                       # the method that differences are taken to
    seeds: 5                           # 0 to 4, or a list
    base: {teacher: ..., student: ..., train: ...}       # a run, without its method
    methods:
      ce: ce
      LA only: {name: ucmkd, n1: 0}
      kd, permuted: {name: kd, control: permuted}        # a control: see TeacherConfig.control
      ucmkd, slow: {name: ucmkd, set: {train.lr: 0.001}} # changes at dotted paths
    settings:                          # left out: the base as it is
      5 labels: {student.data.labels_per_class: 5}
      AVE, A to V: {from: tasks/ave.yaml}                # laid over the base
      RAVDESS, A to V: {from: tasks/ravdess.yaml, options: {ucmkd/published-code: {inner_lr: 5.0e-5}}}
    roots: {ave: data/ave}             # where data sets are, by their names, unless they say so themselves
    paper: "6"                         # table of the paper with rows and columns of these names
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bilevel import PRESETS
from ..config import check_keys, integer, kind, one_of
from ..data.registry import data_names
from ..methods import method_class
from ..run.config import CONTROLS, RunConfig
from ..run.settings import at, load_settings, merge, with_changes
from ..run.sources import Named
from .paper import PaperTable, paper_table

_KEYS = ("title", "base", "methods", "settings", "seeds", "baseline", "paper", "roots")


@dataclass(frozen=True)
class Contender:
    """A method in a comparison, by what distinguishes it from the base."""

    label: str
    method: Mapping[str, Any]  # name and options
    changes: Mapping[str, Any] = field(default_factory=dict)  # at dotted paths
    control: str | None = None
    row: str = ""  # of the paper's table

    def options_of(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """The method with the options that a setting has for it, by name or name/preset, under its own."""
        name = self.method["name"]
        keys = (name, f"{name}/{self.method.get('preset', 'paper')}")
        own: dict[str, Any] = {}
        for key in keys:
            own |= setting.get(key, {})
        return {**own, **self.method}

    @classmethod
    def read(cls, label: str, value: Any) -> Contender:
        """From a name, or a mapping of name, options, ``set``, ``control`` and ``paper`` (its row there)."""
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, Mapping):
            raise TypeError(
                f"expected a method's name, or a mapping with name and options, got {kind(value)}"
            )
        options = {key: one for key, one in value.items() if key not in ("set", "control", "paper")}
        method_class(Named.read(options).name)  # there is one of that name
        changes, control = value.get("set", {}), value.get("control")
        if not isinstance(changes, Mapping):
            raise TypeError(f"set must be a mapping of dotted paths to values, got {kind(changes)}")
        if control is not None:
            one_of(*CONTROLS)("control", control)
            changes = {**changes, "teacher.control": control}
        return cls(label, options, dict(changes), control, str(value.get("paper", label)))


@dataclass(frozen=True)
class Setting:
    """What all methods of a block have in common."""

    values: Mapping[str, Any]  # of the run, but for method and seed
    options: Mapping[str, Mapping[str, Any]]  # of methods, by name or name/preset
    column: str  # of the paper's table

    @classmethod
    def read(cls, label: str, value: Any, base: Mapping[str, Any], roots: Mapping[str, Any]) -> Setting:
        """From what is different: dotted paths, or mappings to lay over the base; ``options`` and ``paper``."""
        if not isinstance(value, Mapping):
            raise TypeError(f"expected a mapping of what is different, got {kind(value)}")
        options = value.get("options", {})
        for key, own in options.items():
            method, slash, preset = key.partition("/")
            method_class(method)
            if slash:
                one_of(*PRESETS)("preset", preset)
            if not isinstance(own, Mapping):
                raise TypeError(f"options: {key} must be a mapping of options, got {kind(own)}")
        over = {key: one for key, one in value.items() if key not in ("paper", "options")}
        nested = {key: one for key, one in over.items() if "." not in key}
        dotted = {key: one for key, one in over.items() if "." in key}
        values = with_changes(merge(base, nested), dotted)
        for side in ("teacher", "student"):
            data = (values.get(side) or {}).get("data")
            name = str(data.get("name") if isinstance(data, Mapping) else data)
            if name in roots and not (isinstance(data, Mapping) and "root" in data):
                values = with_changes(values, {f"{side}.data.root": roots[name]})
        return cls(values, dict(options), str(value.get("paper", label)))


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    setting: str
    contender: Contender
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Where it is kept, below the comparison's own folder."""
        return Path("runs") / slug(self.setting) / slug(self.contender.label) / f"seed-{self.seed}"


@dataclass(frozen=True)
class Experiment:
    """A comparison. ValueError on whatever is unknown or does not fit; the message says where."""

    base: Mapping[str, Any]
    contenders: tuple[Contender, ...]
    settings: Mapping[str, Setting]
    seeds: tuple[int, ...]
    baseline: str
    title: str = ""
    paper: PaperTable | None = None

    @classmethod
    def load(
        cls, path: Path, changes: Mapping[str, Any] | None = None, *, controls: bool = False
    ) -> Experiment:
        """From a YAML file, with changes at dotted paths (``base.train.epochs``, ``seeds``), and its controls."""
        values = with_changes(load_settings(path), changes or {})
        if controls:
            from .controls import with_controls

            values = with_controls(values)
        return cls.read(values)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Experiment:
        """From plain values; every run is resolved, so that a wrong setting is found before the first."""
        with at("experiment"):
            check_keys(values, _KEYS, "setting")
            base = _mapping(values, "base")
            _mapping(values, "methods")
            seeds = _seeds(values.get("seeds", 5))
            table = values.get("paper")
            paper = None if table is None else paper_table(str(table))
        contenders = []
        for label, value in values["methods"].items():
            with at(f"methods: {label}"):
                contenders.append(Contender.read(str(label), value))
        labels = [contender.label for contender in contenders]
        baseline = values.get("baseline", labels[0])
        with at("experiment"):
            one_of(*labels)("baseline", baseline)
            roots = values.get("roots") or {}
            check_keys((str(name).replace("_", "-") for name in roots), data_names(), "data set among roots:")
        settings = {}
        for label, value in (values.get("settings") or {"all": {}}).items():
            with at(f"settings: {label}"):
                settings[str(label)] = Setting.read(str(label), value, base, roots)
        _check_distinct(labels, "methods")
        _check_distinct(list(settings), "settings")
        title = str(values.get("title", ""))
        experiment = cls(base, tuple(contenders), settings, seeds, baseline, title, paper)
        for _ in experiment.cells():
            pass
        return experiment

    def cells(self) -> Iterator[Cell]:
        """Every run: by seed first, so that what is there after a while is a smaller comparison."""
        for seed in self.seeds:
            for label, setting in self.settings.items():
                for contender in self.contenders:
                    with at(f"{contender.label}, {label}, seed {seed}"):
                        method = contender.options_of(setting.options)
                        full = {**setting.values, "method": method, "seed": seed}
                        config = RunConfig.read(with_changes(full, contender.changes))
                    yield Cell(label, contender, seed, config)

    def plain(self) -> dict[str, Any]:
        """What `read` reads back, with all files laid over each other; kept with the results."""
        return {
            "title": self.title,
            "baseline": self.baseline,
            "seeds": list(self.seeds),
            "paper": None if self.paper is None else self.paper.number,
            "base": dict(self.base),
            "methods": {
                c.label: {**c.method, "set": dict(c.changes), "control": c.control, "paper": c.row}
                for c in self.contenders
            },
            "settings": {
                label: {**setting.values, "options": dict(setting.options), "paper": setting.column}
                for label, setting in self.settings.items()
            },
        }


def slug(label: str) -> str:
    """A label as a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "-"


def _seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, list):
        seeds = tuple(integer(0, 2**31 - 1)("seeds", seed) for seed in value)
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {value}")
        return seeds
    return tuple(range(integer(1)("seeds", value)))


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    if not isinstance(value, Mapping) or not value:
        raise TypeError(f"{name} must be a mapping, got {kind(value)}")
    return value


def _check_distinct(labels: list[str], what: str) -> None:
    by_slug: dict[str, str] = {}
    for label in labels:
        other = by_slug.setdefault(slug(label), label)
        if other != label:
            raise ValueError(f"{what}: {label!r} and {other!r} would be kept in one folder: rename one")
