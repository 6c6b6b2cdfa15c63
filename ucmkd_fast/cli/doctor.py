"""``ucmkd doctor``."""

from __future__ import annotations

import typer

from .terminal import AsJson, console, print_json


def doctor(as_json: AsJson = False) -> None:
    """What was built, what was found, and whether the ops compute what they should."""
    from ..doctor import examine, show

    report = examine()
    if as_json:
        print_json(report)
    else:
        show(report, console(False))
    if not report["healthy"]:
        raise typer.Exit(1)
