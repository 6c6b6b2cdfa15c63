"""The runs' numbers, method against method: means, paired differences, and what the paper says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..extras import installed
from ..report import Compared, compare
from ..report.plain import as_plain
from ..report.statistics import spread
from ..report.theory import BoundParts
from ..run.files import DIVERGED
from ..training.run_folder import git_state, versions
from .experiment import Cell, Contender, Experiment

FIGURES = (
    "val_accuracy", "loss", "fa", "la", "teacher_reads", "class_agreement", "class_agreement_p", "seconds_per_epoch",
    "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A method in one setting; ``compared`` is None where a run diverged, is missing, or measured nothing."""

    contender: Contender
    compared: Compared | None
    diverged: int  # runs
    paper: float | None  # per cent
    paper_difference: float | None  # to the baseline, points
    missing: int = 0  # runs without an accuracy that have not diverged

    @property
    def label(self) -> str:
        """The method's."""
        return self.contender.label


@dataclass(frozen=True)
class Block:
    """A setting: a row for each method."""

    setting: str
    rows: Sequence[Row]
    teacher: float | None = None  # accuracy, 0 to 1, where it was trained here
    paper_teacher: float | None = None  # per cent


@dataclass(frozen=True)
class Comparison:
    """What came out."""

    experiment: Experiment
    blocks: Sequence[Block]
    runs: Sequence[Mapping[str, Any]]

    def markdown(self) -> str:
        """The tables and what they say, for a page."""
        from .tables import markdown

        return markdown(self)

    def plain(self) -> dict[str, Any]:
        """All of it, as JSON knows it."""
        return as_plain(
            {
                "format": "ucmkd-fast comparison 1",
                "experiment": self.experiment.plain(),
                "settings": [
                    {
                        "setting": block.setting,
                        "teacher_accuracy": block.teacher,
                        "methods": [_plain_row(row) for row in block.rows],
                    }
                    for block in self.blocks
                ],
                "runs": list(self.runs),
                "versions": {**versions(), "ucmkd-fast": __version__, **installed()},
                "git": git_state(),
            }
        )


def gather(
    experiment: Experiment, cells: Sequence[Cell], results: Mapping[Path, dict[str, Any]]
) -> Comparison:
    """Bring every run's result to its place.

    Args:
        experiment: what was run.
        cells: all of its runs.
        results: by the cell's folder, as in ``result.json``.
    """
    blocks = []
    for setting in experiment.settings:
        rows = []
        for contender in experiment.contenders:
            own = [
                results.get(cell.folder)
                for cell in cells
                if cell.setting == setting and cell.contender.label == contender.label
            ]
            rows.append(_row(experiment, setting, contender, own))
        rows = _with_differences(rows, experiment.baseline)
        blocks.append(Block(setting, rows, *_teacher(experiment, setting, cells, results)))
    runs = [
        {
            "setting": cell.setting,
            "method": cell.contender.label,
            "seed": cell.seed,
            **{key: value for key, value in results[cell.folder].items() if key != "config"},
        }
        for cell in cells
        if cell.folder in results
    ]
    return Comparison(experiment, blocks, runs)


def _teacher(
    experiment: Experiment, setting: str, cells: Sequence[Cell], results: Mapping[Path, dict[str, Any]]
) -> tuple[float | None, float | None]:
    """The teacher's accuracy here, and in the paper."""
    own = (results.get(cell.folder, {}) for cell in cells if cell.setting == setting)
    known = (result.get("teacher_accuracy") for result in own)
    paper = experiment.paper
    reported = None if paper is None else paper.figure("teacher", experiment.settings[setting].column)
    return next((one for one in known if one is not None), None), reported


def _row(
    experiment: Experiment, setting: str, contender: Contender, found: Sequence[dict[str, Any] | None]
) -> Row:
    diverged = sum(result is not None and DIVERGED in result for result in found)
    results = [result for result in found if result is not None and _accuracy(result) is not None]
    compared = None
    if len(results) == len(found):
        samples = [_test_samples(result) for result in results]
        compared = Compared(
            contender.label,
            contender.label,
            [_accuracy(result) or 0.0 for result in results],
            {
                name: [r[name] for r in results]
                for name in FIGURES
                if all(r.get(name) is not None for r in results)
            },
            [BoundParts(**result["bound"]) for result in results if "bound" in result],
            contender.control is not None,
            test_samples=[count for count in samples if count is not None],
        )
    paper, column = experiment.paper, experiment.settings[setting].column
    figure = None if paper is None else paper.figure(contender.row, column)
    base = next(c for c in experiment.contenders if c.label == experiment.baseline)
    reference = None if paper is None else paper.figure(base.row, column)
    difference = None if figure is None or reference is None or contender is base else figure - reference
    missing = len(found) - len(results) - diverged
    return Row(contender, compared, diverged, figure, difference, missing)


def _accuracy(result: dict[str, Any]) -> float | None:
    """On the test part, or, where the data have none, on validation; None where there is neither, or a NaN."""
    value = result.get("accuracy")
    value = result.get("val_accuracy") if value is None else value
    return value if value is not None and math.isfinite(value) else None


def _test_samples(result: dict[str, Any]) -> int | None:
    """How many samples its accuracy is a share of; None where the result does not say."""
    part = "val" if result.get("accuracy") is None else "test"
    return result.get("samples", {}).get(part)


def _with_differences(rows: Sequence[Row], baseline: str) -> list[Row]:
    there = [row.compared for row in rows if row.compared is not None]
    if not any(method.key == baseline for method in there):
        return list(rows)
    differing = {method.key: method for method in compare(there, baseline)}
    return [
        row if row.compared is None else Row(**{**vars(row), "compared": differing[row.label]})
        for row in rows
    ]


def _plain_row(row: Row) -> dict[str, Any]:
    method = row.compared
    found: dict[str, Any] = {
        "method": row.label,
        "control": row.contender.control,
        "diverged": row.diverged,
        "missing": row.missing,
        "paper": row.paper,
        "paper_difference": row.paper_difference,
    }
    if method is not None:
        difference = method.difference
        found["accuracy"] = vars(method.spread)
        found["test_samples"] = list(method.test_samples)
        found["difference"] = (
            None if difference is None else {**vars(difference), "verdict": difference.verdict}
        )
        found["figures"] = {name: vars(spread(values)) for name, values in method.figures.items()}
        found["bound_held"] = sum(bound.slack >= 0 for bound in method.bounds) if method.bounds else None
    return found
