"""An encoder run once over a data set, its features kept in a folder that is read without being loaded.

The folder holds ``features.npy`` (n, D), ``labels.npy`` (n,), ``names.json`` (classes, groups, ids) and
``manifest.json``: what made the features, and their checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.contract import check_model
from ..models.precision import inputs_for
from ..ops.checks import count_at_least_one
from ..ops.refusals import first_not_finite
from .batch import row_batches
from .cache import folder_made_beside
from .labelled import LabelledData
from .npy import read_npy

FORMAT = "ucmkd-fast extracted features 1"


@torch.no_grad()
def extract(
    model: Any,  # nn.Module with encode, head
    data: LabelledData,
    folder: str | Path,
    about: Mapping[str, Any],
    *,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda samples: None,
) -> bool:
    """Write the features of every sample, not augmented, by ``model.encode`` in eval mode.

    Args:
        model: the encoder's; batches go to its device.
        data: the samples.
        folder: appears whole or not at all.
        about: plain values that say what makes the features (encoder, revision, data, preprocessing).
        batch_size: samples at a time.
        advance: called with the number of samples done.

    Returns:
        True; False where the folder already holds the features that this would make.

    Raises:
        ValueError: the folder holds something else, or a feature is not finite.
    """
    check_model(model, "model")
    count_at_least_one("batch_size", batch_size)
    folder = Path(folder)
    asked = {"format": FORMAT, "about": dict(about), "samples": len(data), "labels": _digest_labels(data)}
    if folder.exists():
        if _same(folder, asked):
            return False
        raise ValueError(f"{folder}: holds something else than the features asked for; name another folder")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with folder_made_beside(folder) as temporary:
            array = None
            for rows in row_batches(len(data), batch_size):
                found = model.encode(inputs_for(model, data.batch(rows)[0].to(device))).float().cpu()
                samples = f"samples {int(rows[0])} to {int(rows[-1])}"
                if found.dim() != 2:
                    raise ValueError(f"features must be of shape (n, D); {samples} gave {tuple(found.shape)}")
                if not torch.isfinite(found).all():
                    row = int(rows[(~torch.isfinite(found)).any(1)][0])
                    raise ValueError(
                        f"features must be finite, got {first_not_finite(found)} for sample {row}"
                    )
                if array is None:
                    shape = (len(data), found.shape[1])
                    array = np.lib.format.open_memmap(temporary / "features.npy", "w+", np.float32, shape)
                array[int(rows[0]) : int(rows[-1]) + 1] = found.numpy()
                advance(len(rows))
            assert array is not None
            array.flush()
            np.save(temporary / "labels.npy", data.labels.numpy())
            names = {"classes": data.classes, "groups": data.groups, "ids": data.ids}
            (temporary / "names.json").write_text(json.dumps(names), encoding="utf-8")
            manifest = {**asked, "width": array.shape[1], "sha256": _digest(temporary / "features.npy")}
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            temporary.chmod(0o755)
    finally:
        for module, training in modes:
            module.training = training
    return True


def read_extracted(folder: Path, *, check: bool = False) -> dict[str, Any]:
    """What `extract` wrote: features (n, D), memory-mapped, labels (n,), classes, groups, ids and about.

    Raises:
        FileNotFoundError: a file of it is missing.
        ValueError: it is damaged, or (``check``) its features do not have their checksum.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}, expected {FORMAT!r}")
        shape, digest = (manifest["samples"], manifest["width"]), manifest["sha256"]
        found = {"about": manifest["about"], **{k: names[k] for k in ("classes", "groups", "ids")}}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: not a folder of extracted features: {error}") from error
    features = read_npy(folder / "features.npy", mapped=True)
    if features.shape != shape or (check and _digest(folder / "features.npy") != digest):
        raise ValueError(f"{folder / 'features.npy'}: not the features that manifest.json tells of")
    labels = torch.from_numpy(read_npy(folder / "labels.npy"))
    return {**found, "features": features, "labels": labels}


def _same(folder: Path, asked: dict[str, Any]) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(manifest.get(key) == value for key, value in json.loads(json.dumps(asked)).items())


def _digest_labels(data: LabelledData) -> str:
    told = json.dumps([data.labels.tolist(), data.classes, data.ids])
    return hashlib.sha256(told.encode()).hexdigest()


def _digest(path: Path) -> str:
    own = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            own.update(chunk)
    return own.hexdigest()
