"""The files of a finished run: what came out, and the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..models.weights import load_state
from ..training.checkpoint import write_text

RESULT, CONFIG = "result.json", "config.yaml"
DIVERGED = "diverged"  # in a result: why there is no accuracy


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a run came to; None where it has not ended yet. ValueError where the file is damaged."""
    try:
        text = (folder / RESULT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        result = json.loads(text)
        result["config"], result["weights"]  # noqa: B018  (a run's result has both)
        return result
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RESULT} is damaged: {error!r}; delete it and resume the run") from error


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write ``result.json``, beside and then renamed: a run that has it has ended."""
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")


def weights_of(place: str | Path) -> Path:
    """The file of weights that a finished run's folder names, or that is named itself.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(place)
    if path.is_dir():
        result = read_result(path)
        if result is None:
            raise FileNotFoundError(f"{path}: expected a finished run, it has no {RESULT}")
        if DIVERGED in result:
            raise FileNotFoundError(f"{path}: the run has no weights, it diverged: {result[DIVERGED]}")
        path = path / result["weights"]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of weights or a finished run's folder, found none")
    return path


def load_weights(model: nn.Module, path: Path) -> None:
    """Read weights into a model; ValueError where they are damaged, or of another model."""
    try:
        load_state(model, load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: not weights of this model ({type(model).__name__}): {error}") from error
