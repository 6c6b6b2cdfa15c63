"""A progress bar on a terminal; silence elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from ..terminal import Bar, Terminal

_REDRAW = 0.1  # seconds


class ProgressBar:
    """Steps done of all, their rate, the time left and the last epoch's figures. A context manager."""

    def __init__(self, title: str, total: int, done: int, *, visible: bool):
        terminal = Terminal(stderr=True)
        silent = not (visible and terminal.is_terminal)
        self._bar = Bar(terminal, title, total, done, rate=True, keep=True, silent=silent)
        self._waiting, self._last = 0, time.monotonic()

    def advance(self) -> None:
        """One step is done; drawn at most every tenth of a second."""
        self._waiting += 1
        now = time.monotonic()
        if now - self._last > _REDRAW:
            self._draw(now)

    def note(self, text: str) -> None:
        """Show a line of figures beside the bar."""
        self._bar.note(text)
        self._draw(time.monotonic())

    def _draw(self, now: float) -> None:
        self._bar.advance(self._waiting)
        self._waiting, self._last = 0, now

    def __enter__(self) -> ProgressBar:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._draw(time.monotonic())
        self._bar.__exit__(kind, error, trace)
