"""Replay a recorded run of the published code: ``python run_recorded_case.py CASE.npz``.

Prints one JSON line ``{"case": ..., "update_error": float, "buffer_error": float}``.
An error is the norm of (our update - the recorded one) over the norm of the recorded
one, over all floating parameters of everything that learns (student, teacher, the method's
own modules), or over the student's and such a teacher's buffers. A case of a method that is
not here: a message on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ucmkd_fast.config import TrainConfig
from ucmkd_fast.data.batch import Batch
from ucmkd_fast.methods import (
    FrozenTeacher,
    Method,
    Step,
    TrainedTeacher,
    available_methods,
    build_method,
    method_class,
)
from ucmkd_fast.training.schedule import build_optimizer, learning_rate, set_learning_rate

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

    def encode_with_maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.net.forward_encoder(x)


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
        "norm": {"copies": settings["norm_n"]},
        "reviewkd": {},
        "c2kd": {"threshold": settings["krc"]},
    }
    name = ours[settings["method"]]
    return build_method(name, **options[name])


#: The recorded names of a method's own modules, as patterns, and ours.
OWN_NAMES = {
    r"aux_(before|after)/ft_expand\.": "expand.",
    r"aux_(before|after)/abfs\.(\d+)\.conv1\.": r"fusions.\2.reduce.",
    r"aux_(before|after)/abfs\.(\d+)\.conv2\.": r"fusions.\2.expand.",
    r"aux_(before|after)/abfs\.(\d+)\.att\.0\.": r"fusions.\2.attend.",
    r"(student|teacher)_proxy_(before|after)/layer\.": r"\1_proxy.",
    r"(student|teacher)_proxy_(before|after)/fc\.": r"\1_proxy.3.",
}


def own_state(tensors: dict[str, Tensor], method: Method, moment: str) -> dict[str, Tensor]:
    """The state dict of the method's own modules ``before`` or ``after``; a 1 x 1 kernel as our matrix."""
    ours, found = method.state_dict(), {}
    for recorded, tensor in tensors.items():
        for pattern, name in OWN_NAMES.items():
            key = re.sub(pattern, name, recorded)
            if f"_{moment}/" in recorded and key in ours:
                found[key] = tensor.reshape(ours[key].shape)
    return found


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
    student, other_net = Recorded(network("student_before")), Recorded(network("teacher_before"))
    teacher = TrainedTeacher(other_net) if method.trains_teacher else FrozenTeacher(other_net)
    config = train_config(settings)
    optimizer = build_optimizer(config, student.parameters())
    step = Step(student, teacher if method.uses_teacher else None)
    x, teacher_x, y = (tensors[f"train/{name}"] for name in (own, other, "label"))
    method.setup(student, step.teacher, Batch(x[0], y[0], teacher_x[0]))
    method.load_state_dict(own_state(tensors, method, "before"))
    log = []
    generator = torch.Generator().manual_seed(shuffle_seed or 0)
    for epoch in range(settings["epochs"]):
        student.train()
        parts = []
        for i in range(len(y)):
            step.learning_rate = method.learning_rate(learning_rate(config, epoch), epoch, i)
            set_learning_rate(optimizer, step.learning_rate)
            n = len(y[i])
            rows = torch.arange(n) if shuffle_seed is None else torch.randperm(n, generator=generator)
            batch = Batch(x[i][rows], y[i][rows], teacher_x[i][rows], teacher_y=y[i][rows])
            parts.append(method.backward(step, batch))
            torch.nn.utils.clip_grad_norm_(student.parameters(), settings["max_norm"])
            for one in (optimizer, *method.own_optimizers()):
                one.step()
        log.append({key: float(torch.stack([p[key] for p in parts]).mean()) for key in parts[0]})

    updates: dict[bool, list[tuple[Tensor, Tensor, Tensor]]] = {True: [], False: []}  # is it a parameter
    roles = {"student": student.net, **({"teacher": other_net.net} if method.trains_teacher else {})}
    for role, net in roles.items():
        before, after = state(tensors, f"{role}_before"), state(tensors, f"{role}_after")
        for name, tensor in net.state_dict().items():
            is_parameter = name in dict(net.named_parameters())
            updates[is_parameter].append((before[name], tensor, after[name]))
    before, after = own_state(tensors, method, "before"), own_state(tensors, method, "after")
    updates[True] += [(before[name], p.detach(), after[name]) for name, p in method.named_parameters()]

    def error(triples: list[tuple[Tensor, Tensor, Tensor]]) -> float:
        difference = sum(((ours.double() - after.double()) ** 2).sum() for _, ours, after in triples)
        update = sum(((after.double() - before.double()) ** 2).sum() for before, _, after in triples)
        return float((difference / update) ** 0.5)

    return {
        "case": path.stem,
        "update_error": error(updates[True]),
        "buffer_error": error(updates[False]),
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
