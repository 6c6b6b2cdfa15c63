"""Features in tables of Arrow: one column of lists, or several of numbers, and a column of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..extras import need
from ..names import did_you_mean
from .labelled import UNLABELLED


def read_feature_table(
    path: Path, label: str, columns: Sequence[str] | None, group: str | None, classes: Sequence[str] | None
) -> tuple[Tensor, Tensor, list[str] | None, list[str] | None]:
    """Features (n, D) float32, labels (n,), the classes and the groups of a parquet table.

    Only the columns that are needed are read.

    Args:
        path: the file.
        label: the column of the classes: labels from 0 on, or names.
        columns: those of the features, lists or numbers, side by side; None: all others.
        group: the column that says who made a row.
        classes: the classes' names; None: those in the column, sorted, or none for labels.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: pyarrow is not installed.
        ValueError: not a parquet table, an unknown column, cells that are empty, no numbers, or lists whose
            lengths differ.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a parquet table, there is none")
    parquet = need("pyarrow.parquet")
    try:
        names = parquet.read_schema(path).names
        chosen = [n for n in names if n not in (label, group)] if columns is None else list(columns)
        wanted = [*chosen, label, *([] if group is None else [group])]
        if unknown := [name for name in wanted if name not in names]:
            hint = did_you_mean(unknown[0], names)
            raise ValueError(f"no column {unknown[0]!r}; it has {', '.join(names)}{hint}")
        table = parquet.read_table(path, columns=wanted)
        x = numbers(table, chosen)
        y, found = labels_of(table.column(label).to_pylist(), label, classes)
    except Exception as error:  # pyarrow has errors of its own
        raise ValueError(f"{path}: {error}") from error
    groups = None if group is None else [str(cell) for cell in table.column(group).to_pylist()]
    return x, y, found, groups


def numbers(table: Any, columns: Sequence[str]) -> Tensor:
    """The named columns of an Arrow table side by side, (n, D) float32; a list has a place for each number.

    Raises:
        ValueError: a column of something else, an empty cell, or lists whose lengths differ.
    """
    if not columns:
        raise ValueError("expected columns of features, there is none")
    parts = [_numbers(table.column(name), name) for name in columns]
    return torch.from_numpy(np.concatenate(parts, axis=1))


def _numbers(column: Any, name: str) -> np.ndarray:
    """One column (n, D) float32; D = 1 where it does not hold lists."""
    types = need("pyarrow.types")
    is_list = (
        types.is_list(column.type)
        or types.is_large_list(column.type)
        or types.is_fixed_size_list(column.type)
    )
    kind = column.type.value_type if is_list else column.type
    if not (types.is_integer(kind) or types.is_floating(kind)):
        raise ValueError(f"column {name!r} must hold numbers or lists of numbers, it holds {column.type}")
    rows = len(column)
    empty = column.null_count
    widths = set(need("pyarrow.compute").list_value_length(column).unique().to_pylist()) if is_list else {1}
    flat = [chunk.flatten() if is_list else chunk for chunk in column.chunks]
    if empty or any(chunk.null_count for chunk in flat):
        raise ValueError(f"column {name!r} has empty cells")
    if len(widths) != 1 or widths == {0}:
        raise ValueError(f"column {name!r} must hold lists of one length, got {sorted(widths)[:5]}")
    out = np.concatenate([chunk.to_numpy(zero_copy_only=False).astype(np.float32) for chunk in flat])
    return out.reshape(rows, -1)


def labels_of(
    cells: Sequence[Any], name: str, classes: Sequence[str] | None
) -> tuple[Tensor, list[str] | None]:
    """Labels (n,) and the classes' names of a column of labels from 0 on, or of names.

    Labels without ``classes`` have no names: None. An empty name or -1, as Hugging Face has it, is no label.

    Raises:
        ValueError: cells of another kind, or a name that is none of ``classes``.
    """
    known = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, int) and not isinstance(cell, bool) for cell in known) and known:
        labels = [UNLABELLED if cell in (None, -1) else cell for cell in cells]
        return torch.tensor(labels), None if classes is None else [str(name) for name in classes]
    if not known or not all(isinstance(cell, str) for cell in known):
        raise ValueError(f"column {name!r} must hold labels (integers) or names of classes")
    names = sorted(set(known)) if classes is None else [str(name) for name in classes]
    index = {name: k for k, name in enumerate(names)} | {None: UNLABELLED}
    if wrong := [cell for cell in known if cell not in index]:
        raise ValueError(
            f"class {wrong[0]!r} in column {name!r} is none of {', '.join(names)}{did_you_mean(wrong[0], names)}"
        )
    return torch.tensor([index[cell] for cell in cells]), names
