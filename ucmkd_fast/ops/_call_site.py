"""Warnings at the line of code that called this package, however deep inside it they arise."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

_OURS = tuple(str(Path(file).parent) + os.sep for file in (Path(__file__).parent, torch.__file__))


class CallSite(NamedTuple):
    """A line of code."""

    file: str
    line: int


_BACKWARD = CallSite("<backward of sinkhorn>", 1)  # a thread of autograd runs none of the caller's lines
_shown: dict[tuple[CallSite, str], dict[Any, Any]] = {}


def call_site() -> CallSite:
    """The innermost line that is neither ours nor torch's."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_OURS) or "torchinductor" in frame.f_code.co_filename:
        if frame.f_back is None:
            return _BACKWARD
        frame = frame.f_back
    return CallSite(frame.f_code.co_filename, frame.f_lineno)


def warn(text: str, category: type[Warning], site: CallSite, kind: str) -> None:
    """Warn as Python's filters say, which are told that all texts of one kind at one line are the same.

    (They compare texts, and one that names the error of its call would be shown in every step of a loop.)
    """
    registry = _shown.setdefault(
        (site, kind), {}
    )  # "version", and a text that was shown and need not be again
    key = text, category, site.line
    if shown := len(registry) > 1:
        registry[key] = True
    warnings.warn_explicit(text, category, site.file, site.line, registry=registry)
    if shown and len(registry) > 2:
        del registry[key]
