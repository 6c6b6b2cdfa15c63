"""Comparisons as tables for a terminal, readable at 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table

from .comparison import Compared, mean_bound


def accuracy_table(methods: Sequence[Compared], baseline: str) -> Table:
    """Accuracy, paired difference to the baseline, and the ``figures`` fa, la, teacher_reads, seconds_per_epoch."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("Method", no_wrap=True)
    for title in ("Accuracy %", f"vs {baseline}", "FA", "LA", "Read %", "s/epoch"):
        table.add_column(title, justify="right", no_wrap=True)
    for i, method in enumerate(methods):
        last_before_controls = not method.control and i + 1 < len(methods) and methods[i + 1].control
        table.add_row(
            method.label,
            _plus_minus(100 * method.spread.mean, 100 * method.spread.deviation),
            _difference(method),
            f"{method.mean('fa'):.2f}",
            f"{method.mean('la'):.2f}",
            f"{100 * method.mean('teacher_reads'):.0f}",
            f"{method.mean('seconds_per_epoch'):.3f}",
            style="dim" if method.control else None,
            end_section=last_before_controls,
        )
    return table


def bound_table(methods: Sequence[Compared]) -> Table:
    """Theorem 2.6 per method: the parts' means over seeds, and in how many runs the bound held."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("Theorem 2.6, nats", no_wrap=True)
    for title in ("teacher", "+ FA", "+ LA", "= bound", "student", "held"):
        table.add_column(title, justify="right", no_wrap=True)
    for method in methods:
        parts = mean_bound(method.bounds)
        held = sum(bound.slack >= 0 for bound in method.bounds)
        table.add_row(
            method.label,
            f"{parts.teacher_error:.2f}",
            f"{parts.feature_alignment:.2f}",
            f"{parts.label_alignment:.2f}",
            f"{parts.bound:.2f}",
            f"{parts.student_error:.2f}",
            f"{held}/{len(method.bounds)}",
            style="dim" if method.control else None,
        )
    return table


def _plus_minus(mean: float, deviation: float, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")


def _difference(method: Compared) -> str:
    """The paired difference in points, bold where chance alone would rarely make it."""
    if method.difference is None:
        return "-"
    text = _plus_minus(100 * method.difference.mean, 100 * method.difference.standard_error, "+")
    return f"[bold]{text}[/bold]" if method.difference.verdict in ("higher", "lower") else text
