"""Features or samples that lie in files as plain numbers: .npy (memory-mapped), safetensors and parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .bank import FeatureBank
from .columns import given_names
from .feature_tables import read_feature_table
from .labelled import UNLABELLED, LabelledData, TensorData
from .npy import read_npy


def open_features(
    *,
    root: str | Path,
    labels: str | Path | None = None,
    classes: Sequence[str] | None = None,
    features: bool = False,
    label: str | None = None,
    columns: Sequence[str] | None = None,
    group: str | None = None,
) -> LabelledData:
    """Arrays (n, ...) and labels (n,) from files.

    Args:
        root: a ``.npy`` file of samples, which stays on the disk; or a ``.safetensors`` file that holds ``x`` (or
            ``features``) and ``labels`` (or ``y``); or a ``.parquet`` table; or a folder that `extract` wrote.
        labels: a ``.npy`` file of integer labels, -1 for none; None: those in the safetensors file, or in the table.
        classes: the classes' names; None: "0", "1", ..., or those in the table.
        features: the samples are features of a teacher's encoder already, (n, D): it need not run.
        label: of a table, the column of the classes, see `read_feature_table`.
        columns: of a table, those of the features; None: all but ``label`` and ``group``.
        group: of a table, the column that says who made a row.

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: a parquet table, and pyarrow is not installed.
        ValueError: a file is damaged, or holds something else; the message begins with its name. An
            argument that does not go with the file.
    """
    path = Path(root)
    suffix = path.suffix.lower()
    if path.is_dir():
        if labels is not None or classes is not None:
            raise ValueError(f"{path}: a folder of extracted features has labels and classes of its own")
    elif suffix not in (".safetensors", ".npy", ".parquet"):
        raise ValueError(f"{path}: expected a .npy, .safetensors or .parquet file, or a folder")
    of_tables = {"label": label, "columns": columns, "group": group}
    if suffix != ".parquet" and (given := [k for k, v in of_tables.items() if v is not None]):
        raise ValueError(f"{path}: {', '.join(given)} names columns of a .parquet table, this is none")
    if path.is_dir():
        return FeatureBank.load(path)
    x: Any
    groups = None
    if suffix == ".parquet":
        if label is None or labels is not None:
            raise ValueError(
                f"{path}: label must name the table's column of classes, and labels no other file"
            )
        x, y, classes, groups = read_feature_table(path, label, columns, group, classes)
    elif suffix == ".safetensors":
        x, y = _from_safetensors(path)
        if labels is not None:
            y = _integers(Path(labels))
    else:
        if labels is None:
            raise ValueError(f"{path}: a .npy file has no labels; name the file that has, as labels")
        x, y = read_npy(path, mapped=True), _integers(Path(labels))
    kind = FeatureBank if features else TensorData
    try:
        return kind(x, y, given_names(classes, "labels"), groups)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _from_safetensors(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, there is none")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    x = tensors.get("x", tensors.get("features"))
    y = tensors.get("labels", tensors.get("y"))
    if x is None or y is None:
        raise ValueError(f"{path}: expected tensors x (or features) and labels (or y), got {sorted(tensors)}")
    return x, _without_minus(y)


def _integers(path: Path) -> Tensor:
    array = read_npy(path)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{path}: expected integer labels, got {array.dtype}")
    return _without_minus(torch.from_numpy(array.astype(np.int64)))


def _without_minus(labels: Tensor) -> Tensor:
    """Labels in which -1, as scikit-learn and Hugging Face have it, is `UNLABELLED`."""
    return torch.where(labels == -1, UNLABELLED, labels)
