"""Registers and spills of every kernel, from the compiler's own report."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("80", "90")

_KERNEL = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
_NAME = re.compile(r"\d+([a-z]\w*_kernel)I(\w+?)E+v")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores")
_REGISTERS = re.compile(r"Used (\d+) registers")


def report() -> dict[str, dict[str, int]]:
    """Kernel and architecture -> registers and spilled bytes."""
    sources = sorted((ROOT / "csrc").rglob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:

        def one(source: Path) -> str:
            target = Path(folder) / f"{source.parent.name}_{source.stem}.o"
            codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
            command = [
                "nvcc",
                "-std=c++17",
                "-O3",
                *codes,
                "-Xptxas",
                "-v",
                f"-I{ROOT / 'csrc'}",
                "-c",
                str(source),
            ]
            done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr[-4000:])
            return done.stdout + done.stderr

        lines = [line for text in pool.map(one, sources) for line in text.splitlines()]
    found: dict[str, dict[str, int]] = {}
    key = ""
    for line in lines:
        if match := _KERNEL.search(line):
            name = _NAME.search(match[1])
            key = f"{name[1]}<{name[2]}> sm_{match[2]}" if name else f"{match[1]} sm_{match[2]}"
            found[key] = {}
        elif match := _SPILL.search(line):
            found[key]["spilled"] = int(match[2])
        elif match := _REGISTERS.search(line):
            found[key]["registers"] = int(match[1])
    return {k: found[k] for k in sorted(found)}


@pytest.mark.long
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
def test_no_kernel_spills():
    found = report()
    assert found
    for kernel, use in found.items():
        assert use["spilled"] == 0, kernel
        assert use["registers"] <= 255, (kernel, use)
