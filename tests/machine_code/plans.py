"""Which kernels, and which launch, each size of docs/gpu.md gets on an H100: asked of regime.h itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from cuda_compiler import CSRC

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
H100 = (132, 227 * 1024)  # multiprocessors, bytes of shared memory that a block may ask for
REGIMES = {1: "block", 2: "resident", 3: "sweep", 5: "registers", 6: "cluster"}


def host_compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")


def _kernel(plan: dict[str, Any], way: str, n: int) -> dict[str, str]:
    """The family and the readable name of the kernel of a plan, as with_small_size and with_shape choose it."""
    last = ", true" if way == "forward" else ""
    if plan["regime"] == "registers":
        rows, columns = (4, 1) if n <= 32 else (8, 2) if n <= 64 else (16, 4)
        return {"family": f"small {way}", "kernel": f"sinkhorn::small_{way}_kernel<{rows}, {columns}{last}>"}
    own = plan[way]
    shape = (
        f"float, {own['quads']}, {own['rows']}, {own['keeps']}, {str(plan['regime'] == 'cluster').lower()}"
    )
    name = f"owned_kernel<{shape}>" if way == "forward" else f"owned_adjoint_kernel<{shape}, false>"
    return {"family": way, "kernel": f"sinkhorn::{name}"}


def plans(include: Path = CSRC) -> dict[str, dict[str, Any]]:
    """Size -> regime, blocks, and how each way shares out rows and columns."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "plans"
        source = Path(__file__).with_name("plans.cpp")
        command = [str(host_compiler()), "-std=c++17", f"-I{include}", str(source), "-o", str(program)]
        subprocess.run(command, check=True)
        words = [str(program), *map(str, H100), *map(str, SIZES)]
        lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {}
    for line in lines:
        plan = json.loads(line)
        n, plan["regime"] = plan.pop("n"), REGIMES[plan["regime"]]
        for way in ("forward", "adjoint"):
            plan[way].update(_kernel(plan, way, n))
        found[str(n)] = plan
    return found
