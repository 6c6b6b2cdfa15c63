"""Builds the CUDA kernels for the execution model with the host compiler; cached by the sources' contents."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = "-std=c++17 -O1 -fPIC -fvisibility=hidden -DUK_MODEL -Wall -Wextra -Wno-unknown-pragmas".split()


def compiler() -> str | None:
    """The host compiler, or None."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")


def load(planted: tuple[str, str, str] | None = None) -> ModuleType:
    """The module; with ``planted`` (file, text, replacement) a build whose kernels have that bug."""
    library = _library(planted)
    # pybind11 keeps modules by their full name: under one name, all builds of a process would be the first of them.
    name = f"{library.name.partition('.')[0]}.cuda_model"
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _library(planted: tuple[str, str, str] | None) -> Path:
    sources = [*sorted(CSRC.rglob("*.cu")), CSRC / "bind" / "cuda.cpp", *sorted(HERE.glob("*.cpp"))]
    headers = sorted(p for folder in (CSRC, HERE) for p in folder.rglob("*.*h"))
    digest = hashlib.sha256(repr((FLAGS, planted, sys.version)).encode())
    for path in sources + headers:
        digest.update(path.read_bytes())
    cache = Path(os.environ.get("UCMKD_MODEL_CACHE", HERE.parents[1] / "build" / "cuda_model"))
    library = cache / f"cuda_model-{digest.hexdigest()[:16]}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _compile(sources, planted, Path(folder)).replace(library)
    return library


def _compile(sources: list[Path], planted: tuple[str, str, str] | None, folder: Path) -> Path:
    csrc = CSRC
    if planted is not None:
        csrc = folder / "csrc"
        shutil.copytree(CSRC, csrc)
        name, text, replacement = planted
        before = (csrc / name).read_text()
        if before.count(text) != 1:
            raise ValueError(
                f"{name} must hold the text to replace once, it is there {before.count(text)} times"
            )
        (csrc / name).write_text(before.replace(text, replacement))
        sources = [csrc / p.relative_to(CSRC) if p.is_relative_to(CSRC) else p for p in sources]
    includes = [f"-I{p}" for p in (csrc, HERE, pybind11.get_include(), sysconfig.get_path("include"))]
    compiler_path = compiler()
    if compiler_path is None:
        raise FileNotFoundError("a C++ compiler is needed, found none")

    def one(item: tuple[int, Path]) -> str:
        number, source = item
        target = str(folder / f"{number}.o")
        _run([compiler_path, *FLAGS, *includes, "-x", "c++", "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(one, enumerate(sources)))
    library = folder / "library.so"
    _run([compiler_path, "-shared", *objects, "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
