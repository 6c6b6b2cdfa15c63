"""What is said on a terminal. The only module that uses rich, so that nothing is ever read as its markup.

Text is shown as it stands: brackets, ``:names:`` and backslashes mean nothing, control characters are made visible
(`ucmkd_fast.text.visible`). What is to be bold or coloured is said by `styled`, never inside a text.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import IO, NamedTuple

from rich import box
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
from rich.table import Table
from rich.text import Text

from .text import visible


class Styled(NamedTuple):
    """A text in a style of rich's, such as "bold" or "red"."""

    text: str
    style: str


Part = str | Styled


def bold(text: str) -> Styled:
    """The text in bold."""
    return Styled(text, "bold")


@dataclass(frozen=True)
class Row:
    """A row of a table; ``ends`` draws a line under it."""

    cells: Sequence[Part]
    dim: bool = False
    ends: bool = False


class Terminal:
    """Where a command talks.

    Args:
        stderr: to standard error instead of standard output.
        file: somewhere else.
        width: characters in a line; None: the terminal's, or 80.
    """

    def __init__(self, *, stderr: bool = False, file: IO[str] | None = None, width: int | None = None):
        self._console = Console(
            stderr=stderr, file=file, width=width, markup=False, emoji=False, highlight=False
        )

    @property
    def is_terminal(self) -> bool:
        """Whether somebody sees it."""
        return self._console.is_terminal

    def say(self, *parts: Part, style: str = "", wrap: bool = True) -> None:
        """A line of the parts one after the other; nothing: an empty line.

        Args:
            parts: texts.
            style: of all of it.
            wrap: break it between words at the terminal's width; False for what is to be copied.
        """
        self._console.print(_text(parts), style=style or None, soft_wrap=not wrap)

    def table(self, titles: Sequence[str], rows: Iterable[Row]) -> None:
        """A table: a column of names, broken where there is no room, and columns of numbers."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        for i, title in enumerate(titles):
            table.add_column(_text([title]), justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
        for row in rows:
            cells = [_text([cell]) for cell in row.cells]
            table.add_row(*cells, style="dim" if row.dim else None, end_section=row.ends)
        self._console.print(table)

    def facts(self, rows: Iterable[tuple[str, Sequence[Part]]]) -> None:
        """Names in bold, and beside each what there is to say of it."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, parts in rows:
            table.add_row(_text([name]), _text(parts))
        self._console.print(table)

    def status(self, text: str) -> AbstractContextManager[object]:
        """While the context lasts, what is being done now; on a terminal only."""
        spinner = "line" if self._console.options.ascii_only else "dots"
        return self._console.status(_text([text]), spinner=spinner)


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "")


class Bar:
    """A progress bar: what is done of all, the time left, and a note. A context manager.

    Args:
        terminal: where.
        title: to the left of it.
        total: steps.
        done: before.
        rate: steps per second beside it.
        keep: leave it there when all is done.
        silent: draw nothing.
    """

    def __init__(
        self,
        terminal: Terminal,
        title: str,
        total: int,
        done: int = 0,
        *,
        rate: bool = False,
        keep: bool = False,
        silent: bool = False,
    ):
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=40 if keep else 20),
            MofNCompleteColumn(),
            *([_Rate()] if rate else []),
            TimeRemainingColumn(elapsed_when_finished=not keep),
            TextColumn("{task.fields[note]}", markup=False),
            console=terminal._console,
            transient=not keep,
            disable=silent,
        )
        self._task = self._progress.add_task(visible(title), total=total, completed=done, note="")

    def advance(self, steps: int = 1) -> None:
        """So many more are done."""
        self._progress.advance(self._task, steps)

    def note(self, text: str) -> None:
        """Show a line of text beside the bar."""
        self._progress.update(self._task, note=visible(text))

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()


def _text(parts: Iterable[Part]) -> Text:
    pieces = [part if isinstance(part, Styled) else Styled(part, "") for part in parts]
    return Text.assemble(*((visible(text), style) for text, style in pieces))


#: What ASCII has for the characters of our own that an old terminal may lack.
_ASCII = {
    "±": "+-",
    "•": "*",
    "…": "...",
    "≤": "<=",
    "·": "*",
    "τ": "tau",
    "₁": "1",
    "×": "x",
    "–": "-",
    "’": "'",
}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(
        _ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking
    ), error.end


def write_what_can_be_written() -> None:
    """Let stdout and stderr write ASCII for characters that their encoding lacks, where else they would raise."""
    codecs.register_error("ucmkd", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a stand-in may have none
        if reconfigure is not None:
            reconfigure(errors="ucmkd")
