"""Before any distillation: do classes lie to each other alike for a student of `ce` and for the teacher?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transfer_plan import PLAN, SEEDS, SELF
from transfer_tasks import SETTINGS, STUDENTS, TRAIN, parts_of, teacher_of

import ucmkd_fast as uk
from ucmkd_fast.data import FeatureBank
from ucmkd_fast.report import class_agreement
from ucmkd_fast.report.shares import share

BEST = "self-training, the teacher's head"


def measure(setting: str, audio: Path, folder: Path) -> dict[str, Any]:
    """Agreement at every seed, of features of the labelled samples alone."""
    warnings.filterwarnings("ignore")
    task, found = SETTINGS[setting], []
    _, bank, _ = teacher_of(task.other, audio, folder, task.digits)
    for seed in SEEDS:
        labelled, *_ = parts_of(task, seed, audio)
        torch.manual_seed(seed)
        student = STUDENTS[task.own](task.digits)
        uk.Distiller(student, method="ce", seed=seed, **TRAIN).fit(labelled)
        found.append(class_agreement(FeatureBank.from_model(student, labelled), bank))
    return {
        "setting": setting,
        "correlation": [round(one.correlation, 3) for one in found],
        "p_value": [round(one.p_value, 3) for one in found],
    }


def table(rows: list[dict[str, Any]], accuracy: dict[str, dict[str, list[float]]]) -> str:
    """Agreement beside what the teacher's head was worth, as Markdown; accuracies by setting and name."""
    lines = [
        "| | classes | correlation | p <= 0.05 | gain over self-training | over a deranged teacher |",
        "|---|---|---|---|---|---|",
    ]
    by_setting = {row["setting"]: row for row in rows}
    for setting in PLAN:
        row, there = by_setting[setting], accuracy[setting]
        over = [share(there[BEST], there[other], other).points for other in (SELF, f"{BEST}, deranged")]
        seen = sum(p <= 0.05 for p in row["p_value"])
        mean, deviation = np.mean(row["correlation"]), np.std(row["correlation"], ddof=1)
        cells = [f"{mean:.2f} ± {deviation:.2f}", f"{seen}/{len(row['p_value'])}", *over]
        lines.append(f"| `{setting}` | {SETTINGS[setting].classes} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
