"""All runs of the demo, several at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..compare import pool
from .settings import CONTENDERS, Contender, DemoSettings
from .student import Outcome, Portrait, train_student
from .task import Task

Run = tuple[int, int]  # seed, place in CONTENDERS
Result = tuple[Outcome, Portrait | None]  # the portrait at seed 0 only


def run_all(
    task: Task, settings: DemoSettings, on_done: Callable[[Contender, int], None]
) -> tuple[list[Outcome], dict[str, Portrait]]:
    """Every contender at every seed.

    Args:
        task: the task.
        settings: the demo's.
        on_done: called after each run, with what ran.

    Returns:
        Outcomes, by seed and then in the contenders' order; the portraits of seed 0 by the contender's key.

    Raises:
        ChildProcessError: a process ended without an answer.
    """
    runs = [(seed, place) for seed in range(settings.seeds) for place in range(len(CONTENDERS))]
    results: dict[Run, Result] = {}
    for run, result in pool.run_all(_prepare, (task.pack(), settings), runs, settings.jobs):
        results[run] = result
        on_done(CONTENDERS[run[1]], run[0])
    outcomes = [results[run][0] for run in runs]
    portraits = {outcome.key: portrait for outcome, portrait in results.values() if portrait is not None}
    return outcomes, portraits


def _prepare(shared: tuple[dict[str, Any], DemoSettings]) -> Callable[[Run], Result]:
    packed, settings = shared
    task = Task.unpack(packed)

    def train(run: Run) -> Result:
        seed, place = run
        outcome, portrait = train_student(task, CONTENDERS[place], settings, seed)
        return outcome, portrait if seed == 0 else None

    return train
