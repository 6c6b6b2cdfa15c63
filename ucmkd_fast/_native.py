"""Loads the compiled module and hands it torch's own thread pool."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

try:
    from . import _C
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError(
        "ucmkd_fast._C, the compiled module, is missing or does not load; "
        "install the package with `pip install .` (a C++17 compiler is all that it needs)"
    ) from error

# Metric codes of csrc/cost/kernels.h.
METRIC_CODES: dict[str, int] = {"cosine": 0, "chordal": 1, "l2": 2, "sqeuclidean": 3, "l1": 4}


def _torch_cpu_library() -> ctypes.CDLL | None:
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).exists():
            try:
                return ctypes.CDLL(str(folder / name))
            except OSError:
                return None
    return None


def use_torch_threads() -> bool:
    """Run kernels on torch's pool; False where this torch does not export it (kernels then run serially)."""
    library = _torch_cpu_library()
    try:
        address = ctypes.cast(getattr(library, "torch_get_num_threads"), ctypes.c_void_p).value
    except AttributeError:
        address = None
    _C.set_threads(address or 0, 64)
    return address is not None


def use_no_threads() -> None:
    """Run kernels in the calling thread only."""
    _C.set_threads(0, 1)


threads_from_torch = use_torch_threads()
# torch's pool does not survive a fork: in the child it hangs.
os.register_at_fork(after_in_child=use_no_threads)

_info = _C.build_info()
if _info["cpu_level"] is None:
    raise ImportError(
        f"{_info['cpu_level_error']}: UCMKD_CPU_LEVEL={os.environ.get('UCMKD_CPU_LEVEL')!r}, "
        f"usable here: {', '.join(_info['cpu_levels_usable'])}"
    )
