"""The figures that the paper reports, to stand beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..config import read_yaml
from ..ops.checks import choice

FIGURES = Path(__file__).parents[1] / "configs" / "paper" / "figures.yaml"


@dataclass(frozen=True)
class PaperTable:
    """A table: accuracies in per cent, by the paper's own row (method) and column (setting)."""

    number: str
    title: str
    rows: Mapping[str, Mapping[str, float]]

    def figure(self, row: str, column: str) -> float | None:
        """What it reports; None where it reports nothing."""
        return self.rows.get(row, {}).get(column)


@lru_cache(maxsize=1)
def _figures() -> dict[str, Any]:
    return read_yaml(FIGURES)["tables"]


def paper_table(number: str) -> PaperTable:
    """A table by its number ("6"), a figure by its name ("figure 2"); ValueError for one that is not there."""
    tables = _figures()
    choice("paper", number, [str(name) for name in tables])
    table = next(value for name, value in tables.items() if str(name) == number)
    rows = {}
    for row, values in table["rows"].items():
        if isinstance(values, list):
            values = dict(zip(table["columns"], values, strict=True))
        rows[row] = {column: float(value) for column, value in values.items() if value is not None}
    return PaperTable(number, table["title"], rows)
