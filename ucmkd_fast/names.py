"""Names that people type: the nearest that there is, for those that are not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_SHORT = 4  # letters; swapped ones leave less in common than `difflib` asks for


def nearest(name: Any, known: Iterable[Any]) -> str | None:
    """The known name that was probably meant: whatever the case, ``-`` or ``_``, and a few wrong letters; or None."""
    plain = _plain(name)
    by_plain = {_plain(one): str(one) for one in reversed(list(known))}
    if plain in by_plain:
        return by_plain[plain]
    if 1 < len(plain) <= _SHORT:
        for one in by_plain:
            if sorted(one) == sorted(plain):
                return by_plain[one]
    near = difflib.get_close_matches(plain, by_plain, n=1)
    return by_plain[near[0]] if near else None


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """`` (did you mean 'ucmkd'?)``, to end a message with; empty where no known name is near."""
    near = nearest(name, known)
    return "" if near is None else f" (did you mean {near!r}?)"


def _plain(name: Any) -> str:
    return str(name).casefold().strip().replace("_", "-").replace(" ", "-")
