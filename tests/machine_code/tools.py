"""A kernel's source to the text of its machine code."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuda_compiler import CSRC, nvcc, register_use

PACKAGE = "nvidia-cuda-nvdisasm"
MISSING = f"no nvdisasm here: it comes with the CUDA toolkit, or pip install {PACKAGE}"


def nvdisasm() -> str | None:
    """The disassembler: on the path, or in the folder of its Python package."""
    if found := shutil.which("nvdisasm"):
        return found
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(folder).glob("*/bin/nvdisasm*")):
            return str(path)
    return None


@contextmanager
def disassembled(
    source: Path, architecture: str, include: Path = CSRC
) -> Iterator[tuple[Iterator[str], dict[str, int]]]:
    """The lines of nvdisasm for one file, each instruction with its place in the sources; registers per kernel."""
    tool = nvdisasm()
    if tool is None:
        raise FileNotFoundError(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / f"{source.stem}.cubin"
        options = [f"-arch=sm_{architecture}", "-lineinfo", "-cubin", "-Xptxas", "-v"]
        use = register_use(nvcc(source, cubin, *options, include=include))
        registers = {mangled: on[architecture]["registers"] for mangled, on in use.items()}
        process = subprocess.Popen([tool, "-c", "-gi", str(cubin)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout as lines:
            yield lines, registers
        if process.wait():
            raise RuntimeError(f"{tool} could not read {source.name} for sm_{architecture}")
