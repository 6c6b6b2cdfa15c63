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
import tune_features
from measure import ITERATIONS, REG, replay_milliseconds
from overrides import no_clusters, no_early_end, overridden
from worker import Case

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device

OVERRIDES: dict[str, list[Any]] = {"regime": [0, 1, 2, 3], "own_barrier": [False, True]}
TUNINGS = [{"threads": t, "quads": q} for t in (128, 256, 512) for q in (1, 2, 4)] + [
    {"grid": k} for k in (33, 66, 132)
]
CLUSTER_SIZES = (160, 192, 256, 320, 384, 512)
CLUSTER_BLOCKS = (4, 8, 16)
CLUSTER_ROOM = 190_000  # bytes of the cost that a block keeps at most, with its other numbers beside them
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


def of_clusters(n: int) -> list[dict[str, Any]]:
    """The default, then clusters: of the size that is predicted to be quickest, and of each that holds the cost."""
    fit = [blocks for blocks in CLUSTER_BLOCKS if 4 * n * -(-n // blocks) <= CLUSTER_ROOM]
    on = {"clusters": True, "regime": 6}
    return [{"clusters": False}, on, *({**on, "tuning": {"grid": blocks}} for blocks in fit)]


def one(n: int, setting: dict[str, Any]) -> dict[str, Any]:
    """A graph's replay of value and gradient of a given cost, 100 iterations; the sum to be near the default's."""
    if setting.get("clusters") and (why := no_clusters()):
        return {"left_out": why}
    torch.manual_seed(n)
    C = torch.rand(n, n, device="cuda")

    def run() -> Any:
        leaf = C.detach().requires_grad_()
        value = uk.sinkhorn(leaf, reg=REG, max_iter=ITERATIONS).value
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    plain, plain_grad = run()
    is_default = all(getattr(_device, name) == value for name, value in setting.items())
    with overridden(**setting):
        value, grad = run()
        with no_early_end():
            spent = replay_milliseconds(run, 0.3)
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


def words(n: int, setting: dict[str, Any]) -> str:
    return " ".join([f"N = {n}", *(f"{k}={v}" for k, v in setting.items())])


def cases() -> list[Case]:
    """What has no figures yet comes first; what TUNE names comes alone."""
    chosen = "TUNE" in os.environ
    asked = [] if chosen else [(n, setting) for n in CLUSTER_SIZES for setting in of_clusters(n)]
    # one block, of many elements: it would take seconds
    asked += [(n, s) for n in SIZES for s in settings() if not (s.get("regime") == 1 and n > 512)]
    found = [Case(words(n, setting), partial(one, n, setting), 30) for n, setting in asked]
    sizes = sorted({n for n, _ in asked})
    first = [] if chosen else tune_features.cases()
    return first + found + [Case(f"best, N = {n}", partial(best, n)) for n in sizes]
