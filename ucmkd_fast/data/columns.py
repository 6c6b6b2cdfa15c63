"""What the columns of a table mean, whatever kind of table it is: classes, groups, texts, and which hold samples."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..names import did_you_mean
from .class_names import check_distinct
from .file_tree import counted
from .labelled import UNLABELLED

#: Cells that hold nothing, as pandas reads and writes them, and -1; a class of such a name is one where
#: ``classes`` lists it.
MISSING = frozenset(["", *"-1 -1.0 #N/A #NA <NA> N/A NA NULL NaN NaT None n/a nan -nan null".split()])

_WHOLE = re.compile(r"-?\d+(\.0+)?")
_INDEX = re.compile(r"|Unnamed: \d+(\.\d+)?(_level_\d+)?|__index_level_\d+__|__null_dask_index__")


def named_labels(
    cells: Sequence[Any], column: str, classes: Sequence[Any] | None, where: Any
) -> tuple[Tensor, list[str]]:
    """Labels (n,) and the classes of a column of names; a cell of `MISSING`, or empty, is `UNLABELLED`.

    Blanks around a name do not count. Whole numbers are names without their ".0", which pandas gives them where a
    label is missing.

    Args:
        cells: of any type.
        column: its name, for messages.
        classes: the classes' names; None: those in the column, sorted.
        where: the table, for the warning of rows without a label.

    Raises:
        ValueError: a name that is none of ``classes``, names that look alike, no label at all, or -1 and 1
            alone, of which -1 is likely a class.
    """
    given = given_names(classes, column)
    listed = frozenset(given or ())
    texts = _without_decimals([_text(cell) for cell in cells], listed)
    found = [None if text in MISSING - listed else text for text in texts]
    names = sorted({text for text in found if text is not None}) if given is None else given
    check_distinct(names, f"column {column!r}")
    index: dict[str | None, int] = {name: k for k, name in enumerate(names)} | {None: UNLABELLED}
    for row, text in enumerate(found):
        if text not in index:
            raise ValueError(
                f"row {row + 1}: class {text!r} in column {column!r} is none of {', '.join(names)}"
                + did_you_mean(text, names)
            )
    labels = torch.tensor([index[text] for text in found])
    _tell_missing(labels, texts, column, where)
    return labels, names


def labels_of(
    cells: Sequence[Any], column: str, classes: Sequence[Any] | None, where: Any
) -> tuple[Tensor, list[str] | None]:
    """Labels (n,) and the classes' names of a column of labels from 0 on, or of names, as `named_labels`.

    Labels without ``classes`` have no names: None. -1, as Hugging Face has it, and an empty cell are no label.

    Raises:
        ValueError: cells of another kind, or what `named_labels` refuses.
    """
    known = [cell for cell in cells if not _is_nothing(cell)]
    if known and all(isinstance(cell, str) for cell in known):
        return named_labels(cells, column, classes, where)
    if not known or not all(_is_whole(cell) for cell in known):
        raise ValueError(f"column {column!r} must hold labels (integers) or names of classes")
    labels = torch.tensor([UNLABELLED if _is_nothing(cell) or cell == -1 else int(cell) for cell in cells])
    _tell_missing(labels, _without_decimals([_text(cell) for cell in cells], ()), column, where)
    return labels, given_names(classes, column)


def given_names(classes: Sequence[Any] | None, column: str) -> list[str] | None:
    """Names of classes as a person lists them, without blanks around them; ValueError where two look alike."""
    if classes is None:
        return None
    names = [str(name).strip() for name in classes]
    check_distinct(names, f"classes of column {column!r}")
    return names


def group_names(cells: Sequence[Any], column: str) -> list[str]:
    """Who made each row, without blanks around the names.

    Raises:
        ValueError: rows that do not say it: an empty cell is no group, and a split by group needs one for each.
    """
    texts = [_text(cell) for cell in cells]
    empty = [row for row, text in enumerate(texts) if text is None or text in MISSING]
    if empty:
        raise ValueError(
            f"column {column!r} must say who made each row; {len(empty)} of {len(texts)} are empty, the first is row "
            f"{empty[0] + 1} ({cells[empty[0]]!r})"
        )
    return [str(text) for text in _without_decimals(texts, ())]


def is_empty_text(cell: Any) -> bool:
    """Whether a cell holds no text to read: nothing, or blanks alone. The word "nan" is a text."""
    return _is_nothing(cell) or not str(cell).strip()


def check_named_once(used: Collection[str], names: Sequence[str]) -> None:
    """Raise ValueError for a column that is used and not there, or there twice."""
    count = Counter(names)
    for name in used:
        if name not in count:
            raise ValueError(f"no column {name!r}; it has {', '.join(names)}{did_you_mean(name, names)}")
        if count[name] > 1:
            raise ValueError(f"{count[name]} columns are named {name!r}: rename them")


def sample_columns(
    names: Sequence[str],
    wanted: Sequence[str] | None,
    taken: Collection[str | None],
    index: Collection[str],
    where: Any,
) -> list[str]:
    """The columns of the samples: those wanted, or all that are neither taken nor an index of pandas.

    Args:
        names: all columns.
        wanted: what a person asks for; None: see above.
        taken: the columns of classes and groups.
        index: columns that the file itself says are an index; a column without a name, or named as pandas names an
            index ("Unnamed: 0"), is left out as well, with a warning.
        where: the table, for the warning.

    Raises:
        ValueError: a column that is there twice, or not at all.
    """
    if wanted is not None:
        check_named_once(list(wanted), names)
        return list(wanted)
    free = [name for name in names if name not in taken and name not in index]
    left_out = [name for name in free if _INDEX.fullmatch(name)]
    if left_out:
        warnings.warn(
            f"{where}: left out of the samples: {', '.join(map(repr, left_out))}, an index such as pandas writes "
            "(columns says which to use)",
            stacklevel=4,
        )
    chosen = [name for name in free if name not in left_out]
    check_named_once(chosen, names)
    return chosen


def _without_decimals(texts: list[str | None], listed: Collection[str]) -> list[str | None]:
    """Whole numbers as pandas writes them where one is missing, "1.0", as "1"; where all are, and none is listed."""
    known = {text for text in texts if text is not None and text not in MISSING}
    if known <= set(listed) or not all(map(_WHOLE.fullmatch, known)):
        return texts
    return [text.partition(".")[0] if text is not None and _WHOLE.fullmatch(text) else text for text in texts]


def _tell_missing(labels: Tensor, texts: Sequence[str | None], column: str, where: Any) -> None:
    """Warn of the rows that have no label.

    Raises:
        ValueError: no row has one, or none but -1 and 1 stand there, of which -1 is likely a class.
    """
    missing = (labels == UNLABELLED).tolist()
    if not any(missing):
        return
    kinds = Counter(
        "empty" if not text else repr(text) for text, gone in zip(texts, missing, strict=True) if gone
    )
    if all(missing):
        raise ValueError(f"column {column!r} has no label: {counted(kinds)}")
    known = {text for text, gone in zip(texts, missing, strict=True) if not gone}
    if known == {"1"} and "'-1'" in kinds:
        raise ValueError(
            f"column {column!r} holds -1 and 1 alone, and -1 means that there is no label; if it is a class, write 0 "
            "for it, or a name"
        )
    warnings.warn(
        f"{where}, column {column!r}: {kinds.total():,} of {len(missing):,} rows have no label ({counted(kinds)})",
        stacklevel=5,
    )


def _text(cell: Any) -> str | None:
    """A cell's text without blanks around it; None where it holds nothing."""
    if isinstance(cell, bytes):  # texts of Arrow's binary columns
        cell = cell.decode(errors="backslashreplace")
    return None if _is_nothing(cell) else str(cell).strip()


def _is_nothing(cell: Any) -> bool:
    return cell is None or cell != cell  # NaN


def _is_whole(cell: Any) -> bool:
    if isinstance(cell, float):
        return cell.is_integer()
    return isinstance(cell, int) and not isinstance(cell, bool)
