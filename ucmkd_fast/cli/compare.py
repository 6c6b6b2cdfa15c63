"""``ucmkd compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .running import DryRun, Resume
from .terminal import AsJson, console, print_json


def compare(
    experiment: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of one that comes along, such as paper/table6.", show_default=False
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to it: key.path=value, such as seeds=2.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for runs and results.", show_default="runs/compare/NAME")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs at the same time, one thread each.", show_default="one a core; with a GPU, one"
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Add to each method a teacher of permuted classes, an untrained one, and self-training.",
        ),
    ] = False,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Methods x settings x seeds: the same split, weights and batches for all, differences with their errors."""
    from ..compare import Experiment, run_experiment
    from ..compare.files import find_experiment
    from ..compare.screen import progress, say_plan
    from ..compare.tables import show
    from ..run.settings import read_changes

    path = find_experiment(experiment)
    wanted = Experiment.load(path, read_changes(changes or []), controls=controls)
    folder = output or Path("runs/compare") / experiment.removesuffix(".yaml").rpartition("/")[2]
    out = console(as_json)
    if dry_run:
        found = say_plan(out, wanted, folder)
        if as_json:
            print_json(found)
        if found["missing"]:
            raise typer.Exit(1)
        return
    with progress(out, wanted, folder) as on_done:
        comparison = run_experiment(wanted, folder, jobs=jobs, resume=resume, on_done=on_done)
    if as_json:
        print_json(comparison.plain())
    else:
        show(out, comparison)
        out.say()
        out.say(f"Written to {folder}: results.json, table.md, and every run", wrap=False)
