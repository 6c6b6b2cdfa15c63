"""The settings of a training run: one dataclass, validated, to and from YAML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from .names import did_you_mean, nearest

#: Keys that change what is shown or kept, never the weights that a run ends with.
BOOKKEEPING = frozenset(
    {"diagnose", "trackers", "log_every", "checkpoint_every", "keep_weights_every", "progress"}
)


@dataclass(frozen=True)
class TrainConfig:
    """How the outer loop trains; what the method does inside a step are the method's own options.

    Raises:
        ValueError: a value outside its range; the message says what was expected and what came.
        TypeError: a value of a wrong type.
    """

    optimizer: str = "sgd"  # "sgd" | "adamw"
    lr: float = 1e-2
    min_lr: float = 1e-5  # where warm-up starts and the cosine ends
    momentum: float = 0.9  # sgd only
    weight_decay: float = 0.0
    epochs: int = 100
    warmup_epochs: int = 0
    steps_per_epoch: int | None = None  # None: one pass over the student's data
    batch_size: int = 64  # the student's samples in a step, over all processes together
    teacher_batch_size: int | None = None  # None: batch_size
    unlabelled_batch_size: int | None = None  # None: batch_size; of methods that use unlabelled samples
    draw: str | None = None  # "independent" | "class-matched" | "paired"; None: what the method needs
    # Marginal error at which FA's iterations stop; they start from potentials that are kept for every sample. None: FA
    # starts from nothing and runs as many as the method says.
    warm_start: float | None = None
    clip_norm: float | None = 5.0  # of the student's outer gradient; None: no clipping
    seed: int = 0
    mixed_precision: str | None = None  # "no" | "bf16"; None: what `accelerate launch` says, else "no"
    restore_best: bool = True  # after `fit` the student holds the best weights on validation, not the last
    trackers: tuple[str, ...] = ()  # "tensorboard", "wandb", "mlflow", "trackio", ...: accelerate's names
    log_every: int = 50  # steps whose figures wait on the device until trackers get them
    checkpoint_every: int = 1  # epochs
    diagnose: bool = True  # once an epoch, look whether alignment aligns the right classes
    keep_weights_every: int | None = None  # epochs whose student stays, for a report's curves; None: none
    progress: bool = True  # a bar, on a terminal only

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must be at most lr = {self.lr}, got {self.min_lr}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be less than epochs = {self.epochs}, got {self.warmup_epochs}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Settings from a mapping; an unknown key is refused with the nearest right name."""
        if not isinstance(values, Mapping):
            raise TypeError(f"training settings must be a mapping of names to values, got {kind(values)}")
        check_keys(values, (f.name for f in fields(cls)), "training setting")
        return cls(**values)

    def updated(self, **changes: Any) -> TrainConfig:
        """A copy with some settings changed; the same checks as `from_dict`."""
        return TrainConfig.from_dict({**self.to_dict(), **changes})

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Settings from a YAML file."""
        return cls.from_dict(read_yaml(path) or {})

    def to_dict(self) -> dict[str, Any]:
        """Plain values (numbers, strings, lists), as YAML and JSON know them."""
        return {**asdict(self), "trackers": list(self.trackers)}

    def to_yaml(self) -> str:
        """The settings as YAML text that `from_yaml` reads back to an equal object."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def check_keys(values: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise ValueError for the first key that is not known, naming the nearest that is."""
    names = list(known)
    for key in values:
        if key not in names:
            near = nearest(key, names)
            hint = f"known: {', '.join(names)}" if near is None else f"did you mean {near!r}?"
            raise ValueError(f"unknown {what} {key!r}; {hint}")


#: No file of settings comes near these; a file made to take all memory or time goes beyond.
_LARGEST_FILE, _MOST_VALUES, _DEEPEST, _LONGEST_VALUE = 2**20, 20_000, 50, 2**14


class YamlLoader(yaml.SafeLoader):
    """Reads ``1e-3`` as a number, as YAML 1.2 does; PyYAML's own rules make it a string.

    Bounds depth, length and number of values as it reads: PyYAML's time grows with the square of the first two.
    """

    values = depth = 0

    def fetch_flow_collection_start(self, token: type) -> None:
        """An opening bracket."""
        if self.flow_level >= _DEEPEST:
            raise ValueError(f"nested too deeply, over {_DEEPEST} levels")
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A value with all that it holds."""
        self.values, self.depth = self.values + 1, self.depth + 1
        if self.values > _MOST_VALUES:
            raise ValueError(f"over {_MOST_VALUES} values")
        if self.depth > _DEEPEST:
            raise ValueError(f"nested too deeply, over {_DEEPEST} levels")
        if self.check_event(yaml.ScalarEvent) and len(self.peek_event().value) > _LONGEST_VALUE:
            raise ValueError(f"a value of over {_LONGEST_VALUE} characters")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds: plain values only, no objects, of bounded size.

    Raises:
        FileNotFoundError: the file cannot be read.
        ValueError: not YAML, over 1 MiB, or what `parse_yaml` refuses.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error  # the path is said once
        raise FileNotFoundError(f"expected a readable YAML file at {path}: {reason}") from error
    if len(data) > _LARGEST_FILE:
        raise ValueError(f"{path} is larger than settings are: over {_LARGEST_FILE} bytes")
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """The plain value that a YAML text says.

    Raises:
        ValueError: not YAML, over 20,000 values once aliases are followed, over 50 levels deep, or a value of over
            16,384 characters.
    """
    loader = YamlLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _unfolded(node, {}, ())
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(str(error)) from error
    finally:
        loader.dispose()


def _unfolded(node: yaml.Node, known: dict[int, int], inside: tuple[int, ...]) -> int:
    """How many values a node stands for once its aliases are followed; each node is counted once."""
    if id(node) in inside:
        raise ValueError("an alias inside of what it stands for")
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        total = 1 + sum(_unfolded(part, known, (*inside, id(node))) for part in parts)
        if total > _MOST_VALUES:
            raise ValueError(f"aliases unfold to over {_MOST_VALUES} values")
        known[id(node)] = total
    return known[id(node)]


def kind(value: Any) -> str:
    """A value and its type, for messages."""
    return f"{value!r} ({type(value).__name__})"


def one_of(*choices: str) -> Callable[[str, Any], str]:
    """A check that a value is one of the choices; the message names the nearest."""

    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise ValueError(
                f"{name} must be one of {list(choices)}, got {value!r}{did_you_mean(value, choices)}"
            )
        return value

    return check


def integer(low: int, high: int | None = None) -> Callable[[str, Any], int]:
    """A check for an integer in a range; checks take the setting's name and its value."""
    expected = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be {expected}, got {kind(value)}")
        if value < low or (high is not None and value > high):
            raise ValueError(f"{name} must be {expected}, got {value}")
        return value

    return check


def number(low: float, *, above: bool = False) -> Callable[[str, Any], float]:
    """A check for a finite number that is at least ``low``, or above it."""
    expected = f"a finite number {'>' if above else '>='} {low:g}"

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be {expected}, got {kind(value)}")
        if not math.isfinite(value) or value < low or (above and value == low):
            raise ValueError(f"{name} must be {expected}, got {value}")
        return float(value)

    return check


def optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """The same check, with None let through."""
    return lambda name, value: None if value is None else check(name, value)


def flag(name: str, value: Any) -> bool:
    """A check for true or false."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {kind(value)}")
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
        raise TypeError(f"{name} must be a list of names, got {kind(value)}")
    return tuple(values)


def _precision(name: str, value: Any) -> str:
    if value == "fp16":
        raise ValueError(
            f"{name} 'fp16' is refused: its gradient scaling does not reach the inner steps of a bi-level "
            "method; use 'bf16' or 'no'"
        )
    return one_of("no", "bf16")(name, value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "optimizer": one_of("sgd", "adamw"),
    "lr": number(0, above=True),
    "min_lr": number(0),
    "momentum": number(0),
    "weight_decay": number(0),
    "epochs": integer(1),
    "warmup_epochs": integer(0),
    "steps_per_epoch": optional(integer(1)),
    "batch_size": integer(1),
    "teacher_batch_size": optional(integer(1)),
    "unlabelled_batch_size": optional(integer(1)),
    "draw": optional(one_of("independent", "class-matched", "paired")),
    "warm_start": optional(number(0, above=True)),
    "clip_norm": optional(number(0, above=True)),
    "seed": integer(0, 2**31 - 1),  # NumPy's seeds end at 2^32, and each process adds its rank
    "mixed_precision": optional(_precision),
    "restore_best": flag,
    "trackers": _names,
    "log_every": integer(1),
    "checkpoint_every": integer(1),
    "diagnose": flag,
    "keep_weights_every": optional(integer(1)),
    "progress": flag,
}
