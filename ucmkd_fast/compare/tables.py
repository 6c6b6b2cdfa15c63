"""A comparison as tables, for a terminal and for a page, and what they say in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..report.shares import remains, shares
from ..report.words import against_baseline, against_control, how_alike_classes_lie
from .controls import SELF_TRAINING, is_control
from .results import Block, Comparison, Row

LEGEND = (
    "Accuracy: on test data, mean ± deviation over {seeds}. vs {baseline}: paired difference at the same seeds (split, "
    "first weights, batches), points ± standard error, bold where it exceeds its 95 % margin; of twenty such "
    "comparisons one is beyond it by chance."
)
PAPER_LEGEND = " Paper: what the paper's table {number} reports, and its difference to its own {baseline}."


def show(console: Console, comparison: Comparison) -> None:
    """Tables and sentences on a terminal."""
    for block in comparison.blocks:
        titles, rows = _cells(comparison, block)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        for i, title in enumerate(titles):
            table.add_column(title, justify="right" if i else "left", no_wrap=True)
        for row, cells in zip(block.rows, rows, strict=True):
            marked = [text.replace("**", "[bold]", 1).replace("**", "[/bold]", 1) for text in cells]
            table.add_row(*marked, style="dim" if row.contender.control else None)
        console.print()
        console.print(table)
        for sentence in sentences(comparison, block):
            console.print(f"  • {sentence}", highlight=False)
    console.print()
    console.print(_legend(comparison), style="dim", highlight=False)


def markdown(comparison: Comparison) -> str:
    """Tables and sentences for a page."""
    lines = [f"## {comparison.experiment.title or 'Comparison'}", ""]
    for block in comparison.blocks:
        titles, rows = _cells(comparison, block)
        if len(comparison.blocks) > 1:
            lines += [f"### {block.setting}", ""]
        lines += [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
        lines += [f"| {' | '.join(cells)} |" for cells in rows]
        lines += ["", *(f"* {sentence}" for sentence in sentences(comparison, block)), ""]
    return "\n".join([*lines, _legend(comparison), ""])


def sentences(comparison: Comparison, block: Block) -> list[str]:
    """What the numbers of a setting say."""
    baseline = comparison.experiment.baseline
    said = []
    if block.teacher is not None:
        paper = "" if block.paper_teacher is None else f" (paper: {block.paper_teacher:.2f} %)"
        said.append(f"The teacher, on its own modality: {100 * block.teacher:.1f} %{paper}.")
    for row in block.rows:
        if row.label == baseline and row.compared is not None and "class_agreement" in row.compared.figures:
            said.append(how_alike_classes_lie(row.compared))
    told = {}  # by method: what of its gain remains over its controls
    for row in block.rows:
        if row.diverged:
            runs = len(comparison.experiment.seeds)
            said.append(f"{row.label}: diverged at {row.diverged} of {runs} seeds, so it is not compared.")
        elif row.compared is not None and row.compared.difference is not None and not row.contender.control:
            told[row.label] = _remains(block, row, baseline)
            said.append(" ".join([against_baseline(row.compared, baseline), *told[row.label]]))
    for row in block.rows:
        real = _real(block, row)
        if real is None or real.compared is None or row.compared is None or told.get(real.label):
            continue
        said.append(against_control(real.compared, row.compared, row.contender.control or ""))
    return said


def _remains(block: Block, row: Row, baseline: str) -> list[str]:
    """For a method with a gain: a sentence on what of it remains over `kd`, its controls and self-training."""
    there = {other.label: other.compared.accuracy for other in block.rows if other.compared is not None}
    if baseline not in there or is_control(row.contender):
        return []
    against = [
        other
        for other in block.rows
        if other.label in there and other is not row and other.label != baseline
        if _real(block, other) is row
        or (other.contender.method["name"] in ("kd", SELF_TRAINING) and other.contender.control is None)
    ]
    over = {baseline: there[baseline]} | {other.label: there[other.label] for other in against}
    gain, *others = shares(there[row.label], over)
    if gain.difference.mean <= 0 or not any(is_control(other.contender) for other in against):
        return []
    seeds = f"{gain.wins} of {gain.difference.n} seeds"
    return [f"Of that, above {baseline} at {seeds}, {remains(others)}."]


def _real(block: Block, control: Row) -> Row | None:
    """The row that a control is the control of."""
    if control.contender.control is None:
        return None

    def others(changes: Mapping[str, Any]) -> dict[str, Any]:
        return {path: value for path, value in changes.items() if path != "teacher.control"}

    for row in block.rows:
        same = row.contender.method == control.contender.method
        if same and row.contender.control is None:
            if others(row.contender.changes) == others(control.contender.changes):
                return row
    return None


def _cells(comparison: Comparison, block: Block) -> tuple[list[str], list[list[str]]]:
    """Titles, and a text for each row and column; bold as in Markdown."""
    columns: list[tuple[str, Sequence[str]]] = [
        (block.setting if len(comparison.blocks) > 1 else "Method", [row.label for row in block.rows]),
        ("Accuracy %", [_accuracy(row) for row in block.rows]),
        (f"vs {comparison.experiment.baseline}", [_difference(row) for row in block.rows]),
    ]
    figures = (
        ("fa", "FA", "{:.2f}", 1),
        ("la", "LA", "{:.2f}", 1),
        ("teacher_reads", "Read %", "{:.0f}", 100),
    )
    for name, title, form, factor in figures:
        texts = [
            form.format(factor * row.compared.mean(name))
            if row.compared and name in row.compared.figures
            else ""
            for row in block.rows
        ]
        if any(texts):
            columns.append((title, texts))
    if comparison.experiment.paper is not None:
        columns.append(("Paper %", [_or_nothing(row.paper, "{:.2f}") for row in block.rows]))
        columns.append(("vs", [_or_nothing(row.paper_difference, "{:+.2f}") for row in block.rows]))
    titles = [title for title, _ in columns]
    return titles, [list(cells) for cells in zip(*(texts for _, texts in columns), strict=True)]


def _accuracy(row: Row) -> str:
    if row.compared is None:
        return f"diverged ({row.diverged})"
    return _plus_minus(row.compared.spread.mean, row.compared.spread.deviation)


def _difference(row: Row) -> str:
    difference = None if row.compared is None else row.compared.difference
    if difference is None:
        return ""
    text = _plus_minus(difference.mean, difference.standard_error, "+")
    return f"**{text}**" if difference.verdict in ("higher", "lower") else text


def _plus_minus(mean: float, deviation: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.1f}")


def _or_nothing(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _legend(comparison: Comparison) -> str:
    experiment = comparison.experiment
    count = len(experiment.seeds)
    seeds = "one seed" if count == 1 else f"{count} seeds"
    text = LEGEND.format(seeds=seeds, baseline=experiment.baseline)
    if any(
        row.compared and "fa" in row.compared.figures for block in comparison.blocks for row in block.rows
    ):
        text += (
            " FA: cosine transport cost from the student's test features to the teacher's held-out ones; 0 = they "
            "coincide. LA: label alignment, nats. Read: how often the teacher's own head names the class from the "
            "student's feature."
        )
    if experiment.paper is not None:
        text += PAPER_LEGEND.format(number=experiment.paper.number, baseline=experiment.baseline)
    return text
