"""What the loops of the kernels were to take, on sm_90 in float32, and why some take more.

Instructions per element and iteration are those of the kernel that runs at that size on an H100, averaged over the row
loop with its group sums and the guard of the range.
"""

from __future__ import annotations

from typing import Any

ARCHITECTURE = "90"
BY_SIZE = {
    "forward": {1024: 20, 2048: 16, 4096: 12, 8192: 12, 16384: 12, 32768: 12},
    "adjoint": {1024: 24, 2048: 19, 4096: 15, 8192: 15, 16384: 15, 32768: 15},
}
OF_A_WARP = {"small forward": 220, "small adjoint": 220}  # N = 64
OF_A_LOGIT = 20  # both directions together

# What a target is not met for. A line of this that is no longer needed is an error.
WHY_NOT = {
    "forward, N = 4,096": "rows are kept or pass through, and having both ways to load one costs two instructions per "
    "element; the kernel that keeps none takes 12.8 and reads all of the cost each time",
    "forward, N = 8,192": "the time is that of reading the cost: 96 % of a copy, measured",
    "forward, N = 32,768": "entries do not stay in registers: a row is read, and its exponentials are taken, twice",
    "small adjoint, N = 64": "it makes dC as well: six multiply-adds per element where the forward has two; measured, "
    "it takes 0.652 us where the forward takes 0.515",
    "label, both directions": "the backward takes the forward's sums once more, as nothing of a row is stored; "
    "measured, the forward runs at 90 % of a copy, and the backward takes what three passes over memory take",
}

# Of a hundred instructions of a loop, so many may be of registers that were spilled.
MOST_SPILLED = 5
WHY_SPILLED = "of threads that own eight columns or more: addresses and bounds that are needed once per trip"


def kernel_at(table: dict[str, Any], way: str, size: int) -> str:
    """The kernel that runs at a size, by its readable name."""
    plan = table["plans"][str(size)]
    if plan["regime"] == "registers":
        rows = 4 if size <= 32 else 8 if size <= 64 else 16
        columns = 1 if size <= 32 else 2 if size <= 64 else 4
        name = f"sinkhorn::small_{way}_kernel<{rows}, {columns}"
        return f"{name}, true>" if way == "forward" else f"{name}>"
    own = plan[way]
    shape = (
        f"<float, {own['quads']}, {own['rows']}, {own['keeps']}, {str(plan['regime'] == 'cluster').lower()}"
    )
    return (
        f"sinkhorn::owned_kernel{shape}>"
        if way == "forward"
        else f"sinkhorn::owned_adjoint_kernel{shape}, false>"
    )


def per_unit(table: dict[str, Any], title: str, kernel: str, kind: str = "instructions") -> float:
    figures = table["families"][title]["kernels"][kernel][ARCHITECTURE]
    return figures.get(kind, 0) / figures["units"]


def rows_of_targets(table: dict[str, Any]) -> list[dict[str, Any]]:
    """What each target is of, the limit, what was found, and why it is not met."""
    rows = []

    def add(what: str, unit: str, limit: float, found: float) -> None:
        row = {"what": what, "unit": unit, "limit": limit, "found": found}
        if found > limit:
            row["why_not"] = WHY_NOT.get(what, "")
        rows.append(row)

    for way, limits in BY_SIZE.items():
        for size, limit in limits.items():
            found = per_unit(table, way, kernel_at(table, way, size))
            add(f"{way}, N = {size:,}", "instructions per element", limit, found)
    for title, limit in OF_A_WARP.items():
        found = per_unit(table, title, kernel_at(table, title.split()[1], 64))
        add(f"{title}, N = 64", "instructions per warp and iteration", limit, found)
    kernel = "label_transport::warp_kernel<float, 4, 8>"
    found = sum(per_unit(table, f"label, {way}", kernel) for way in ("forward", "backward"))
    add("label, both directions", "instructions per logit", OF_A_LOGIT, found)
    return rows
