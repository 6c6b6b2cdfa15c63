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
from .columns import check_named_once, group_names, is_empty_text, named_labels, sample_columns
from .feature_tables import index_columns
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
        label: the column of the classes; an empty cell ("", "NA", "nan", "None", -1 and their like) is no label.
        columns: those of the samples; None: all but ``label``, ``group`` and an index that pandas wrote.
        classes: the classes' names; None: those in the column, sorted, without blanks around them.
        group: the column that says who made a row.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a parquet file, and pyarrow is not installed.
        ValueError: an unknown column, one that is there twice, a cell that is not a number, a class that is none of
            ``classes``, a row without a group.
    """
    path = Path(root)
    table = read_table(path)
    try:
        labels, names = named_labels(table.column(label), label, classes, path)
        groups = None if group is None else group_names(table.column(group), group)
        chosen = sample_columns(table.names, columns, (label, group), table.index, path)
        if not chosen:
            raise ValueError(f"expected columns of numbers, found none beside {label!r}")
        x = np.stack([_numbers(table.column(name), name) for name in chosen], 1)
        return TensorData(torch.from_numpy(x), labels, names, groups)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _numbers(cells: Sequence[Any], name: str) -> np.ndarray:
    values = np.empty(len(cells), dtype=np.float32)
    for row, cell in enumerate(cells):
        try:
            values[row] = float(cell)
        except (TypeError, ValueError) as error:
            raise ValueError(f"column {name!r} must hold numbers; row {row + 1} holds {cell!r}") from error
    return values


def open_text(
    *,
    root: str | Path,
    text: str,
    label: str,
    tokenizer: str,
    length: int = 128,
    classes: Sequence[str] | None = None,
    revision: str = "main",
    skip_bad: bool = False,
) -> LabelledData:
    """A column of text as tokens (length,) int64, made when they are asked for.

    Args:
        root: a ``.csv``, ``.tsv`` or ``.parquet`` file; text files begin with a line of names.
        text: the column of the samples.
        label: the column of the classes, read as that of `open_table`.
        tokenizer: its name on Hugging Face, or its folder.
        length: tokens of a sample: longer text is cut, shorter padded.
        classes: the classes' names; None: those in the column, sorted.
        revision: of the tokenizer.
        skip_bad: go on without rows that have no text, see `FileData`.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: transformers is not installed.
        OSError: the tokenizer cannot be had.
        ValueError: an unknown column, a class that is none of ``classes``, a row without a text.
    """
    count_at_least_one("length", length)
    path = Path(root)
    table = read_table(path)
    try:
        sentences = table.column(text)
        labels, names = named_labels(table.column(label), label, classes, path)
        if not skip_bad:
            check_texts(sentences, text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return FileData(
        token_reader(sentences, tokenizer, length, revision, str(path)),
        labels,
        names,
        ids=[str(row) for row in range(len(sentences))],
        skip_bad=skip_bad,
        workers=0,
    )


def check_texts(cells: Sequence[Any], column: str) -> None:
    """Raise ValueError where rows have no text: nothing, or blanks alone."""
    empty = [row for row, cell in enumerate(cells) if is_empty_text(cell)]
    if empty:
        raise ValueError(
            f"column {column!r} has no text in {len(empty)} of {len(cells)} rows, the first is row {empty[0] + 1}; "
            "skip_bad goes on without them"
        )


def token_reader(
    sentences: Sequence[Any], tokenizer: str, length: int, revision: str, where: str
) -> Callable[[int, Any], Tensor]:
    """Gives the tokens (length,) int64 of a sentence by its index; ValueError where there is none."""
    own = need("transformers").AutoTokenizer.from_pretrained(
        tokenizer, revision=revision, trust_remote_code=False
    )

    return _Tokens(sentences, own, length, where)


@dataclass(frozen=True)
class _Tokens:
    """Gives the tokens (length,) int64 of an index."""

    sentences: Sequence[str]
    tokenizer: Any
    length: int
    where: Any

    def __call__(self, index: int, random: Any) -> Tensor:
        text = self.sentences[index]
        if is_empty_text(text):
            raise ValueError(f"{self.where}, row {index + 1}: expected a text, there is none")
        found = self.tokenizer(str(text), truncation=True, padding="max_length", max_length=self.length)
        return torch.tensor(found["input_ids"], dtype=torch.int64)


@dataclass(frozen=True)
class Table:
    """The columns of a file.

    Attributes:
        names: of the columns, in order; two may be equal.
        cells: of each column.
        index: columns that are an index of pandas, as the file says.
    """

    names: list[str]
    cells: list[list[Any]]
    index: list[str]

    def column(self, name: str) -> list[Any]:
        """The cells of a column; ValueError where there is none of that name, or more than one."""
        if self.names.count(name) != 1:
            check_named_once([name], self.names)
        return self.cells[self.names.index(name)]


def read_table(path: Path) -> Table:
    """The columns of a table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a table, or a line has more or fewer cells than there are names.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a table, there is none")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        parquet = need("pyarrow.parquet")
        try:
            table = parquet.ParquetFile(path).read()
            cells = [column.to_pylist() for column in table.columns]
            return Table(table.column_names, cells, index_columns(table.schema))
        except Exception as error:  # pyarrow has errors of its own
            raise ValueError(f"{path}: not a readable parquet table: {error}") from error
    if suffix not in (".csv", ".tsv"):
        raise ValueError(f"{path}: expected a .csv, .tsv or .parquet table")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="," if suffix == ".csv" else "\t")
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
    return Table(names, [list(column) for column in zip(*rows, strict=True)], [])
