"""Names of classes: which ones two sides have in common, and which only look alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_SHOWN = 8  # names in a message


def check_distinct(classes: Sequence[str], where: str) -> None:
    """Raise ValueError where two names of one data set are equal, or look alike: é as one character and as two."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.get(_looks(name))
        if other == name:
            raise ValueError(f"{where}: class {name!r} is named twice")
        if other is not None:
            raise ValueError(f"{where}: two classes look alike: {_apart(other, name)}; give them one name")
        seen[_looks(name)] = name


def check_same_names(
    one: Sequence[str], other: Sequence[str], sides: tuple[str, str] = ("the student", "the teacher")
) -> None:
    """Raise ValueError unless two sides name the same classes, under the same labels.

    The message says which names only one side has, and shows what differs between names that look alike.
    """
    if list(one) == list(other):
        return
    first, second = sides
    in_one, in_other = set(one), set(other)
    mine = [name for name in one if name not in in_other]
    theirs = [name for name in other if name not in in_one]
    if not mine and not theirs:
        label = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        if label is None:
            raise ValueError(
                f"{first} lists {len(one)} classes and {second} {len(other)}: a name is in one of the lists twice"
            )
        raise ValueError(
            f"{first} and {second} must list the same classes in the same order: label {label} is {one[label]!r} to "
            f"{first}, {other[label]!r} to {second}"
        )
    said = [
        f"only {side} has {_listed(names)}"
        for side, names in zip(sides, (mine, theirs), strict=True)
        if names
    ]
    by_look = {_looks(name, case=False): name for name in theirs}
    alike = [
        (name, by_look[_looks(name, case=False)]) for name in mine if _looks(name, case=False) in by_look
    ]
    hints = [_apart(a, b) for a, b in alike[:_SHOWN]]
    hint = f" ({'; '.join(hints)})" if hints else ""
    raise ValueError(f"{first} and {second} must name the same classes: {'; '.join(said)}{hint}")


def _listed(names: Sequence[str]) -> str:
    said = ", ".join(repr(name) for name in names[:_SHOWN])
    return said if len(names) <= _SHOWN else f"{said} and {len(names) - _SHOWN} more"


def _looks(name: str, *, case: bool = True) -> str:
    """Equal for names that a reader cannot tell apart: composed alike, without invisible characters, one blank each."""
    visible = "".join(c for c in unicodedata.normalize("NFC", str(name)) if unicodedata.category(c) != "Cf")
    plain = " ".join(visible.split())
    return plain if case else plain.casefold()


def _apart(a: str, b: str) -> str:
    """Two names that look alike, and what differs."""
    if _looks(a) != _looks(b):
        return f"{a!r} and {b!r} differ in upper and lower case"
    if a.isascii() and b.isascii():
        return f"{a!r} and {b!r} differ in blanks"
    return f"{a!r} is {_spelt(a, b)}, {b!r} is {_spelt(b, a)}"


def _spelt(name: str, other: str) -> str:
    """The code points of a name where it differs from the other: "U+0065 U+0301"."""
    start = next(
        (k for k, (a, b) in enumerate(zip(name, other, strict=False)) if a != b), min(len(name), len(other))
    )
    shortest = min(len(name), len(other)) - start
    end = next((k for k in range(shortest) if name[-1 - k] != other[-1 - k]), max(0, shortest))
    part = name[start : len(name) - end]
    return "spelt " + " ".join(f"U+{ord(c):04X}" for c in part) if part else "spelt without that"
