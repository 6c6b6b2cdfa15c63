"""A progress bar on a terminal; silence elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_REDRAW = 0.1  # seconds


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "")


class ProgressBar:
    """Steps done of all, their rate, the time left and the last epoch's figures. A context manager."""

    def __init__(self, title: str, total: int, done: int, *, visible: bool):
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not (visible and console.is_terminal),
        )
        self._task = self._bar.add_task(title, total=total, completed=done, note="")
        self._waiting, self._last = 0, time.monotonic()

    def advance(self) -> None:
        """One step is done; drawn at most every tenth of a second."""
        self._waiting += 1
        now = time.monotonic()
        if now - self._last > _REDRAW:
            self._draw(now)

    def note(self, text: str) -> None:
        """Show a line of figures beside the bar."""
        self._bar.update(self._task, note=text)
        self._draw(time.monotonic())

    def _draw(self, now: float) -> None:
        self._bar.advance(self._task, self._waiting)
        self._waiting, self._last = 0, now

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._draw(time.monotonic())
        self._bar.stop()
