"""What tests that compile kernels with nvcc share."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
ARCHITECTURES = ("80", "90")

_KERNEL = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores")
_REGISTERS = re.compile(r"Used (\d+) registers")

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None or shutil.which("c++filt") is None, reason="no nvcc, or no c++filt, here"
)


def compiler() -> str:
    """Which release of nvcc this is: another one shares out registers in its own way."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"release [\d.]+, V[\d.]+", said)[0]


def nvcc(source: Path, target: Path, *arguments: str, include: Path = CSRC) -> str:
    """Compile one file as the library is compiled; returns what the compiler said."""
    command = ["nvcc", "-std=c++17", "-O3", *arguments, f"-I{include}", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return done.stdout + done.stderr


def register_use(said: str) -> dict[str, dict[str, dict[str, int]]]:
    """Mangled name -> architecture -> registers and spilled bytes, of what ``nvcc -Xptxas -v`` said."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    use: dict[str, int] = {}
    for line in said.splitlines():
        if match := _KERNEL.search(line):
            use = found.setdefault(match[1], {}).setdefault(match[2], {})
        elif match := _SPILL.search(line):
            use["spilled"] = int(match[2])
        elif match := _REGISTERS.search(line):
            use["registers"] = int(match[1])
    return found


def readable(mangled: set[str]) -> dict[str, str]:
    """The kernels' names without their arguments: ``sinkhorn::forward_kernel<float, true>``."""
    order = sorted(mangled)
    names = subprocess.run(
        ["c++filt", *order], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    short = []
    for name in names:
        name = re.sub(r"\(anonymous namespace\)::|ucmkd::|\((bool|int)\)", "", name)
        name = name.removeprefix("void ").replace("> >", ">>")
        depth, end = 0, len(name)
        for at, letter in enumerate(name):
            depth += (letter == "<") - (letter == ">")
            if letter == "(" and depth == 0:
                end = at
                break
        short.append(name[:end])
    return dict(zip(order, short, strict=True))
