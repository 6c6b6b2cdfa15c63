"""The text of nvdisasm as functions of instructions, and what each instruction is counted as."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_FUNCTION = re.compile(r"\.text\.(\S+):")
_LABEL = re.compile(r"(\.L_x_\d+):")
_LINE = re.compile(r'\s*//## File "([^"]+)", line (\d+)')
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P[T\d]+)\s+)?([A-Z][\w.]*)\s*([^;]*);")

Place = tuple[str, int]  # file name without its folders, line


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``places``: the lines it is of, the innermost first, then where each was inlined."""

    guard: str
    opcode: str
    operands: str
    places: tuple[Place, ...] = ()

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def bytes(self) -> int:
        """What a thread reads or writes by it, where it is one of memory."""
        for part in self.opcode.split(".")[1:]:
            if part in _BYTES:
                return _BYTES[part]
        return 4


_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


@dataclass
class Function:
    """A kernel, or a subroutine of one: instructions, and the labels before them."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def functions(lines: Iterable[str], wanted: re.Pattern[str] | None = None) -> dict[str, Function]:
    """Those whose mangled names match ``wanted``, or all."""
    found: dict[str, Function] = {}
    current: Function | None = None
    places: list[Place] = []
    fresh = True  # no line of the next instruction's has been read
    for line in lines:
        if line.startswith(".text."):
            match = _FUNCTION.match(line)
            assert match is not None, line
            name, current, places, fresh = match[1], None, [], True
            if wanted is None or wanted.search(name):
                current = found[name] = Function(name)
        elif current is None:
            continue
        elif match := _INSTRUCTION.match(line):
            current.instructions.append(
                Instruction(match[1] or "", match[2], match[3].strip(), tuple(places))
            )
            fresh = True
        elif match := _LINE.match(line):
            if fresh:  # the lines above an instruction hold until others come
                places, fresh = [], False
            places.append((Path(match[1]).name, int(match[2])))
        elif match := _LABEL.match(line):
            current.labels[match[1]] = len(current.instructions)
    return found


# What is counted beside all instructions: by opcode, memory by the bytes of a thread.
_MEMORY = {
    "LDG": "global load",
    "LD": "global load",
    "LDGSTS": "global load",
    "STG": "global store",
    "ST": "global store",
    "LDS": "shared load",
    "LDSM": "shared load",
    "STS": "shared store",
}
_OTHERS = {"SHFL": "shuffle", "BAR": "barrier", "LDL": "spill", "STL": "spill", "HMMA": "tensor product"}


def counts(instructions: Iterable[Instruction]) -> Counter[str]:
    """How many there are in all, and of each kind."""
    found: Counter[str] = Counter()
    for one in instructions:
        found["instructions"] += 1
        if one.base in _MEMORY:
            found[f"{_MEMORY[one.base]} {one.bytes}"] += 1
        elif one.base in _OTHERS:
            found[_OTHERS[one.base]] += 1
        elif one.opcode.startswith("MUFU"):
            found["special"] += 1
            if one.opcode.startswith("MUFU.EX2"):
                found["exponential"] += 1
        elif one.base in ("FFMA", "DFMA"):
            found["multiply-add"] += 1
    return found
