"""``ucmkd bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import AsJson, console, print_json


def bench(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to measure; everything where nothing is named. --list tells.", show_default=False
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few rounds.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Say what can be measured.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="A JSON file; subjects that it holds already are replaced.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time the losses against other libraries on this machine; they must agree first."""
    from dataclasses import asdict

    from ..bench import SUBJECTS, rows_of
    from ..bench.harness import check_output, machine, save, table
    from ..extras import need
    from ..ops.checks import choice
    from ..terminal import bold

    out = console(as_json)
    if show_list:
        for name, meaning in SUBJECTS.items():
            console(False).say(f"{name:16s} {meaning}", wrap=False)
        return
    chosen = list(dict.fromkeys(subjects or SUBJECTS))
    for name in chosen:
        choice("subject", name, list(SUBJECTS))
    for package in ("ot", "geomloss"):
        need(package)
    if output is not None:
        check_output(output)  # before minutes of measuring
    found: dict[str, list] = {}
    for name in chosen:
        out.say(bold(name), f": {SUBJECTS[name]}")
        found[name] = []
        for row in rows_of(name)(quick):
            for line in table([row]).splitlines():
                out.say(line, wrap=False)
            found[name].append(asdict(row))
            if output is not None:  # row by row: an interrupted run keeps what it measured
                save(output, name, found[name])
    if as_json:
        print_json({"machine": machine(), "subjects": found})
