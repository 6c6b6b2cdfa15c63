"""What a comparison says before and while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..run.plan import plan
from .experiment import Experiment
from .job import OnDone, standing


def say_plan(console: Console, experiment: Experiment, folder: Path) -> dict[str, Any]:
    """What would run, and what is missing for it; data are looked for at the first seed."""
    now = standing(experiment, folder)
    methods = [contender.label for contender in experiment.contenders]
    missing: dict[str, None] = {}  # a set in order
    steps: dict[str, int | None] = {}
    for setting in experiment.settings:
        cells = [c for c in experiment.cells() if c.setting == setting and c.seed == experiment.seeds[0]]
        cell = next((c for c in cells if c.config.needs_teacher), cells[0])
        found = plan(cell.config)
        steps[setting] = found["steps"]
        missing |= dict.fromkeys(found["missing"])
    console.print(f"[bold]{experiment.title or 'Comparison'}[/bold]", highlight=False)
    console.print(f"methods: {', '.join(methods)}; differences to {experiment.baseline}", highlight=False)
    for setting, count in steps.items():
        console.print(
            f"setting {setting}: " + ("data missing" if count is None else f"{count:,} steps a run"),
            highlight=False,
        )
    console.print(
        f"seeds: {', '.join(map(str, experiment.seeds))}; {now.there + now.waiting} runs, {now.there} of them there",
        highlight=False,
    )
    for sentence in missing:
        console.print(f"[bold]missing[/bold]: {sentence}", highlight=False)
    return {
        "experiment": experiment.plain(),
        "runs": now.there + now.waiting,
        "finished": now.there,
        "steps": steps,
        "missing": list(missing),
    }


@contextmanager
def progress(console: Console, experiment: Experiment, folder: Path) -> Iterator[OnDone]:
    """A bar over all runs; gives the function to call after each."""
    now = standing(experiment, folder)
    with Progress(
        TextColumn("Runs"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[last]}"),
        console=console,
        transient=True,
    ) as bars:
        bar = bars.add_task("", total=now.there + now.waiting, completed=now.there, last="")

        def on_done(what: str) -> None:
            bars.update(bar, advance=0 if what.startswith("teacher of ") else 1, last=what)

        yield on_done
