"""Features or samples that lie in files as plain arrays: .npy (memory-mapped) and safetensors."""

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
from .labelled import LabelledData, TensorData
from .npy import read_npy


def open_features(
    *,
    root: str | Path,
    labels: str | Path | None = None,
    classes: Sequence[str] | None = None,
    features: bool = False,
) -> LabelledData:
    """Arrays (n, ...) and labels (n,) from files.

    Args:
        root: a ``.npy`` file of samples, or a ``.safetensors`` file that holds ``x`` (or ``features``)
            and ``labels`` (or ``y``), or a folder that `extract` wrote.
        labels: a ``.npy`` file of integer labels; None: those in the safetensors file.
        classes: the classes' names; None: "0", "1", ...
        features: the samples are features of a teacher's encoder already, (n, D): it need not run.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or holds something else; the message begins with its name.
    """
    path = Path(root)
    x: Any
    if path.is_dir():
        if labels is not None or classes is not None:
            raise ValueError(f"{path}: a folder of extracted features has labels and classes of its own")
        return FeatureBank.load(path)
    if path.suffix == ".safetensors":
        x, y = _from_safetensors(path)
        if labels is not None:
            y = _integers(Path(labels))
    elif path.suffix == ".npy":
        if labels is None:
            raise ValueError(f"{path}: a .npy file has no labels; name the file that has, as labels")
        x, y = read_npy(path, mapped=True), _integers(Path(labels))
    else:
        raise ValueError(f"{path}: expected a .npy or .safetensors file")
    kind = FeatureBank if features else TensorData
    try:
        return kind(x, y, classes)
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
    return x, y


def _integers(path: Path) -> Tensor:
    array = read_npy(path)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{path}: expected integer labels, got {array.dtype}")
    return torch.from_numpy(array.astype(np.int64))
