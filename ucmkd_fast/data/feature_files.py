"""Features or samples that lie in files as plain arrays: .npy (memory-mapped) and safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .bank import FeatureBank
from .labelled import LabelledData, TensorData


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
            and ``labels`` (or ``y``).
        labels: a ``.npy`` file of integer labels; None: those in the safetensors file.
        classes: the classes' names; None: "0", "1", ...
        features: the samples are features of a teacher's encoder already, (n, D): it need not run.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or holds something else; the message begins with its name.
    """
    path = Path(root)
    if path.suffix == ".safetensors":
        x, y = _from_safetensors(path)
        if labels is not None:
            y = _integers(Path(labels))
    elif path.suffix == ".npy":
        if labels is None:
            raise ValueError(f"{path}: a .npy file has no labels; name the file that has, as labels")
        x, y = torch.from_numpy(read_npy(path)), _integers(Path(labels))
    else:
        raise ValueError(f"{path}: expected a .npy or .safetensors file")
    kind = FeatureBank if features else TensorData
    try:
        return kind(x, y, classes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_npy(path: Path, *, mapped: bool = False) -> np.ndarray:
    """A ``.npy`` file's array, never a pickled object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole array of plain numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an array in a .npy file, there is none")
    try:
        # Mapped first: what the header says is then held against the file's size before memory is asked for.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("several arrays in one file")
        return array if mapped else np.array(array)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise ValueError(f"{path}: not a whole .npy array of plain numbers: {error}") from error


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
