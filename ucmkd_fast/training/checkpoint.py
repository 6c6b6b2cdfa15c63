"""Checkpoints: plain tensors and JSON in a folder that appears whole, or not at all.

``<run>/checkpoints/step-00000150/`` holds ``tensors.safetensors``, ``state.json``
and ``SHA256SUMS`` (``sha256sum -c`` reads it). The folder is written under a
temporary name, flushed to the disk and renamed, so a process that is killed
leaves the earlier checkpoints as they were. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_TENSORS, _STATE, _SUMS = "tensors.safetensors", "state.json", "SHA256SUMS"
_MARK = "__tensor__"


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint, then delete all but the ``keep`` newest up to this one.

    Args:
        folder: where the run's checkpoints are.
        step: outer steps done; names the checkpoint.
        state: nested dicts and lists of tensors and plain values; keys are strings.
        keep: how many checkpoints stay.

    Raises:
        OSError: the disk is full or the folder cannot be written; the earlier checkpoints are intact.
    """
    path = folder / f"step-{step:08d}"
    temporary = folder / f".{path.name}.{os.getpid()}.part"
    tensors: dict[str, Tensor] = {}
    plain = _take_tensors(state, "", tensors)
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary / _TENSORS)
        (temporary / _STATE).write_text(json.dumps(plain), encoding="utf-8")
        sums = "".join(f"{_digest(temporary / name)}  {name}\n" for name in (_TENSORS, _STATE))
        (temporary / _SUMS).write_text(sums, encoding="utf-8")
        for name in (_TENSORS, _STATE, _SUMS):
            _flush(temporary / name)
        _flush(temporary)
        if path.exists():  # damaged, or about to be redone after the one before it was gone on from
            shutil.rmtree(path)
        os.rename(temporary, path)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"could not write {path}: {error}; the earlier checkpoints are intact") from error
    for old in _stale(folder, step, keep):
        shutil.rmtree(old, ignore_errors=True)
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `write_checkpoint` was given, its tensors on the CPU.

    Raises:
        FileNotFoundError: no checkpoint at the path, or no permission to read it.
        ValueError: the checkpoint is damaged: a checksum, the JSON or the tensors do not fit.
    """
    try:
        listed = [line.split(maxsplit=1) for line in (path / _SUMS).read_text(encoding="utf-8").splitlines()]
        if sorted(name for _, name in listed) != sorted((_TENSORS, _STATE)):
            raise ValueError(f"{_SUMS} lists {[name for _, name in listed]}")
        for digest, name in listed:
            if _digest(path / name) != digest:
                raise ValueError(f"{name} does not have its recorded checksum")
        plain = json.loads((path / _STATE).read_text(encoding="utf-8"))
        return _put_tensors(plain, load_file(path / _TENSORS))
    except OSError as error:
        raise FileNotFoundError(f"expected a readable checkpoint at {path}: {error}") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"the checkpoint {path} is damaged: {error}") from error


def read_latest(folder: Path) -> dict[str, Any] | None:
    """The newest sound checkpoint of a run, or None where there is none yet.

    A damaged one is reported in a warning and the one before it is used.

    Raises:
        ValueError: there are checkpoints and all of them are damaged.
    """
    damaged: ValueError | FileNotFoundError | None = None
    for path in list_checkpoints(folder):
        try:
            state = read_checkpoint(path)
        except (ValueError, FileNotFoundError) as error:
            damaged = error
            continue
        if damaged is not None:
            warnings.warn(f"{damaged}; going on from the one before it, {path}", stacklevel=2)
        return state
    if damaged is not None:
        raise ValueError(f"no sound checkpoint is left in {folder}: {damaged}") from damaged
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left under temporary names."""
    for path in folder.glob(".*.part"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file beside, then rename it over ``path``."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside, then rename it over ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a state dict as safetensors beside, then rename it over ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(weights, temporary, metadata)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"could not write {path}: {error}") from error


def snapshot(state: Any) -> Any:
    """A copy on the CPU of nested dicts and lists of tensors; no two tensors share memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True).contiguous()
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [snapshot(value) for value in state]
    return state


def _take_tensors(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The tree with each tensor replaced by its name; the tensors go to ``tensors``."""
    if isinstance(tree, Tensor):
        tensors[name] = snapshot(tree)
        return {_MARK: name}
    if isinstance(tree, dict):
        return {
            key: _take_tensors(value, f"{name}/{key}".lstrip("/"), tensors) for key, value in tree.items()
        }
    if isinstance(tree, (list, tuple)):
        return [_take_tensors(value, f"{name}/{i}", tensors) for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a checkpoint holds tensors and plain values; {name} is a {type(tree).__name__}")


def _put_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if tree.keys() == {_MARK}:
            return tensors[tree[_MARK]]
        return {key: _put_tensors(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_put_tensors(value, tensors) for value in tree]
    return tree


def _stale(folder: Path, step: int, keep: int) -> list[Path]:
    """All checkpoints but the newest ``keep`` up to ``step``; later ones are of an abandoned future."""
    current = f"step-{step:08d}"
    kept = [path for path in list_checkpoints(folder) if path.name <= current][:keep]
    return [path for path in list_checkpoints(folder) if path not in kept]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Make a file's content, or a folder's list of names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (
            path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)
        ):  # some systems cannot for folders
            raise
    finally:
        os.close(descriptor)
