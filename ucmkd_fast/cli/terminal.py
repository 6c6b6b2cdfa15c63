"""What commands share: where they talk, and JSON for scripts."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..terminal import Terminal

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]


def console(as_json: bool) -> Terminal:
    """Where a command talks: stdout, or stderr where stdout is for JSON."""
    from ..terminal import Terminal

    return Terminal(stderr=as_json)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
