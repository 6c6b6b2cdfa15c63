"""What a command says on stderr beside its own output: errors, warnings, and how to go on after Ctrl-C."""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..text import visible

#: The library's errors name its arguments; the command line has other words for some.
_WORDS = (
    (r"\b(resume|overwrite)=True\b", r"--\1"),
    (r"\bjobs=(\d+)", r"--jobs \1"),
    (r"\bper_class=(\d+)", r"labels_per_class=\1"),
    (r"\bucmkd_fast\.models\.with_width\(student, (\d+)\)", r"student.model.width=\1"),
    (r"\bwith_width gives", "student.model.width gives"),
    (r"\bstudent_unlabelled\b", "samples without labels (student.data.labels_per_class leaves some)"),
)


def in_our_words(message: str) -> str:
    """A sentence of the library in the words of the command line."""
    for ours, theirs in _WORDS:
        message = re.sub(ours, theirs, message)
    return message


def say(message: str) -> None:
    """A sentence on stderr, on one line, in the words of the command line."""
    line = visible(" ".join(in_our_words(message).split()))
    print(f"ucmkd: {line}", file=sys.stderr)


@contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """Warnings without the file and the line that they come from; ``UCMKD_TRACEBACK=1`` leaves them as they are."""

    def show(
        message: Any, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None
    ) -> None:
        say(f"warning: {message}")

    before = warnings.showwarning
    if not os.environ.get("UCMKD_TRACEBACK"):
        warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def after_ctrl_c(arguments: Sequence[str], commands: Iterable[tuple[str, Callable[..., Any]]]) -> str:
    """What to say when a command was stopped: how to go on, of commands that can.

    Args:
        arguments: of the command line.
        commands: every command's name and function.
    """
    asked = next((word for word in arguments if not word.startswith("-")), None)
    function = dict(commands).get(asked or "")
    if function is None or "--dry-run" in arguments:
        return "stopped"
    if "resume" not in inspect.signature(function).parameters:
        return f"stopped; {asked} starts anew when it is called again"
    if "--overwrite" in arguments:
        return "stopped; to go on from there, call it again with --resume in place of --overwrite"
    return "stopped; to go on from there, call it again with --resume"
