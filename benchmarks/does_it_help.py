"""Does the teacher help? Methods, baselines and controls on unpaired digits; writes docs/does-it-help.md.

    python benchmarks/does_it_help.py run --audio FSDD --out runs.jsonl [--jobs 2]    resumes where it stopped
    python benchmarks/does_it_help.py page                                            the page from the results

Each run is one line of JSON; `run` ends by writing docs/does-it-help.json, from which `page` is made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ucmkd_fast as uk
from ucmkd_fast.data import (
    FeatureBank,
    TensorData,
    few_labels,
    handwritten_digits,
    split_stratified,
    spoken_digits,
)  # fmt: skip
from ucmkd_fast.models import Classifier, digit_cnn, speech_cnn
from ucmkd_fast.report.shares import shares, verdict_line
from ucmkd_fast.run.controls import derangement, permuted_model, relabelled

DOCS = Path(__file__).parents[1] / "docs"
SEEDS = range(10)
TRAIN = {
    "lr": 0.05, "momentum": 0.9, "epochs": 30, "steps_per_epoch": 5, "batch_size": 64, "clip_norm": 5.0,
    "restore_best": False, "progress": False, "diagnose": False,
}  # fmt: skip
TEACHER = {**TRAIN, "epochs": 20, "steps_per_epoch": None, "restore_best": True, "seed": 0}


@dataclass(frozen=True)
class Contender:
    """A method, or a control of one."""

    method: str
    control: str | None = None  # "deranged" | "untrained"
    options: dict[str, Any] = field(default_factory=dict)


CONTENDERS = {
    "ce": Contender("ce"),
    "kd": Contender("kd"),
    "prototype-kd": Contender("prototype-kd"),
    "feature": Contender("feature"),
    "label-aware-fa": Contender("label-aware-fa"),
    "ucmkd": Contender("ucmkd"),
    "ucmkd-plus": Contender("ucmkd-plus"),
    "smoothing (no teacher)": Contender("ce", options={"label_smoothing": 0.3}),
    "self-training (no teacher)": Contender("self-training"),
    "kd, deranged": Contender("kd", "deranged"),
    "ucmkd-plus, deranged": Contender("ucmkd-plus", "deranged"),
    "ucmkd-plus, untrained": Contender("ucmkd-plus", "untrained"),
}
FEW = ["ce", "kd", "ucmkd", "ucmkd-plus", "self-training (no teacher)", "ucmkd-plus, deranged"]
PLAN = {"a_2": FEW, "a_5": list(CONTENDERS), "i_5": FEW}


def audio_student() -> Classifier:
    """Two convolutions over log-mel spectrograms (1, 40, 48), without normalisation layers."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d((4, 3)), nn.Flatten(), nn.Linear(32 * 12, 64),
    )  # fmt: skip
    return Classifier(encoder, nn.Linear(64, 10))


def image_student() -> Classifier:
    """Two convolutions over images (1, 8, 8), without normalisation layers."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 16, 64),
    )  # fmt: skip
    return Classifier(encoder, nn.Linear(64, 10))


@cache
def data_of(modality: str, audio: Path) -> TensorData:
    """All samples of a modality; recordings are read once and kept beside."""
    return handwritten_digits() if modality == "image" else spoken_digits(audio)


@cache
def teacher_of(modality: str, audio: Path, folder: Path) -> tuple[Classifier, FeatureBank, TensorData]:
    """The trained teacher, the bank of its features, and the samples of the bank."""
    train, val, _ = split_stratified(data_of(modality, audio), (0.7, 0.15, 0.15), seed=0)
    torch.manual_seed(0)
    model = digit_cnn() if modality == "image" else speech_cnn()
    path = folder / f"teacher_{modality}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        uk.Distiller(model, method="ce", **TEACHER).fit(train, student_val=val)
        torch.save(model.state_dict(), path)
    return model.eval(), FeatureBank.from_model(model, train), train


def run_one(setting: str, name: str, seed: int, audio: Path, folder: Path) -> dict[str, Any]:
    """One student, trained and measured."""
    contender = CONTENDERS[name]
    own, other = ("audio", "image") if setting[0] == "a" else ("image", "audio")
    pool, _, test = split_stratified(data_of(own, audio), (0.5, 0.15, 0.35), seed=seed)
    labelled, rest = few_labels(pool, int(setting[2:]), seed=seed)
    teacher, bank, samples = teacher_of(other, audio, folder)
    if contender.control == "deranged":
        renamed = derangement(10, seed)
        teacher, bank = permuted_model(teacher, renamed), relabelled(bank, renamed)
    elif contender.control == "untrained":
        torch.manual_seed(1000 + seed)
        teacher = (digit_cnn() if other == "image" else speech_cnn()).eval()
        bank = FeatureBank.from_model(teacher, samples)
    torch.manual_seed(seed)
    student = audio_student() if own == "audio" else image_student()
    distiller = uk.Distiller(
        student, teacher, contender.method, method_options=contender.options, seed=seed, **TRAIN
    )
    extra = {"student_unlabelled": rest} if distiller.method.uses_unlabelled else {}
    result = distiller.fit(labelled, bank if distiller.method.uses_teacher else None, **extra)
    features = FeatureBank.from_model(student, test)
    read = teacher.head(features.x).argmax(1) == features.labels
    return {
        "setting": setting,
        "name": name,
        "seed": seed,
        "accuracy": round(distiller.evaluate(test)["accuracy"], 4),
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
    wanted = [(s, n, k) for k in SEEDS for s, names in PLAN.items() for n in names]
    todo = [(*w, audio, out.parent) for w in wanted if w not in have]
    print(f"{len(todo)} of {len(wanted)} runs to do")
    torch.set_num_threads(1)
    for modality in ("image", "audio"):
        teacher_of(modality, audio, out.parent)
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(jobs) as pool, out.open("a") as file:
        for done, result in enumerate(pool.imap_unordered(_work, todo), 1):
            print(json.dumps(result), file=file, flush=True)
            lines.append(result)
            if done % 20 == 0:
                print(f"{done} done, {time.perf_counter() - started:.0f} s", flush=True)
    kept = {(r["setting"], r["name"], r["seed"]): r for r in lines}
    rows = ",\n".join(json.dumps(kept[w]) for w in wanted)
    (DOCS / "does-it-help.json").write_text(f"[\n{rows}\n]\n")


def page() -> None:
    """docs/does-it-help.md: its tables anew between the two marks, the words around them kept."""
    results = json.loads((DOCS / "does-it-help.json").read_text())
    path = DOCS / "does-it-help.md"
    before, _, rest = path.read_text().partition("<!-- tables -->\n")
    _, _, after = rest.partition("<!-- /tables -->\n")
    body = "\n".join(_setting(setting, results) for setting in PLAN)
    path.write_text(f"{before}<!-- tables -->\n{body}<!-- /tables -->\n{after}")


def _setting(setting: str, results: list[dict[str, Any]]) -> str:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        if r["setting"] == setting:
            by_name.setdefault(r["name"], []).append(r)
    accuracy = {name: [r["accuracy"] for r in rows] for name, rows in by_name.items()}
    what, n = ("recordings", "speech") if setting[0] == "a" else ("images", "handwriting")
    lines = [
        f"### `{setting}`: {setting[2:]} labelled {what} a class, student of {n}\n",
        "| | accuracy % | to ce | 95 % interval | seeds above | FA | teacher's head reads % | time a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = statistics.median(r["seconds"] for r in by_name["ce"])
    for name, rows in by_name.items():
        one = shares(accuracy[name], {"ce": accuracy["ce"]})[0]
        mean, deviation = 100 * np.mean(accuracy[name]), 100 * np.std(accuracy[name], ddof=1)
        taught = CONTENDERS[name].method not in ("ce", "self-training")
        own = [f"{np.mean([r['fa'] for r in rows]):.2f}", f"{100 * np.mean([r['reads'] for r in rows]):.0f}"]
        to_ce = ["", "", ""]
        if name != "ce":
            low, high = (100 * v for v in one.interval)
            d = one.difference
            gain = f"{100 * d.mean:+.1f} ± {100 * d.standard_error:.1f}"
            to_ce = [gain, f"{low:+.1f} to {high:+.1f}", f"{one.wins}/{d.n}"]
        seconds = statistics.median(r["seconds"] for r in rows) / base
        cells = [f"{mean:.1f} ± {deviation:.1f}", *to_ce, *(own if taught else ["", ""]), f"{seconds:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    controls = ["ce", "kd", "ucmkd-plus, deranged", "self-training (no teacher)"]
    against = {name: accuracy[name] for name in controls}
    lines += ["", verdict_line("ucmkd-plus", shares(accuracy["ucmkd-plus"], against)), ""]
    return "\n".join(lines) + "\n"


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
    commands.add_parser("page")
    asked = parser.parse_args()
    if asked.command == "run":
        run(asked.audio, asked.out, asked.jobs)
    page()


if __name__ == "__main__":
    main()
