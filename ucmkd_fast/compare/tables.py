"""A comparison as tables, for a terminal and for a page, and what they say in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report.shares import remains, shares
from ..report.words import (
    against_baseline,
    against_control,
    how_alike_classes_lie,
    mean_and_deviation,
    plus_minus,
    resolution,
)
from ..terminal import Part, Styled, Terminal, bold
from ..terminal import Row as TableRow
from ..text import in_markdown
from .controls import SELF_TRAINING, is_control
from .results import Block, Comparison, Row

LEGEND = (
    "Accuracy: on test data ({test_set}), mean ± deviation over {seeds}. vs {baseline}: paired difference at the same "
    "seeds (split, first weights, batches), points ± standard error, bold beyond its 95 % margin (Student's t "
    "over the seeds) and at least one test sample; of twenty such comparisons one is by chance."
)
PAPER_LEGEND = " Paper: what the paper's table {number} reports, and its difference to its own {baseline}."


def show(terminal: Terminal, comparison: Comparison) -> None:
    """Tables and sentences on a terminal."""
    for block in comparison.blocks:
        titles, rows = _cells(comparison, block)
        terminal.say()
        terminal.table(
            titles,
            [
                TableRow(cells, dim=row.contender.control is not None)
                for row, cells in zip(block.rows, rows, strict=True)
            ],
        )
        for sentence in sentences(comparison, block):
            terminal.say(f"  • {sentence}")
    terminal.say()
    terminal.say(_legend(comparison), style="dim")


def markdown(comparison: Comparison) -> str:
    """Tables and sentences for a page."""
    lines = [f"## {in_markdown(comparison.experiment.title or 'Comparison')}", ""]
    for block in comparison.blocks:
        titles, rows = _cells(comparison, block)
        if len(comparison.blocks) > 1:
            lines += [f"### {in_markdown(block.setting)}", ""]
        lines += [f"| {' | '.join(map(in_markdown, titles))} |", f"|{'---|' * len(titles)}"]
        lines += [f"| {' | '.join(map(_in_markdown, cells))} |" for cells in rows]
        lines += ["", *(f"* {in_markdown(one)}" for one in sentences(comparison, block)), ""]
    return "\n".join([*lines, in_markdown(_legend(comparison)), ""])


def _in_markdown(cell: Part) -> str:
    return f"**{in_markdown(cell.text)}**" if isinstance(cell, Styled) else in_markdown(cell)


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
        elif row.missing:
            runs = len(comparison.experiment.seeds)
            said.append(f"{row.label}: no accuracy at {row.missing} of {runs} seeds, so it is not compared.")
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
    assert row.compared is not None
    gain, *others = shares(there[row.label], over, min(row.compared.test_samples, default=None))
    if not gain.clear or not any(is_control(other.contender) for other in against):
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


def _cells(comparison: Comparison, block: Block) -> tuple[list[str], list[list[Part]]]:
    """Titles, and a text for each row and column."""
    columns: list[tuple[str, Sequence[Part]]] = [
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
        return f"diverged ({row.diverged})" if row.diverged else f"missing ({row.missing})"
    return mean_and_deviation(row.compared)


def _difference(row: Row) -> Part:
    difference = None if row.compared is None else row.compared.difference
    if difference is None:
        return ""
    return bold(plus_minus(difference)) if difference.seen else plus_minus(difference)


def _or_nothing(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _legend(comparison: Comparison) -> str:
    experiment = comparison.experiment
    count = len(experiment.seeds)
    seeds = "one seed" if count == 1 else f"{count} seeds"
    compared = [row.compared for block in comparison.blocks for row in block.rows if row.compared]
    test_set = resolution(count for method in compared for count in method.test_samples)
    text = LEGEND.format(seeds=seeds, baseline=experiment.baseline, test_set=test_set)
    if any("fa" in method.figures for method in compared):
        text += (
            " FA: cosine transport cost from the student's test features to the teacher's held-out ones; 0 = they "
            "coincide. LA: label alignment, nats. Read: how often the teacher's own head names the class from the "
            "student's feature."
        )
    if experiment.paper is not None:
        text += PAPER_LEGEND.format(number=experiment.paper.number, baseline=experiment.baseline)
    return text
