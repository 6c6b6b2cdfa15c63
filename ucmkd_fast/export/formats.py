"""One format after the other: write a student to a file, and read its logits back from there.

The batch may have any size in all of them; every other axis is as in the run's samples.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..extras import need
from ..models.weights import state_of
from ..training.checkpoint import snapshot, write_weights

Read = Callable[[Tensor], Tensor]  # x (n, ...) -> logits (n, K)


class _Logits(nn.Module):
    """The student as one function, x (n, ...) -> logits (n, K), by the contract that every model keeps."""

    def __init__(self, student: Any):
        super().__init__()
        self.student = student

    def forward(self, x: Tensor) -> Tensor:
        return self.student.head(self.student.encode(x))


@dataclass(frozen=True)
class Format:
    """How a format is written and read back.

    Attributes:
        suffix: of the file.
        tolerance: how far logits may be off after reading, relative to the largest; 0: bit for bit.
        write: student, inputs (2, ...), path and what to say about it -> a file at the path.
        read: path and the student -> a function from inputs to logits.
        requires: modules of optional packages.
    """

    suffix: str
    tolerance: float
    write: Callable[[nn.Module, Tensor, Path, dict[str, str]], None]
    read: Callable[[Path, nn.Module], Read]
    requires: tuple[str, ...] = ()


def _write_safetensors(student: nn.Module, x: Tensor, path: Path, about: dict[str, str]) -> None:
    write_weights(path, snapshot(state_of(student)), {"format": "pt", **about})


def _read_safetensors(path: Path, student: nn.Module) -> Read:
    from .student import load_student

    return _Logits(load_student(path)[0])


def _program(student: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(_Logits(student), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _write_pt2(student: nn.Module, x: Tensor, path: Path, about: dict[str, str]) -> None:
    # To memory first: torch's own writer ends the process where a disk is full.
    memory = io.BytesIO()
    torch.export.save(_program(student, x), memory, extra_files=about)
    path.write_bytes(memory.getvalue())


def _read_pt2(path: Path, student: nn.Module) -> Read:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _write_onnx(student: nn.Module, x: Tensor, path: Path, about: dict[str, str]) -> None:
    onnx = need("onnx")
    program = torch.onnx.export(
        _program(student, x), input_names=["x"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _read_onnx(path: Path, student: nn.Module) -> Read:
    session = need("onnxruntime").InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"x": x.numpy()})[0])


#: By name; the file is ``student`` and the suffix.
FORMATS = {
    "safetensors": Format(".safetensors", 0.0, _write_safetensors, _read_safetensors),
    "pt2": Format(".pt2", 1e-5, _write_pt2, _read_pt2),
    "onnx": Format(".onnx", 1e-4, _write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
}


@contextmanager
def quietly() -> Iterator[None]:
    """What exporters print, log and warn of is about their own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
