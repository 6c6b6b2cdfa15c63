"""What a pair costs in a sweep over features, stored in panels or made where it is read: StreamCosts of regime.h."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import features, milliseconds
from overrides import overridden
from worker import Case

import ucmkd_fast as uk

N, SWEEPS = 8192, 20
WIDTHS = (16, 64, 96, 128)


class Kind(NamedTuple):
    """What multiplies, and of which features."""

    dtype: torch.dtype
    metric: str
    tensor_cores: bool
    widths: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype)[6:]} {self.metric}" + (", tensor cores" if self.tensor_cores else "")


KINDS = (
    Kind(torch.float32, "l2", False, WIDTHS),
    Kind(torch.float32, "l1", False, (16, 64)),
    Kind(torch.float64, "l2", False, (16, 64)),
    Kind(torch.bfloat16, "l2", False, (16, 64)),
    Kind(torch.bfloat16, "l2", True, (64, 128, 512)),
)


def sweep(kind: Kind, d: int, streamed: bool) -> dict[str, Any]:
    """Picoseconds of a pair in one sweep of the forward: that of many less that of one."""
    x, y = (z.to(kind.dtype) for z in features(N, d))
    scale = float(d) if kind.metric == "l1" else float(d) ** 0.5

    def run(iterations: int) -> Any:
        with torch.no_grad():
            return uk.sinkhorn_loss(
                x, y, metric=kind.metric, reg=scale, max_iter=iterations, memory_budget=N * N * 4
            )

    with overridden(streamed=False):
        want = run(SWEEPS)
    with overridden(streamed=streamed, tensor_cores=kind.tensor_cores):
        differs = abs((run(SWEEPS) / want).item() - 1)
        few, many = (milliseconds(partial(run, t), 0.5, warm=1) for t in (1, SWEEPS + 1))
    found = {"sweep_ps": 1e9 * (many - few) / SWEEPS / N / N, "differs": differs}
    if not differs <= 1e-3:
        return {**found, "failed": "not what panels compute"}
    return {**found, "kind": str(kind), "d": d, "streamed": streamed}


def line(rows: list[dict[str, Any]], parts: int) -> dict[str, float] | None:
    """Picoseconds of a feature and of the rest in each of the equal parts of a sweep, by least squares."""
    if len({row["d"] for row in rows}) < 2:
        return None
    d = torch.tensor([[row["d"], 1.0] for row in rows], dtype=torch.float64)
    spent = torch.tensor([[row["sweep_ps"] / parts] for row in rows], dtype=torch.float64)
    feature, rest = torch.linalg.lstsq(d, spent).solution.flatten().tolist()
    return {"feature_ps": feature, "rest_ps": rest}


def constants() -> Iterator[dict[str, Any]]:
    """The constants of StreamCosts, from this run's rows; a worker may have died between."""
    told = [json.loads(text) for text in Path(os.environ["RESULTS"]).read_text().splitlines()]
    last = {
        row["case"]: row
        for row in told
        if row["mode"] == "tune" and "sweep_ps" in row and "failed" not in row
    }
    for kind in KINDS:
        rows = [row for row in last.values() if row["kind"] == str(kind)]
        # a streamed sweep makes its costs in two passes
        passes = line([row for row in rows if row["streamed"]], 2)
        panels = line([row for row in rows if not row["streamed"]], 1)
        yield {"case": f"costs of a pair, {kind}", "of_a_pass": passes, "of_a_panel": panels}


def cases() -> list[Case]:
    found = [
        Case(f"a pair, {kind}, D = {d}, streamed={streamed}", partial(sweep, kind, d, streamed), 30)
        for kind in KINDS
        for d in kind.widths
        for streamed in (False, True)
    ]
    return [*found, Case("costs of a pair", constants)]
