"""What a run's method is: its name, its options and how its teacher's samples are drawn."""

from __future__ import annotations

import inspect
from typing import Any

from ..config import check_keys
from ..methods import Method, method_class


def method_settings(name: str, preset: str, options: dict[str, Any]) -> dict[str, Any]:
    """The method's name and options, with the preset among them where the method has presets."""
    known = list(inspect.signature(method_class(name)).parameters)
    check_keys(options, known, f"option of method {name!r}")
    if "preset" in known:
        return {"name": name, "options": {"preset": preset, **options}}
    if preset != "paper":
        raise ValueError(f"method {name!r} has no presets, got preset={preset!r}")
    return {"name": name, "options": dict(options)}


def settled_draw(method: Method, asked: str | None) -> str:
    """How teacher samples are drawn: as asked, or else as the method needs."""
    draw = asked or next(iter(method.required_draw), "independent")
    method.check_draw(draw)
    return draw
