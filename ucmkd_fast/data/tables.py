"""Rows of a table: columns of numbers as samples, or a column of text as tokens; CSV, TSV or parquet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..extras import need
from ..ops.checks import count_at_least_one
from .files import FileData
from .labelled import LabelledData, TensorData


def open_table(
    *,
    root: str | Path,
    label: str,
    columns: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    group: str | None = None,
) -> TensorData:
    """A table's columns of numbers as samples (n, columns), float32, as they are (not scaled).

    Args:
        root: a ``.csv``, ``.tsv`` or ``.parquet`` file; text files begin with a line of names.
        label: the column of the classes.
        columns: those of the samples; None: all but ``label`` and ``group``.
        classes: the classes' names; None: those in the column, sorted.
        group: the column that says who made a row.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a parquet file, and pyarrow is not installed.
        ValueError: an unknown column, a cell that is not a number, a class that is none of ``classes``.
    """
    path = Path(root)
    table = read_table(path)
    labels, names = _labels(table, label, classes, path)
    chosen = [n for n in table if n not in (label, group)] if columns is None else list(columns)
    values = []
    for name in chosen:
        cells = _column(table, name, path)
        try:
            values.append(np.array([float(cell) for cell in cells], dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: column {name!r} must hold numbers: {error}") from error
    if not values:
        raise ValueError(f"{path}: expected columns of numbers, found none beside {label!r}")
    groups = None if group is None else [str(cell) for cell in _column(table, group, path)]
    try:
        return TensorData(torch.from_numpy(np.stack(values, 1)), labels, names, groups)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def open_text(
    *,
    root: str | Path,
    text: str,
    label: str,
    tokenizer: str,
    length: int = 128,
    classes: Sequence[str] | None = None,
    revision: str = "main",
) -> LabelledData:
    """A column of text as tokens (length,) int64, made when they are asked for.

    Args:
        root: a ``.csv``, ``.tsv`` or ``.parquet`` file; text files begin with a line of names.
        text: the column of the samples.
        label: the column of the classes.
        tokenizer: its name on Hugging Face, or its folder.
        length: tokens of a sample: longer text is cut, shorter padded.
        classes: the classes' names; None: those in the column, sorted.
        revision: of the tokenizer.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: transformers is not installed.
        OSError: the tokenizer cannot be had.
        ValueError: an unknown column, or a class that is none of ``classes``.
    """
    count_at_least_one("length", length)
    path = Path(root)
    table = read_table(path)
    sentences = [str(cell) for cell in _column(table, text, path)]
    labels, names = _labels(table, label, classes, path)
    return FileData(
        token_reader(sentences, tokenizer, length, revision),
        labels,
        names,
        ids=[str(row) for row in range(len(sentences))],
        workers=0,
    )


def token_reader(
    sentences: Sequence[str], tokenizer: str, length: int, revision: str
) -> Callable[[int, Any], Tensor]:
    """Gives the tokens (length,) int64 of a sentence by its index."""
    own = need("transformers").AutoTokenizer.from_pretrained(
        tokenizer, revision=revision, trust_remote_code=False
    )

    return _Tokens(sentences, own, length)


@dataclass(frozen=True)
class _Tokens:
    """Gives the tokens (length,) int64 of an index."""

    sentences: Sequence[str]
    tokenizer: Any
    length: int

    def __call__(self, index: int, random: Any) -> Tensor:
        found = self.tokenizer(
            self.sentences[index], truncation=True, padding="max_length", max_length=self.length
        )
        return torch.tensor(found["input_ids"], dtype=torch.int64)


def read_table(path: Path) -> dict[str, list[Any]]:
    """The columns of a table by their names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a table, or a line has more or fewer cells than there are names.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a table, there is none")
    if path.suffix == ".parquet":
        parquet = need("pyarrow.parquet")
        try:
            return parquet.read_table(path).to_pydict()
        except Exception as error:  # pyarrow has errors of its own
            raise ValueError(f"{path}: not a readable parquet table: {error}") from error
    if path.suffix not in (".csv", ".tsv"):
        raise ValueError(f"{path}: expected a .csv, .tsv or .parquet table")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="," if path.suffix == ".csv" else "\t")
            names = next(lines, [])
            rows = []
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise ValueError(f"line {lines.line_num} has {len(cells)} cells, expected {len(names)}")
                rows.append(cells)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ValueError(f"{path}: not a readable table: {error}") from error
    if not rows:
        raise ValueError(f"{path}: expected a line of names and rows, found {len(names)} names and no row")
    return {name: [cells[k] for cells in rows] for k, name in enumerate(names)}


def _column(table: dict[str, list[Any]], name: str, path: Path) -> list[Any]:
    if name not in table:
        raise ValueError(f"{path}: no column {name!r}; it has {', '.join(table)}")
    return table[name]


def _labels(
    table: dict[str, list[Any]], label: str, classes: Sequence[str] | None, path: Path
) -> tuple[Tensor, list[str]]:
    cells = [str(cell) for cell in _column(table, label, path)]
    names = sorted(set(cells)) if classes is None else [str(name) for name in classes]
    index = {name: k for k, name in enumerate(names)}
    for row, cell in enumerate(cells):
        if cell not in index:
            raise ValueError(f"{path}, row {row + 1}: class {cell!r} is none of {', '.join(names)}")
    return torch.tensor([index[cell] for cell in cells]), names
