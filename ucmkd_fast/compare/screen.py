"""What a comparison says before and while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..run.plan import plan
from ..terminal import Bar, Terminal, bold
from .experiment import Experiment
from .job import OnDone, standing


def say_plan(terminal: Terminal, experiment: Experiment, folder: Path) -> dict[str, Any]:
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
    terminal.say(bold(experiment.title or "Comparison"))
    terminal.say(f"methods: {', '.join(methods)}; differences to {experiment.baseline}")
    for setting, count in steps.items():
        steps_said = "data missing" if count is None else f"{count:,} steps per run"
        terminal.say(f"setting {setting}: {steps_said}")
    seeds = ", ".join(map(str, experiment.seeds))
    terminal.say(f"seeds: {seeds}; {now.there + now.waiting} runs, {now.there} of them there")
    for sentence in missing:
        terminal.say(bold("missing"), f": {sentence}", wrap=False)
    return {
        "experiment": experiment.plain(),
        "runs": now.there + now.waiting,
        "finished": now.there,
        "steps": steps,
        "missing": list(missing),
    }


@contextmanager
def progress(terminal: Terminal, experiment: Experiment, folder: Path) -> Iterator[OnDone]:
    """A bar over all runs; gives the function to call after each."""
    now = standing(experiment, folder)
    with Bar(terminal, "Runs", now.there + now.waiting, now.there) as bar:

        def on_done(what: str) -> None:
            bar.note(what)
            if not what.startswith("teacher of "):
                bar.advance()

        yield on_done
