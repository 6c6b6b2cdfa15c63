"""Settings as nested mappings of plain values: files that build on others, and changes from the command line."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import kind, parse_yaml, read_yaml

_FROM = "from"


def load_settings(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, with every ``from:`` in it followed.

    A mapping with the key ``from: other.yaml`` (or a list of such) is that file's mapping, found beside
    this one, with the mapping's own keys laid over it.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: not YAML, not a mapping, or files that build on each other in a circle.
    """
    return _load(path.resolve(), ())


def _load(path: Path, trail: tuple[Path, ...]) -> dict[str, Any]:
    if path in trail:
        raise ValueError(f"{path} builds on itself: {' -> '.join(p.name for p in (*trail, path))}")
    values = read_yaml(path)
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must hold a mapping of names to values, got {kind(values)}")
    followed = _follow(values, path, (*trail, path))
    assert isinstance(followed, dict)
    return followed


def _follow(value: Any, path: Path, trail: tuple[Path, ...]) -> Any:
    if isinstance(value, list):
        return [_follow(one, path, trail) for one in value]
    if not isinstance(value, Mapping):
        return value
    merged: dict[str, Any] = {}
    sources = value.get(_FROM, [])
    for source in [sources] if isinstance(sources, str) else sources:
        merged = merge(merged, _load((path.parent / source).resolve(), trail))
    own = {key: _follow(one, path, trail) for key, one in value.items() if key != _FROM}
    return merge(merged, own)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``: mappings in both are merged, anything else is replaced.

    A mapping with another ``name`` replaces the one it is laid over: options belong to a name.
    """
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        old = merged.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("name") in (None, old.get("name"))
        ):
            merged[key] = merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with values at dotted paths (``student.data.labels_per_class``) set; paths may be new."""
    changed = copy.deepcopy(dict(values))
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = changed
        for parent in parents:
            inner = place.get(parent)
            if isinstance(inner, str):  # a name alone, about to get options
                inner = {"name": inner}
            if inner is None:
                inner = {}
            if not isinstance(inner, dict):
                raise ValueError(f"{path}: {parent} is no mapping but {kind(inner)}")
            place[parent] = inner
            place = inner
        place[last] = copy.deepcopy(value)
    return changed


def read_changes(arguments: Sequence[str]) -> dict[str, Any]:
    """Changes from the command line, each ``key.path=value`` with the value in YAML.

    Raises:
        ValueError: an argument that is not of this form.
    """
    changes = {}
    for argument in arguments:
        path, equals, text = argument.partition("=")
        if not equals or not all(path.split(".")):
            raise ValueError(f"expected a change key.path=value, such as train.epochs=5, got {argument!r}")
        try:
            changes[path] = parse_yaml(text)
        except ValueError as error:
            raise ValueError(f"{argument!r}: the value is not valid YAML: {error}") from error
    return changes


@contextmanager
def at(where: str) -> Iterator[None]:
    """Errors inside become ValueErrors that begin with the place in the settings."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
