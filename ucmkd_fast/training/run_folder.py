"""The folder of a run: what it holds, whose it is, and that nothing in it is overwritten unasked.

::

    config.yaml        the resolved settings: method, its options, training
    run.json           what makes this run this run, and the versions it ran with
    checkpoints/       the two newest, see `checkpoint`
    best.safetensors   the student that was best on validation
    last.safetensors   the student of the last epoch
    weights/           the student of other epochs, where they are kept
    result.json        what the command line measured when all was done
    logs/              what trackers write, where asked for
    export/, report/   what `ucmkd export` and `ucmkd report` made of it
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..config import BOOKKEEPING
from .checkpoint import list_checkpoints, read_checkpoint, read_latest, remove_leftovers, write_text

_OWN = (
    "config.yaml", "run.json", "checkpoints", "best.safetensors", "last.safetensors", "weights", "result.json", "logs",
    "export", "report",
)  # fmt: skip


class RunFolder:
    """An output folder. Only the main process writes to it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"

    def kept_weights(self) -> dict[int, Path]:
        """The students that were kept, by their epoch, 0 the first weights."""
        found = sorted((self.path / "weights").glob("epoch-*.safetensors"))
        return {int(path.stem.removeprefix("epoch-")): path for path in found}

    def weights_at(self, epoch: int) -> Path:
        """Where the student of an epoch is kept."""
        return self.path / "weights" / f"epoch-{epoch:06d}.safetensors"

    def held(self) -> list[str]:
        """The names of a run's files that are in the folder; none where there is no folder.

        Raises:
            FileNotFoundError: the path is a file, or a folder that cannot be read.
        """
        try:
            return sorted(set(os.listdir(self.path)) & set(_OWN))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FileNotFoundError(f"expected a readable folder at {self.path}: {error}") from error

    def check(self, *, source: Path | None, overwrite: bool) -> None:
        """Raise unless a run that goes on from ``source`` may write here.

        Raises:
            FileNotFoundError: the path is not a readable folder.
            ValueError: it holds a run that is neither the source nor to be overwritten.
        """
        held = self.held()
        if not held or overwrite:
            return
        if source is None or self.path.resolve() not in (source.resolve(), source.resolve().parent.parent):
            raise ValueError(
                f"{self.path} holds a run already ({', '.join(held)}): pass resume=True to go on with it, "
                "overwrite=True to replace it, or name another folder"
            )

    def check_same(self, identity: dict[str, Any]) -> None:
        """Raise ValueError, naming the first differences, unless this folder holds a run of this identity."""
        try:
            held = json.loads((self.path / "run.json").read_text(encoding="utf-8"))["identity"]
        except OSError as error:
            raise FileNotFoundError(f"expected a run at {self.path}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path / 'run.json'} is damaged: {error!r}") from error
        differences = list(_differences(held, identity))
        if differences:
            raise ValueError(f"the run in {self.path} is another one: " + "; ".join(differences[:4]))

    def begin(self, settings: dict[str, Any], record: dict[str, Any], *, overwrite: bool) -> None:
        """Make the folder and write what the run is; with ``overwrite`` the earlier run's files go first."""
        if overwrite:
            for name in _OWN:
                target = self.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        remove_leftovers(self.checkpoints)
        # run.json first: a folder that holds anything of a run then says whose it is.
        write_text(self.path / "run.json", json.dumps(record, indent=2) + "\n")
        write_text(self.path / "config.yaml", yaml.safe_dump(settings, sort_keys=False))


def read_resume_point(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state to go on from: the newest of a run's folder, or one checkpoint that is named itself.

    None where the run was ended before its first checkpoint.

    Raises:
        FileNotFoundError: there is neither a run nor a checkpoint at the path.
        ValueError: it belongs to another run, or no checkpoint is sound.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"expected a run or one of its checkpoints at {path}, found nothing")
    if path.name.startswith("step-"):
        RunFolder(path.parent.parent).check_same(identity)
        return read_checkpoint(path)
    run = RunFolder(path)
    run.check_same(identity)
    return read_latest(run.checkpoints)


def latest_checkpoint(run: RunFolder) -> Path | None:
    """The newest checkpoint's folder."""
    return next(iter(list_checkpoints(run.checkpoints)), None)


def identity_of(
    settings: dict[str, Any], data: dict[str, Any], teacher_head: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What must be equal for one run to go on from another's checkpoint."""
    train = {key: value for key, value in settings["train"].items() if key not in BOOKKEEPING}
    head = digest(teacher_head.values())
    return {"method": settings["method"], "train": train, "data": data, "teacher_head": head}


def digest(tensors: Any) -> str:
    """A short digest of some tensors' values."""
    total = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().to("cpu").contiguous().flatten()
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return total.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for name in ("ucmkd-fast", "torch", "accelerate", "numpy", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def git_state() -> dict[str, Any] | None:
    """The commit of the working directory, and whether it has changes; None outside git."""
    try:
        commit, changes = (
            subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed_files": len(changes.splitlines())}


def _differences(held: Any, wanted: Any, name: str = "") -> Any:
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(k for k in held if k not in wanted)]:
            yield from _differences(held.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif held != wanted:
        yield f"{name} is {held!r} there and {wanted!r} here"
