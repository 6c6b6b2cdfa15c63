"""docs/does-it-help.md: its tables anew between marks, the words around them kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from transfer_agreement import table as agreement_table
from transfer_mismatch import choice_table, mismatch_tables
from transfer_plan import CONFIRMED, CONTENDERS, HEADS, PLAN, SEEDS, SELF, TRIALS, UNSEEN, VALIDATION
from transfer_tasks import SETTINGS
from transfer_time import table as time_table

from ucmkd_fast.report.shares import share, shares, verdict_line

CONTROLS = ["ce", "kd", "ucmkd-plus, deranged", SELF]
Runs = dict[str, list[dict[str, Any]]]  # by name, in the order of seeds


def write_page(docs: Path) -> None:
    """From the JSON files beside it."""
    results = json.loads((docs / "does-it-help.json").read_text())
    times = json.loads((docs / "does-it-help-time.json").read_text())
    agreements = json.loads((docs / "does-it-help-agreement.json").read_text())
    path = docs / "does-it-help.md"
    text = path.read_text()
    runs = {setting: _runs(results, setting, SEEDS) for setting in PLAN}
    unseen = {setting: _runs(results, setting, UNSEEN) for setting in CONFIRMED}
    by_run = {(r["setting"], r["name"], r["seed"]): r["accuracy"] for r in results}
    parts = {
        "agreement": agreement_table(agreements, {s: _accuracy(r) for s, r in runs.items()}),
        "tables": "\n".join(_setting(setting, r) for setting, r in runs.items()),
        "confirmed": "\n".join(_setting(s, r) + _on_all_seeds(s, runs[s], r) for s, r in unseen.items()),
        "rho": choice_table(by_run),
        "mismatch": mismatch_tables(by_run),
        "further": _further(results),
        "time": time_table(times),
    }
    for mark, body in parts.items():
        before, _, rest = text.partition(f"<!-- {mark} -->\n")
        _, found, after = rest.partition(f"<!-- /{mark} -->\n")
        if not found:
            raise ValueError(f"{path}: expected the marks <!-- {mark} --> and <!-- /{mark} -->")
        # Empty lines, or the site's Markdown takes the mark and what follows for one paragraph.
        text = f"{before}<!-- {mark} -->\n\n{body.rstrip()}\n\n<!-- /{mark} -->\n{after}"
    path.write_text(text)


def _runs(results: list[dict[str, Any]], setting: str, seeds: range) -> Runs:
    by_name: Runs = {}
    for r in results:
        if r["setting"] == setting and r["seed"] in seeds:
            by_name.setdefault(r["name"], []).append(r)
    return {name: sorted(rows, key=lambda r: r["seed"]) for name, rows in by_name.items()}


def _accuracy(runs: Runs) -> dict[str, list[float]]:
    return {name: [r["accuracy"] for r in rows] for name, rows in runs.items()}


def _setting(setting: str, runs: Runs) -> str:
    """A table of one setting on fresh seeds."""
    accuracy = _accuracy(runs)
    lines = [
        f"### `{setting}`\n",
        f"{SETTINGS[setting].title[0].upper()}{SETTINGS[setting].title[1:]}.\n",
        "| | accuracy % | to ce | 95 % interval | seeds above | FA | teacher's head reads % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in runs.items():
        mean, deviation = 100 * np.mean(accuracy[name]), 100 * np.std(accuracy[name], ddof=1)
        taught = CONTENDERS[name].method not in ("ce", "self-training")
        own = [f"{np.mean([r['fa'] for r in rows]):.2f}", f"{100 * np.mean([r['reads'] for r in rows]):.0f}"]
        to_ce = ["", "", ""]
        if name != "ce":
            one = share(accuracy[name], accuracy["ce"], "ce")
            low, high = (100 * v for v in one.interval)
            to_ce = [one.points, f"{low:+.1f} to {high:+.1f}", f"{one.wins}/{one.difference.n}"]
        cells = [f"{mean:.1f} ± {deviation:.1f}", *to_ce, *(own if taught else ["", ""])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for line in _verdicts(setting, accuracy):
        lines += ["", line]
    lines.append("")
    return "\n".join(lines) + "\n"


def _on_all_seeds(setting: str, before: Runs, unseen: Runs) -> str:
    """The verdicts on the seeds of both."""
    accuracy = {name: _accuracy(before)[name] + rows for name, rows in _accuracy(unseen).items()}
    lines = ["On all seeds, 0 to 19:", "", *(f"* {line}" for line in _verdicts(setting, accuracy))]
    return "\n".join(lines) + "\n"


def _verdicts(setting: str, accuracy: dict[str, list[float]]) -> list[str]:
    """A sentence for each method whose gain is explained."""
    deranged = {name: f"{name}, deranged" for name in accuracy}
    held_against = {name: ["ce", twin, SELF] for name, twin in deranged.items() if twin in accuracy}
    if SETTINGS[setting].digits == 1:
        held_against = {name: controls for name, controls in held_against.items() if name in HEADS}
        if "ucmkd-plus" in accuracy:
            held_against = {"ucmkd-plus": CONTROLS, **held_against}
    return [
        verdict_line(name, shares(accuracy[name], {control: accuracy[control] for control in controls}))
        for name, controls in held_against.items()
    ]


def _further(results: list[dict[str, Any]]) -> str:
    """Everything that was tried on validation data: a row a variant and setting."""
    lines = [
        "| | setting | to ce | over self-training | over its deranged twin |",
        "|---|---|---|---|---|",
    ]
    for name, (_, settings) in TRIALS.items():
        for setting in settings:
            accuracy = _accuracy(_runs(results, setting, VALIDATION))
            over = [share(accuracy[name], accuracy[o], o).points for o in ("ce", SELF, f"{name}, deranged")]
            lines.append(f"| {name} | `{setting}` | {' | '.join(over)} |")
    used = dict.fromkeys(setting for _, settings in TRIALS.values() for setting in settings)
    described = [f"* `{setting}`: {SETTINGS[setting].title}." for setting in used]
    return "\n".join([*described, "", *lines]) + "\n"
