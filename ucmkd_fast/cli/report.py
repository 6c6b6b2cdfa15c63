"""``ucmkd report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .running import Changes
from .terminal import AsJson, console, print_json


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    changes: Changes = None,
    part: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    output: Annotated[
        Path | None, typer.Option(help="Folder for the page and its pictures.", show_default="RUN/report")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Where the run's teacher is.", show_default="RUN/teacher"),
    ] = None,
    sample_terms: Annotated[
        str | None,
        typer.Option(
            help="Constants of Theorem 2.7, to show its terms: d=20,s1=4,s2=4,c1=1,c2=1 (and c3=, delta=).",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One HTML page of a finished run: curves, mistakes, transport plan, kappa, features, and the theorem."""
    from ..report.page import gather, write_report
    from ..report.page.page import numbers
    from ..report.sample_terms import Constants
    from ..run.settings import read_changes

    constants = None if sample_terms is None else Constants.read(sample_terms)
    found = gather(
        run, part=part, constants=constants, teacher_folder=teacher, changes=read_changes(changes or [])
    )
    page = write_report(found, output)
    if as_json:
        print_json({**numbers(found), "page": str(page)})
    else:
        console(False).say(f"Written: {page}", wrap=False)
