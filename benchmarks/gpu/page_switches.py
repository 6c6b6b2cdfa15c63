"""Sections of page.py on what is off by default: clusters, and sweeps that store no cost."""

from __future__ import annotations

from typing import Any

from page_targets import Results, failure, figure, table


def clusters(results: Results) -> list[str]:
    found = []
    for case, row in results.matching("speed", "clusters, "):
        if "times" in row:
            cells = [
                f"{figure(row[f'{part}_us_{on}'])}" for part in ("forward", "whole") for on in ("off", "on")
            ]
            found.append([case, *cells, f"{figure(row['times'])} x"])
    return table(["problems", "forward, off", "on", "with the gradient, off", "on", "quicker"], found)


def unstored(results: Results) -> list[str]:
    begin = "costs that do not fit, "
    found = []
    for (mode, case), row in results.rows.items():
        if mode == "speed" and case.startswith(begin) and "times" in row and not failure(row):
            peaks = f"{figure(row['panels_peak_mb'])} / {figure(row['streamed_peak_mb'])}"
            name = case.removeprefix(begin)
            found.append([name, row["panels_ms"], row["streamed_ms"], f"{figure(row['times'])} x", peaks])
    return table(["", "panels ms", "streamed ms", "quicker", "peak MB, panels / streamed"], found)


def pairs(results: Results) -> list[str]:
    sweeps: dict[tuple[str, int], dict[bool, float]] = {}
    for (mode, _), row in results.rows.items():
        if mode == "tune" and "kind" in row:
            sweeps.setdefault((row["kind"], row["d"]), {})[row["streamed"]] = row["sweep_ps"]
    lines = table(
        ["features", "D", "panels", "streamed"],
        [[kind, d, by.get(False), by.get(True)] for (kind, d), by in sweeps.items()],
    )
    fits = [
        [case, *_of_line(row.get("of_a_pass")), *_of_line(row.get("of_a_panel"))]
        for case, row in results.matching("tune", "costs of a pair, ")
        if row.get("of_a_pass") or row.get("of_a_panel")
    ]
    head = ["features", "streamed pass, per feature", "the rest", "panel, per feature", "the rest"]
    return lines + table(head, fits)


def _of_line(found: dict[str, float] | None) -> list[Any]:
    return [found["feature_ps"], found["rest_ps"]] if found else [None, None]


SECTIONS = {
    "Clusters": (clusters, """
        Microseconds per iteration for given costs in float32, by replay of a graph; of a batch, of all its problems
        together. *off* is the default, *on* is `clusters` in `ops/_cuda/_device.py`, asked for at each of these
        sizes."""),
    "Costs that do not fit": (unstored, """
        Loss and gradient of x, 20 iterations, l2. *panels* stores the cost some rows at a time; *streamed* makes each
        cost where it is read, for bfloat16 on tensor cores. Which of them runs is decided by predicted time."""),
    "A pair of rows in a sweep": (pairs, """
        Picoseconds per pair in one sweep of the forward, on the whole device, N = 8,192. Below, the same as a line
        over D: a streamed sweep makes its costs in two passes, a sweep over panels makes them once."""),
}  # fmt: skip
