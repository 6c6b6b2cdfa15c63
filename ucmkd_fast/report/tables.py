"""Comparisons as tables for a terminal, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from ..terminal import Part, Row, Terminal, bold
from .comparison import Compared, mean_bound
from .words import mean_and_deviation, plus_minus


def accuracy_table(terminal: Terminal, methods: Sequence[Compared], baseline: str) -> None:
    """Accuracy, paired difference to the baseline, and the ``figures`` fa, la, teacher_reads, seconds_per_epoch."""
    rows = []
    for i, method in enumerate(methods):
        last_before_controls = not method.control and i + 1 < len(methods) and methods[i + 1].control
        cells: list[Part] = [
            method.label,
            mean_and_deviation(method),
            _difference(method),
            f"{method.mean('fa'):.2f}",
            f"{method.mean('la'):.2f}",
            f"{100 * method.mean('teacher_reads'):.0f}",
            f"{method.mean('seconds_per_epoch'):.3f}",
        ]
        rows.append(Row(cells, dim=method.control, ends=last_before_controls))
    terminal.table(("Method", "Accuracy %", f"vs {baseline}", "FA", "LA", "Read %", "s/epoch"), rows)


def bound_table(terminal: Terminal, methods: Sequence[Compared]) -> None:
    """Theorem 2.6 per method: the parts' means over seeds, and in how many runs the bound held."""
    rows = []
    for method in methods:
        parts = mean_bound(method.bounds)
        held = sum(bound.slack >= 0 for bound in method.bounds)
        cells = (
            method.label,
            f"{parts.teacher_error:.2f}",
            f"{parts.feature_alignment:.2f}",
            f"{parts.label_alignment:.2f}",
            f"{parts.bound:.2f}",
            f"{parts.student_error:.2f}",
            f"{held}/{len(method.bounds)}",
        )
        rows.append(Row(cells, dim=method.control))
    terminal.table(("Theorem 2.6, nats", "teacher", "+ FA", "+ LA", "= bound", "student", "held"), rows)


def _difference(method: Compared) -> Part:
    """The paired difference in points, bold where chance alone would rarely make it."""
    if method.difference is None:
        return "-"
    text = plus_minus(method.difference)
    return bold(text) if method.difference.seen else text
