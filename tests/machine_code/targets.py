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
LABEL_KERNEL = "label_transport::warp_kernel<float, 4, 8>"  # 1,024 logits

# What a target is not met for. A line of this that is no longer needed is an error.
WHY_NOT = {
    "forward, N = 4,096": "having both ways to load a row, kept or not, costs 1.5 instructions per element; the kernel "
    "that keeps none takes 12.8: predicted time decides (27 us against 18), though 26.3 was measured with kept rows",
    "forward, N = 8,192": "the time is that of reading the cost: 96 % of a copy, measured",
    "forward, N = 32,768": "entries do not stay in registers: a row is read, and its exponentials are taken, twice",
    "forward, spills in a trip": "from 4,096 on there are no registers for addresses and bounds that are needed once "
    "per trip, at 16,384 for two entries, at 32,768 for six sums: 2, 7, 11 and 30 of 459, 404, 334, 820 instructions",
    "adjoint, spills in a trip": "likewise: 2, 1, 6 and 32 of 418, 346, 297 and 884 instructions",
    "forward, exponentials": "at 32,768, where they are taken twice; one at all other sizes",
    "adjoint, exponentials": "likewise",
    "small adjoint, N = 64": "it makes dC as well: six multiply-adds per element where the forward has two; measured, "
    "it takes 0.652 us where the forward takes 0.515",
    "label, both directions": "the backward takes the forward's sums once more, as nothing of a row is stored; "
    "measured, the forward runs at 90 % of a copy, and the backward takes what three passes over memory take",
}

# Of a hundred instructions of a family's loops, so many may be of spilled registers; of all others none.
MOST_SPILLED = {
    "forward": 5,  # where threads own eight columns or more
    "adjoint": 5,  # likewise
    "forward, unbalanced": 13,  # of 16,384 columns; 4 of fewer
    "adjoint, unbalanced": 6,  # of 32,768
    "small adjoint": 2,  # of the largest
}


def at_size(table: dict[str, Any], way: str, size: int) -> dict[str, int]:
    """The figures of the kernel that runs at a size."""
    plan = table["plans"][str(size)][way]
    return table["families"][plan["family"]]["kernels"][plan["kernel"]][ARCHITECTURE]


def _per_unit(figures: dict[str, int]) -> float:
    return figures["instructions"] / figures["units"]


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
            add(
                f"{way}, N = {size:,}",
                "instructions per element",
                limit,
                _per_unit(at_size(table, way, size)),
            )
        loops = [at_size(table, way, size) for size in limits]
        narrow = sum(loop.get(f"global load {width}", 0) for loop in loops for width in (1, 2, 4, 8))
        add(f"{way}, loads of less than 16 bytes", "of a thread, from global memory", 0, narrow)
        add(
            f"{way}, exponentials",
            "per element, the most",
            1,
            max(one["exponential"] / one["units"] for one in loops),
        )
        add(f"{way}, spills in a trip", "the most", 0, max(one.get("spill", 0) for one in loops))
    for title, limit in OF_A_WARP.items():
        figures = at_size(table, title.removeprefix("small "), 64)
        add(f"{title}, N = 64", "instructions per warp and iteration", limit, _per_unit(figures))
    found = 0.0
    for way in ("forward", "backward"):
        found += _per_unit(table["families"][f"label, {way}"]["kernels"][LABEL_KERNEL][ARCHITECTURE])
    add("label, both directions", "instructions per logit", OF_A_LOGIT, found)
    return rows
