"""``ucmkd export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .running import Changes
from .terminal import AsJson, console, print_json


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    changes: Changes = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="safetensors, pt2 (torch.export) or onnx; once for each.", show_default="safetensors, pt2"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the files.", show_default="RUN/export")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a finished run's student to files that need no run, each checked for equal outputs on load."""
    from ..export import export_run
    from ..run.settings import read_changes

    done = export_run(run, to or ("safetensors", "pt2"), output, read_changes(changes or []))
    if as_json:
        print_json([{**vars(one), "path": str(one.path)} for one in done])
        return
    out = console(False)
    for one in done:
        same = "the same logits" if not one.difference else f"logits within {one.difference:.1e}"
        out.say(f"{one.path} ({one.bytes:,} bytes): {same} on load", wrap=False)
