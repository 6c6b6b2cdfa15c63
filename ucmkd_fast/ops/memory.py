"""How much memory a call may take: what is asked for, or a quarter of what is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from . import checks

_SMALL = 64 << 20  # bytes that are not worth asking the system about


CPU = torch.device("cpu")


def free_memory(device: torch.device = CPU) -> int:
    """Bytes that this process may still take.

    Of the machine, and of its control group where it has a limit; of a GPU what torch has not given out: that is
    known here, and asks nothing of the device.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                free = int(line.split()[1]) << 10
    except OSError:
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(free, 0)


def dense_bytes(n: int, m: int, itemsize: int, gradient: bool) -> int:
    """What the matrices of a dense call take: the cost and the plan, with a gradient a third one."""
    return (3 if gradient else 2) * n * m * itemsize


def worth_asking(n: int, m: int, itemsize: int, budget: int | None) -> bool:
    """Whether `needs_panels` could say yes: there is a budget, or the matrices are large."""
    return budget is not None or dense_bytes(n, m, itemsize, True) > _SMALL


def needs_panels(
    n: int, m: int, itemsize: int, gradient: bool, budget: int | None, device: torch.device = CPU
) -> bool:
    """Whether the matrices do not fit ``budget`` bytes, by default a quarter of the free memory."""
    need = dense_bytes(n, m, itemsize, gradient)
    if budget is None:
        return need > _SMALL and need > free_memory(device) // 4
    return need > checks.count_at_least_one("memory_budget", budget)


def panel_rows(n: int, m: int, itemsize: int, budget: int | None, device: torch.device = CPU) -> int:
    """Rows of a panel: two of them in a quarter of the budget, and no more than is of use.

    Raises:
        MemoryError: not even four rows fit.
    """
    room = free_memory(device) // 4 if budget is None else budget
    rows = min(room // 8, _PANEL_BYTES[device.type]) // (m * itemsize)
    if rows < 4:
        raise MemoryError(
            f"memory_budget must hold panels of at least four rows, {32 * m * itemsize} bytes here, got {room}"
        )
    return min(n, rows // 4 * 4)


# What the caches like; on a GPU a matrix product that reads all of y for a few rows would wait for memory. (Not tuned
# on a GPU yet.)
_PANEL_BYTES = {"cpu": 16 << 20, "cuda": 128 << 20}
