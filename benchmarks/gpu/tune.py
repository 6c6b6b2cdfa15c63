"""Sweeps over the overrides of `_solve_cuda`, and the best per size.

What is swept where the module has it: OVERRIDES, or what TUNE names, as ``regime=0,1,2;barrier=0,1``. Values of several
names are combined.
"""

from __future__ import annotations

import ast
import itertools
import os
from functools import partial
from typing import Any

import torch
from measure import ITERATIONS, REG, replay_milliseconds
from speed import no_early_end
from worker import Case

import ucmkd_fast as uk
from ucmkd_fast.ops import _solve_cuda

OVERRIDES: dict[str, list[Any]] = {"regime": [0, 1, 2, 3], "barrier": [0, 1], "tuning": [0]}
SIZES = (64, 96, 128, 192, 256, 512, 1024, 2048, 2560, 4096, 8192)
best: dict[int, tuple[float, str]] = {}


def overrides() -> dict[str, list[Any]]:
    """Names that `_solve_cuda` has, each with the values to try."""
    wanted = dict(OVERRIDES)
    if told := os.environ.get("TUNE"):
        pairs = (part.split("=") for part in told.split(";"))
        wanted = {name.strip(): list(ast.literal_eval(f"[{values}]")) for name, values in pairs}
    return {name: values for name, values in wanted.items() if hasattr(_solve_cuda, name)}


def one(n: int, setting: dict[str, Any]) -> dict[str, Any]:
    """A graph's replay of value and gradient of a given cost, 100 iterations; the sum to be near the default's."""
    torch.manual_seed(n)
    C = torch.rand(n, n, device="cuda")

    def run() -> Any:
        leaf = C.detach().requires_grad_()
        value = uk.sinkhorn(leaf, reg=REG, max_iter=ITERATIONS).value
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    plain, plain_grad = run()
    before = {name: getattr(_solve_cuda, name) for name in setting}
    try:
        for name, value in setting.items():
            setattr(_solve_cuda, name, value)
        value, grad = run()
        with no_early_end():
            spent = replay_milliseconds(run, 0.3)
    finally:
        for name, value_before in before.items():
            setattr(_solve_cuda, name, value_before)
    differs = max(abs((value / plain).item() - 1), ((grad - plain_grad).norm() / plain_grad.norm()).item())
    found: dict[str, Any] = {"graph_ms": spent, "differs": differs}
    if not differs <= 1e-3:
        return {**found, "failed": "not what the default computes"}
    words = " ".join(f"{k}={v}" for k, v in setting.items())
    best[n] = min(best.get(n, (spent, words)), (spent, words))
    return found | {"best_of_size": f"{best[n][1]} ({best[n][0]:.4g} ms)"}


def cases() -> list[Case]:
    names, values = zip(*overrides().items(), strict=True) if overrides() else ((), ())
    found = []
    for n in SIZES:
        for combined in itertools.product(*values):
            setting = dict(zip(names, combined, strict=True))
            if setting.get("regime") == 1 and n > 512:
                continue  # one block: it would take seconds
            words = " ".join(f"{k}={v}" for k, v in setting.items())
            found.append(Case(f"N = {n} {words}", partial(one, n, setting), 30))
    return found
