"""The student of a finished run, without its run: written, read back, and compared with what it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .. import __version__
from ..extras import need
from ..models.precision import inputs_for
from ..ops.checks import choice
from ..run.files import load_weights
from ..run.finished import FinishedRun, open_finished
from ..run.sources import Named, build_model
from ..training.checkpoint import write_text
from .formats import FORMATS, quietly

FOLDER = "export"  # in the run's
_ABOUT = "ucmkd-student.json"  # torch.export wants the name of a file
_CHECKED = 16  # samples whose logits are compared


@dataclass(frozen=True)
class Exported:
    """One file."""

    format: str
    path: Path
    bytes: int
    difference: float  # the largest between logits before and after, relative to the largest logit


def export_run(
    folder: Path,
    formats: Sequence[str] = ("safetensors", "pt2"),
    output: Path | None = None,
    changes: dict[str, Any] | None = None,
) -> list[Exported]:
    """Write the student of a finished run to ``output/student.*``, and ``student.json``, which describes it.

    Each file is written beside, read back, run on samples of the run's data in batches of two sizes and only
    then renamed: a file that is there gives what the student gave.

    Args:
        folder: the run's.
        formats: names in `FORMATS`.
        output: where to; None: ``export`` in the run's folder.
        changes: to the run's settings, at dotted paths: where its data are now, say.

    Raises:
        FileNotFoundError: no finished run, or missing data.
        ImportError: a format's packages are not installed.
        OSError: the files cannot be written; whatever was there before is intact.
        ValueError: an unknown format, damaged weights, or a model that the format cannot hold.
    """
    for name in formats:
        choice("a format", name, list(FORMATS))
        for module in FORMATS[name].requires:
            need(module)
    run = open_finished(folder, changes)
    data = run.parts.test or run.parts.val or run.parts.train
    x = inputs_for(run.student, data.batch(torch.arange(min(_CHECKED, len(data))))[0])
    about = _about(run, x)
    output = output or folder / FOLDER
    output.mkdir(parents=True, exist_ok=True)
    done = [_write_checked(run.student, x, name, output, about) for name in formats]
    write_text(output / "student.json", json.dumps(about, indent=2) + "\n")
    return done


def load_student(path: str | Path) -> tuple[nn.Module, list[str]]:
    """The student of an exported ``student.safetensors`` and its classes' names; eval mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not an exported student.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an exported student, there is no such file")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_ABOUT])
        with torch.random.fork_rng(devices=[]):
            sample = torch.empty(about["input"]["shape"])
            model = build_model(Named.read(about["model"]), about["classes"], sample, seed=0)
    except KeyError as error:
        raise ValueError(
            f"{path}: expected a student that `ucmkd export` wrote, its description is not there"
        ) from error
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a whole exported student: {error}") from error
    load_weights(model, path)
    return model.eval(), list(about["classes"])


def _about(run: FinishedRun, x: Tensor) -> dict[str, Any]:
    """What a user of the file needs to know, and where it comes from."""
    return {
        "classes": list(run.parts.train.classes),
        "input": {"shape": list(x.shape[1:]), "dtype": str(x.dtype).removeprefix("torch.")},
        "output": "logits, one a class",
        "model": run.config.student.model.plain(),
        "data": run.config.student.data.plain(),
        "method": run.config.method.plain(),
        "run": run.folder.resolve().name,
        "weights": run.weights.name,
        "versions": {"ucmkd-fast": __version__, "torch": torch.__version__},
    }


def _write_checked(student: nn.Module, x: Tensor, name: str, output: Path, about: dict[str, Any]) -> Exported:
    form = FORMATS[name]
    path = output / f"student{form.suffix}"
    # The suffix stays: some readers go by it.
    temporary = output / f".student.{os.getpid()}.part{form.suffix}"
    try:
        with quietly():
            try:
                form.write(student, x[:2] if len(x) > 1 else x.repeat(2, *[1] * (x.dim() - 1)), temporary,
                           {_ABOUT: json.dumps(about)})  # fmt: skip
            except OSError:
                raise
            except Exception as error:  # an exporter fails in as many ways as there are models
                raise ValueError(
                    f"{name} cannot hold this model ({type(student).__name__}): {_first_line(error)}"
                ) from error
            difference = _difference(student, form.read(temporary, student), x)
        if not difference <= form.tolerance:
            raise ValueError(
                f"{name}: expected the logits of the student within {form.tolerance:g} of the largest, "
                f"read back they differ by {difference:g}; nothing was kept"
            )
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"could not write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(name, path, path.stat().st_size, difference)


@torch.no_grad()
def _difference(student: Any, read: Any, x: Tensor) -> float:
    """Of logits, over all samples at once and over the first alone."""
    worst = 0.0
    for batch in (x, x[:1]):
        wanted = student.head(student.encode(batch))
        got = read(batch)
        if got.shape != wanted.shape:
            raise ValueError(f"expected logits {tuple(wanted.shape)}, read back they are {tuple(got.shape)}")
        worst = max(worst, ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)).item())
    return worst


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
