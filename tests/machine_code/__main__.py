"""Loops of any kernel: python -m machine_code FILE.cu [sm, by default 90] [pattern of kernels' names], from tests/."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cuda_compiler import CSRC, readable

from .flow import Flow
from .sass import counts, functions
from .tools import disassembled


def main(source: str, architecture: str = "90", pattern: str = "") -> None:
    include = CSRC if Path(source).resolve().is_relative_to(CSRC) else Path(source).resolve().parent
    with disassembled(Path(source), architecture, include) as (lines, registers):
        found = functions(lines)
    names = readable(set(found))
    for mangled in sorted(found, key=names.__getitem__):
        if not re.search(pattern, names[mangled]):
            continue
        flow = Flow(found[mangled])
        size = len(found[mangled].instructions)
        print(f"{names[mangled]}: {size} instructions, {registers.get(mangled, '?')} registers")
        for loop in flow.loops:
            way = counts(flow.longest_trip(loop, lambda _: False))
            if way["instructions"] > 8:
                first = next((p for one in flow.instructions(loop) for p in one.places[:1]), None)
                print(f"  {len(loop.inner)} inner, at {first}: {dict(way)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
