"""Replay a recorded run of the published code: ``python run_recorded_case.py CASE.npz``.

Prints one JSON line ``{"case": ..., "update_error": float, "buffer_error": float}``.
An error is the norm of (our update - the recorded one) over the norm of the recorded
one, over all floating parameters, or over all buffers. A case of a method that is not
here: a message on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ucmkd_fast.config import TrainConfig
from ucmkd_fast.data.batch import Batch
from ucmkd_fast.methods import FrozenTeacher, Method, Step, available_methods, build_method, method_class
from ucmkd_fast.schedule import build_optimizer, learning_rate, set_learning_rate

SHARED = Path(os.environ.get("UCMKD_SHARED", Path(__file__).resolve().parents[2] / "shared"))


class NotBuilt(Exception):
    """The case's method does not exist here."""


class Recorded(nn.Module):
    """A recorded network under the library's contract."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    @property
    def head(self) -> nn.Module:
        return self.net.fc

    def encode(self, x: Tensor) -> Tensor:
        return self.net.forward_encoder(x)[0]


def load_nets() -> ModuleType:
    """The module ``parity/nets.py`` of the shared folder."""
    path = SHARED / "parity" / "nets.py"
    if not path.is_file():
        raise FileNotFoundError(f"expected the recorded networks in {path} (UCMKD_SHARED names the folder)")
    spec = importlib.util.spec_from_file_location("recorded_nets", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_case(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, float]]]:
    """Tensors by name, settings, and the log of each epoch."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    settings, log = (json.loads(str(arrays.pop(key))) for key in ("settings", "epoch_log"))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, settings, log


def state(tensors: dict[str, Tensor], role: str) -> dict[str, Tensor]:
    """A state dict of the case, e.g. ``student_before``."""
    return {name.split("/", 1)[1]: t for name, t in tensors.items() if name.startswith(role + "/")}


def build_recorded_method(settings: dict[str, Any]) -> Method:
    """Our method with the case's options."""
    ours = {method_class(name).published_name: name for name in available_methods()}
    if settings["method"] not in ours:
        raise NotBuilt(f"method {settings['method']!r} is not built; there are {sorted(ours)}")
    transport = {"metric": settings["metric"], "reg": settings["ot_reg"], "max_iter": settings["ot_iter"]}
    options: dict[str, dict[str, Any]] = {
        "ce": {},
        "kd": {"temperature": settings["kd_temp"], "alpha": settings["kd_alpha"]},
        "feature": {"fa_weight": settings["fa_weight"], **transport},
        "joint": {"fa_weight": settings["fa_weight"], "la_weight": settings["la_weight"], **transport},
        "ucmkd": {
            "preset": "published-code",
            "n1": settings["n1_steps"],
            "n2": settings["n2_steps"],
            "inner_lr": settings["inner_lr"],
            "inner_wd": settings["inner_wd"],
            **transport,
        },
    }
    name = ours[settings["method"]]
    return build_method(name, **options[name])


def train_config(settings: dict[str, Any]) -> TrainConfig:
    """The outer optimiser and schedule of a case; the published code's SGD has no weight decay."""
    return TrainConfig(
        epochs=settings["num_epochs"],
        warmup_epochs=settings["warmup_epoch"],
        lr=settings["lr"],
        min_lr=settings["min_lr"],
        optimizer=settings["optimizer"],
        momentum=0.9,
        weight_decay=settings["weight_decay"] if settings["optimizer"] == "adamw" else 0.0,
    )


def replay(path: Path, shuffle_seed: int | None = None) -> dict[str, Any]:
    """Run a case; return its name, both errors, and the mean of each logged part by epoch.

    ``shuffle_seed`` permutes the rows of each batch, a student's together with the
    teacher's: the same mathematics, other rounding.
    """
    tensors, settings, _ = load_case(path)
    method = build_recorded_method(settings)
    nets = load_nets()

    def network(role: str) -> nn.Module:
        weights = state(tensors, role)
        classes, width = weights["fc.weight"].shape
        net = nets.SmallNet(weights["stages.0.0.weight"].shape[1], classes, width)
        net.load_state_dict(weights)
        return net

    own = settings["student"]
    other = "image" if own == "audio" else "audio"
    student, teacher = Recorded(network("student_before")), FrozenTeacher(Recorded(network("teacher_before")))
    config = train_config(settings)
    optimizer = build_optimizer(config, student.parameters())
    step = Step(student, teacher if method.uses_teacher else None)
    method.setup(student, step.teacher)
    log = []
    generator = torch.Generator().manual_seed(shuffle_seed or 0)
    for epoch in range(settings["epochs"]):
        student.train()
        set_learning_rate(optimizer, learning_rate(config, epoch))
        parts = []
        for x, teacher_x, y in zip(
            tensors[f"train/{own}"], tensors[f"train/{other}"], tensors["train/label"], strict=True
        ):
            rows = (
                torch.arange(len(y)) if shuffle_seed is None else torch.randperm(len(y), generator=generator)
            )
            batch = Batch(x[rows], y[rows], teacher_x[rows], teacher_y=y[rows])
            parts.append(method.backward(step, batch))
            torch.nn.utils.clip_grad_norm_(student.parameters(), settings["max_norm"])
            optimizer.step()
        log.append({key: float(torch.stack([p[key] for p in parts]).mean()) for key in parts[0]})

    before, after = state(tensors, "student_before"), state(tensors, "student_after")
    ours = student.net.state_dict()
    parameters = [name for name, _ in student.net.named_parameters()]
    buffers = [name for name, _ in student.net.named_buffers()]

    def error(names: list[str]) -> float:
        difference = sum(((ours[n].double() - after[n].double()) ** 2).sum() for n in names)
        update = sum(((after[n].double() - before[n].double()) ** 2).sum() for n in names)
        return float((difference / update) ** 0.5)

    return {
        "case": path.stem,
        "update_error": error(parameters),
        "buffer_error": error(buffers),
        "log": log,
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Replay a recorded run of the published code.")
    parser.add_argument("case", type=Path, metavar="CASE.npz")
    path = parser.parse_args().case
    torch.set_num_threads(1)
    try:
        result = replay(path)
    except NotBuilt as refusal:
        print(f"{path.name}: {refusal}", file=sys.stderr)
        return 2
    result.pop("log")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
