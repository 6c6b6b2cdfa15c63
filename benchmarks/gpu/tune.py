"""Sweeps over the overrides of `_device`, and the best per size.

What is swept where the module has it: OVERRIDES and TUNINGS, or what TUNE names, as
``regime=0,2;own_barrier=False,True``, values of several names combined; SIZES names sizes, as ``64,1024``.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import ITERATIONS, REG, replay_milliseconds
from speed import no_early_end
from worker import Case

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device

OVERRIDES: dict[str, list[Any]] = {"regime": [0, 1, 2, 3], "own_barrier": [False, True]}
TUNINGS = [{"threads": t, "quads": q} for t in (128, 256, 512) for q in (1, 2, 4)] + [
    {"grid": k} for k in (33, 66, 132)
]
SIZES = [int(n) for n in os.environ.get("SIZES", "64,96,128,192,256,512,1024,2048,2560,4096,8192").split(",")]


def settings() -> list[dict[str, Any]]:
    """Values for names that `_device` has."""
    wanted = OVERRIDES
    told = os.environ.get("TUNE")
    if told:
        pairs = (part.split("=") for part in told.split(";"))
        wanted = {name.strip(): list(ast.literal_eval(f"[{values}]")) for name, values in pairs}
    wanted = {name: values for name, values in wanted.items() if hasattr(_device, name)}
    found = [dict(zip(wanted, values, strict=True)) for values in itertools.product(*wanted.values())]
    if not told and hasattr(_device, "tuning"):
        found += [{"own_barrier": own, "tuning": t} for t in TUNINGS for own in (False, True)]
    return found


def one(n: int, setting: dict[str, Any]) -> dict[str, Any]:
    """A graph's replay of value and gradient of a given cost, 100 iterations; the sum to be near the default's."""
    torch.manual_seed(n)
    C = torch.rand(n, n, device="cuda")

    def run() -> Any:
        leaf = C.detach().requires_grad_()
        value = uk.sinkhorn(leaf, reg=REG, max_iter=ITERATIONS).value
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    plain, plain_grad = run()
    before = {name: getattr(_device, name) for name in setting}
    is_default = all(before[name] == value for name, value in setting.items())
    try:
        for name, value in setting.items():
            setattr(_device, name, value)
        value, grad = run()
        with no_early_end():
            spent = replay_milliseconds(run, 0.3)
    finally:
        for name, value_before in before.items():
            setattr(_device, name, value_before)
    differs = max(abs((value / plain).item() - 1), ((grad - plain_grad).norm() / plain_grad.norm()).item())
    found: dict[str, Any] = {"graph_ms": spent, "differs": differs}
    if not differs <= 1e-3:
        return {**found, "failed": "not what the default computes"}
    return {**found, "n": n, "setting": setting, "default": is_default}


def best(n: int) -> dict[str, Any]:
    """The quickest rows of a size, the default's beside them; from the file, as a worker may have died between."""
    rows = [json.loads(line) for line in Path(os.environ["RESULTS"]).read_text().splitlines()]
    rows = [row for row in rows if row["mode"] == "tune"]
    last = max(
        (k for k, row in enumerate(rows) if row["case"] == "all"), default=-1
    )  # the end of a run before this
    rows = sorted(
        (r for r in rows[last + 1 :] if r.get("n") == n and "failed" not in r), key=lambda r: r["graph_ms"]
    )
    default = next((r["graph_ms"] for r in rows if r["default"]), None)
    return {"default_ms": default, "best": {str(r["setting"]): r["graph_ms"] for r in rows[:3]}}


def cases() -> list[Case]:
    found = []
    for n in SIZES:
        for setting in settings():
            if setting.get("regime") == 1 and n > 512:
                continue  # one block: it would take seconds
            words = " ".join(f"{k}={v}" for k, v in setting.items())
            found.append(Case(f"N = {n} {words}", partial(one, n, setting), 30))
    return found + [Case(f"best, N = {n}", partial(best, n)) for n in SIZES]
