"""The recorded table of machine code, tests/cuda_machine_code.json: how it is made, kept and compared."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cuda_compiler import ARCHITECTURES, CSRC, compiler

from .kernels import FAMILIES, measure
from .plans import plans
from .targets import rows_of_targets

TABLE = Path(__file__).parents[1] / "cuda_machine_code.json"

Figures = dict[str, int]
Families = dict[str, dict[str, Any]]


def read() -> dict[str, Any]:
    return json.loads(TABLE.read_text())


def report(folder: Path = CSRC, sources: set[str] | None = None) -> Families:
    """Family -> unit, reason and kernel -> architecture -> figures; of some sources, or of all."""
    wanted = [f.source for f in FAMILIES if sources is None or f.source in sources]
    found: Families = {
        f.title: {"unit": f.unit, "reason": f.reason, "kernels": {}} for f in FAMILIES if f.source in wanted
    }
    with ThreadPoolExecutor(2) as pool:
        runs = [(source, architecture) for source in dict.fromkeys(wanted) for architecture in ARCHITECTURES]
        measured = pool.map(lambda run: list(measure(*run, folder)), runs)
        for (_, architecture), kernels in zip(runs, measured, strict=True):
            for family, name, figures in kernels:
                found[family.title]["kernels"].setdefault(name, {})[architecture] = figures
    return found


def over_budget(found: Families, recorded: Families) -> list[str]:
    """What is more than was recorded, or is no longer what was counted; a sentence each."""
    wrong = []
    for title, family in found.items():
        budgets = recorded.get(title, {"kernels": {}})["kernels"]
        if set(budgets) != set(family["kernels"]):
            wrong.append(f"{title}: kernels came or went")
            continue
        for name, on in family["kernels"].items():
            for architecture, figures in on.items():
                wrong += _over(f"{name} on sm_{architecture}", figures, budgets[name][architecture])
    return wrong


def _over(what: str, figures: Figures, budget: Figures) -> list[str]:
    if figures["units"] != budget["units"]:
        return [f"{what}: a trip does {figures['units']} units, it did {budget['units']}"]
    return [
        f"{what}: {count} x {kind} per trip, the budget is {budget.get(kind, 0)}"
        for kind, count in figures.items()
        if count > budget.get(kind, 0)
    ]


def record(sources: set[str] | None = None) -> None:
    """Write the table anew, after a change that is meant: of some sources, or of all."""
    families = report(sources=sources)
    if sources:
        recorded = read()
        if recorded["compiler"] != compiler():
            raise SystemExit(f"the others were recorded by nvcc {recorded['compiler']}: record all of them")
        families = {f.title: {**recorded["families"], **families}[f.title] for f in FAMILIES}
    found = {"compiler": compiler(), "families": families, "plans": plans()}
    found["targets"] = rows_of_targets(found)
    beside = TABLE.with_suffix(".partial")
    beside.write_text(json.dumps(found, indent=1) + "\n")
    beside.replace(TABLE)
    kernels = sum(len(family["kernels"]) for family in families.values())
    print(f"{TABLE}: {kernels} loops, by nvcc {compiler()}")
    for row in found["targets"]:
        print(f"{row['what']}: {row['found']:.1f}, the target is {row['limit']}", row.get("why_not", ""))
