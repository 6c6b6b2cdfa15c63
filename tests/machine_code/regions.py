"""Where functions stand in the sources: instructions carry the lines that they are of."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from .sass import Instruction

Region = tuple[str, str]  # a file's name; a function of it, or Struct::function


def lines_of(folder: Path, region: Region) -> list[range]:
    """The lines of every definition of a function in the file of that name below ``folder``."""
    return _lines_of(folder, *region)


@cache
def _lines_of(folder: Path, file: str, function: str) -> list[range]:
    paths = sorted(folder.rglob(file))
    found = [lines for path in paths for lines in _definitions(path.read_text(), function)]
    if not found:
        raise ValueError(
            f"no file {file} below {folder} defines {function}: the loops of the kernels are found by it"
        )
    return found


def _definitions(text: str, function: str) -> list[range]:
    struct, _, name = function.rpartition("::")
    begin, end = _struct(text, struct) if struct else (0, len(text))
    found = []
    for match in re.compile(rf"\b{name}\(").finditer(text, begin, end):
        body = re.compile(r"\s*(?:const\s*)?\{").match(text, _closed(text, match.end() - 1, "()"))
        if body:
            last = _closed(text, body.end() - 1, "{}")
            found.append(range(text.count("\n", 0, match.start()) + 1, text.count("\n", 0, last) + 2))
    return found


def _struct(text: str, name: str) -> tuple[int, int]:
    match = re.search(rf"\b(?:struct|class) {name}\b[^;{{]*\{{", text)
    return (match.end(), _closed(text, match.end() - 1, "{}")) if match else (0, 0)


def _closed(text: str, at: int, pair: str) -> int:
    """Behind the bracket that closes the one at ``at``."""
    depth = 0
    for k in range(at, len(text)):
        depth += (text[k] == pair[0]) - (text[k] == pair[1])
        if depth == 0:
            return k + 1
    raise ValueError(f"no {pair[1]} closes the {pair[0]} at {at}")


def is_of(one: Instruction, folder: Path, regions: tuple[Region, ...]) -> bool:
    """Whether an instruction is of one of these functions, or of what they inlined."""
    return any(
        file == region[0] and line in lines
        for region in regions
        for lines in lines_of(folder, region)
        for file, line in one.places
    )
