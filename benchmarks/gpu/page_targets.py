"""What page.py reads, how it writes figures, and the targets of the GPU kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# peer -> N -> its time over ours, at least
RATIOS = {
    "published code's call": {64: 40, 1024: 15, 2048: 15, 4096: 8},
    "flash-sinkhorn": {64: 5, 1024: 3, 2048: 3, 4096: 3},
}
GPU_MS = {64: 0.15, 1024: 1.2, 2048: 2.0, 4096: 8.0}  # N -> 100 iterations, loss and gradient, at most
STREAMED = (16384, 32768)
STREAMED_SHARE, LABEL_SHARE = 0.8, 0.85  # of the copy, at least
LABEL_CASES = ("65536 x 1000 float32, forward", "65536 x 1000 float32, 2 gradient(s), kappa live")
# A bi-level step in the published order (two passes), FA's own time apart, over one of cross-entropy, at most.
STEP_TO_CE = 2.4


@dataclass
class Results:
    """The last row of each (mode, case), and of each (batch, method) of training."""

    rows: dict[tuple[str, str], dict[str, Any]]
    training: dict[tuple[int, str], dict[str, Any]]

    @property
    def copy_gb_s(self) -> float | None:
        """Bytes that a copy reads and writes per second, in 1e9."""
        return self.rows.get(("speed", "copy of 1 GiB"), {}).get("gb_s")

    def matching(self, mode: str, begin: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Rows whose case begins so, by the rest of its name; sizes in order."""
        found = [
            (c.removeprefix(begin), row)
            for (m, c), row in self.rows.items()
            if m == mode and c.startswith(begin)
        ]
        yield from sorted(found, key=lambda pair: ("double" in pair[0], _number(pair[0])))

    def of_kernels(self, row: dict[str, Any]) -> float | None:
        """Share of the copy that a label row reaches in its kernels' time."""
        spent = sum(row.get("kernels_us", {}).values()) / 1e3
        return row["of_copy"] * row["ms"] / spent if spent else None


def _number(text: str) -> int:
    digits = text.split(",")[0].split(" ")[0]
    return int(digits) if digits.isdigit() else 0


def failure(row: dict[str, Any]) -> str:
    """Why a row is a failure; empty where it is none."""
    return row["failed"] if isinstance(row.get("failed"), str) else ""


def figure(value: Any) -> str:
    """Three digits of a number; anything else as it is."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share(value: float | None) -> str:
    """In per cent."""
    if value is None:
        return "-"
    return "< 0.1 %" if 0 < value < 5e-4 else f"{100 * value:.{0 if value >= 0.1 else 1}f} %"


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    """A table of markdown; nothing where there are no rows."""
    if not rows:
        return []
    cells = [[figure(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def targets(results: Results) -> list[str]:
    """Every target, measured or not; nothing where none was measured."""
    found = list(_all(results))
    rows = [[what, goal, measured or "not measured", verdict] for what, goal, measured, verdict in found]
    return table(["target", "goal", "measured", ""], rows) if any(m for _, _, m, _ in found) else []


Judged = tuple[str, str, str, str]


def _judge(what: str, limit: float, value: float | None, at_least: bool, unit: str = "") -> Judged:
    in_words = share if unit == "%" else lambda x: f"{figure(float(x))} {unit}".strip()
    goal = f"{'>=' if at_least else '<='} {in_words(limit)}"
    if value is None:
        return what, goal, "", ""
    reached = value >= limit if at_least else value <= limit
    return what, goal, in_words(value), "reached" if reached else "**not reached**"


def _all(results: Results) -> Iterator[Judged]:
    for peer, sizes in RATIOS.items():
        for n, least in sizes.items():
            ratio = results.rows.get(("peers", f"{peer}, N = {n}"), {}).get("ratio")
            yield _judge(f"times as quick as {peer}, N = {n:,}", least, ratio, True, "x")
    for n, most in GPU_MS.items():
        row = results.rows.get(("speed", f"loss and gradient, N = {n}, D = 512"), {})
        spent = row.get("kernels_ms") or None  # 0: the profiler saw none
        yield _judge(f"GPU time of loss and gradient, N = {n:,}", most, spent, False, "ms")
    for n in STREAMED:
        of_copy = results.rows.get(("speed", f"iteration, N = {n}"), {}).get("of_copy", {})
        for kind in ("forward", "adjoint"):
            yield _judge(f"share of copy, {kind}, N = {n:,}", STREAMED_SHARE, of_copy.get(kind), True, "%")
    for what in LABEL_CASES:
        row = results.rows.get(("speed", f"label {what}"), {})
        reached = results.of_kernels(row) if "of_copy" in row else None
        yield _judge(f"share of copy, label {what}, kernels", LABEL_SHARE, reached, True, "%")
    for (batch, name), row in results.training.items():
        if name == "published-code, without FA":
            for where in ("device", "host"):
                ratio = row.get(f"{where}_ms_to_ce")
                yield _judge(
                    f"{where} time of a step, `{name}` / `ce`, batch {batch:,}", STEP_TO_CE, ratio, False, "x"
                )
