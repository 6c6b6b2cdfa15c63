"""Loads the compiled module and tells it how many threads it may use."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from . import processors

try:
    from . import _C
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError(
        "ucmkd_fast._C, the compiled module, is missing or does not load; "
        "install the package with `pip install .` (a C++17 compiler is all that it needs)"
    ) from error


def _torch_cpu_library() -> ctypes.CDLL | None:
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).exists():
            try:
                return ctypes.CDLL(str(folder / name))
            except OSError:
                return None
    return None


def use_threads(limit: int | None = None, **settings: float) -> bool:
    """Let kernels use as many threads as torch says, within ``limit``, by default what this process may use.

    Tests pass ``least_work=0``: helpers in every call (``ThreadSettings`` of csrc/core/parallel.h). False where this
    torch does not export its pool: kernels then run in the calling thread.
    """
    library = _torch_cpu_library()
    try:
        run, count = (
            ctypes.cast(getattr(library, name), ctypes.c_void_p).value
            for name in ("torch_parallel_for", "torch_get_num_threads")
        )
    except AttributeError:
        run = count = None
    if run is None or count is None:
        use_no_threads()
        return False
    _C.set_threads(run, count, limit or processors.usable(), **settings)
    return True


def use_no_threads() -> None:
    """Run kernels in the calling thread only."""
    _C.set_threads(0, 0, 1)


threads_from_torch = use_threads()
# The helpers of csrc/core/parallel.cpp do not survive a fork; in the child calls would look for them in vain.
os.register_at_fork(after_in_child=use_no_threads)

_info = _C.build_info()
if _info["cpu_level"] is None:
    raise ImportError(
        f"{_info['cpu_level_error']}: UCMKD_CPU_LEVEL={os.environ.get('UCMKD_CPU_LEVEL')!r}, "
        f"usable here: {', '.join(_info['cpu_levels_usable'])}"
    )
