"""Runs GeomLoss's public tests and gallery twice: as they are, and with SamplesLoss replaced by ours.

    GEOMLOSS_CHECKOUT=path/to/geomloss python tests/peer_suites/run_geomloss.py [--seconds 300]

The checkout is one of https://github.com/jeanfeydy/geomloss, with its folders tests/ and examples/: none of its files
are part of this repository. GeomLoss itself has to be installed, and what a script or test imports besides; where
something is missing, the script is left out and the reason printed. Both runs of a script have the same seeds, and the
first value of each loss is compared. What a script asks for that we refuse (NotImplementedError) goes on to the
original, and is counted. Exit status 1: a test fails with ours alone, or a script that ends well with the original does
not, or gives other values.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
CHECKOUT, RECORD, SIDE = "GEOMLOSS_CHECKOUT", "UCMKD_GEOMLOSS_RECORD", "UCMKD_GEOMLOSS_SIDE"
SAME = 1e-3  # relative: scripts compute in float32


# ---- in the process of a script or of pytest


class Recorder:
    """Writes down every call of a SamplesLoss: served or refused, and the first value of each loss."""

    def __init__(self, original: type, ours: type | None):
        self.served, self.refused, self.firsts = 0, Counter[str](), list[float]()
        self._original, self._ours = original, ours

    def __call__(self, *args: Any, **options: Any) -> Any:
        """In the place of the class."""
        loss = self._make(self._ours or self._original, args, options)
        first = True

        def forward(*measures: Any) -> Any:
            nonlocal first
            try:
                value = call(*measures)
            except NotImplementedError as refusal:
                if self._ours is None:
                    raise
                self._refuse(refusal)
                return self._original(*args, **options)(*measures)
            self.served += 1
            if first:
                outputs = value if isinstance(value, tuple) else (value,)
                self.firsts.extend(float(z.detach().double().mean()) for z in outputs)
            first = False
            return value

        call = loss.forward
        loss.forward = forward
        return loss

    def _make(self, kind: type, args: Any, options: Any) -> Any:
        try:
            return kind(*args, **options)
        except NotImplementedError as refusal:
            self._refuse(refusal)
            return self._original(*args, **options)

    def _refuse(self, refusal: NotImplementedError) -> None:
        self.refused[str(refusal).split(":")[0]] += 1

    def write(self) -> None:
        """To the file that the environment names."""
        found = {"served": self.served, "refused": self.refused, "firsts": self.firsts}
        Path(os.environ[RECORD]).write_text(json.dumps(found), encoding="utf-8")


def install() -> Recorder:
    """Puts a recorder in the place of geomloss.SamplesLoss, around ours or around the original."""
    import geomloss

    ours = None
    if os.environ[SIDE] == "ours":
        from ucmkd_fast.compat.geomloss import SamplesLoss as ours
    recorder = Recorder(geomloss.SamplesLoss, ours)
    geomloss.SamplesLoss = recorder
    return recorder


def pytest_configure(config: Any) -> None:
    """As a plugin of pytest (``-p run_geomloss``)."""
    recorder = install()
    config.add_cleanup(recorder.write)


def play(script: Path) -> None:
    """A script of the gallery, without a display."""
    import random
    import runpy

    import numpy as np
    import torch

    recorder = install()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    sys.path.insert(0, str(script.parent))
    os.chdir(script.parent)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        recorder.write()


# ---- in the process of this program


class Ended(NamedTuple):
    """How one run ended."""

    outcome: str  # "ok", or what stopped it
    record: dict[str, Any]
    tests: dict[str, str]  # of pytest


def run(command: list[str], side: str, cwd: Path, seconds: float) -> Ended:
    """A child with a recorder of that side."""
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "record.json"
        paths = [str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in paths if p), "MPLBACKEND": "Agg", RECORD: str(record), SIDE: side,
            "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=cwd,
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
            text, outcome = (
                done.stdout,
                "ok" if done.returncode == 0 else last_line(done.stderr or done.stdout),
            )
        except subprocess.TimeoutExpired:
            text, outcome = "", f"not done after {seconds:g} s"
        found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        tests = dict(re.findall(r"^(\S+::\S+) (PASSED|FAILED|SKIPPED|ERROR)", text, re.MULTILINE))
        return Ended(outcome, {"served": 0, "refused": {}, "firsts": []} | found, tests)


def last_line(text: str) -> str:
    """What an exception says."""
    lines = text.strip().splitlines()
    return lines[-1][:160] if lines else "failed in silence"


def run_tests(checkout: Path, seconds: float) -> tuple[list[str], Counter[str], int]:
    """Tests that fail with ours alone; what was refused, and how many calls were served."""
    missing = [name for name in ("hypothesis", "pytest_check") if importlib.util.find_spec(name) is None]
    if missing or not (checkout / "tests").is_dir():
        print("tests: skipped: " + (f"they need {', '.join(missing)}" if missing else "there is no tests/"))
        return [], Counter(), 0
    command = [
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-v",
        "-p",
        "no:cacheprovider",
        "-p",
        "run_geomloss",
        "--hypothesis-seed=0",
        "tests",
    ]
    before, after = (run(command, side, checkout, seconds) for side in ("original", "ours"))
    for name, ended in (("original", before), ("ours", after)):
        counts = Counter(ended.tests.values())
        print(f"tests, {name}: " + (", ".join(f"{n} {k}" for k, n in counts.items()) or ended.outcome))
    worse = [t for t, was in before.tests.items() if was == "PASSED" and after.tests.get(t) != "PASSED"]
    print(
        f"tests: {after.record['served']} calls of SamplesLoss served, {sum(after.record['refused'].values())} refused"
    )
    return worse, Counter(after.record["refused"]), after.record["served"]


def run_gallery(checkout: Path, seconds: float) -> tuple[list[str], Counter[str], int]:
    """Scripts that end otherwise with ours alone; what was refused, and how many calls were served."""
    worse, refused, served = [], Counter[str](), 0
    scripts = sorted(
        s for s in (checkout / "examples").rglob("*.py") if "SamplesLoss(" in s.read_text("utf-8")
    )
    if not scripts:
        print("gallery: skipped: no script of examples/ makes a SamplesLoss")
    for script in scripts:
        name = str(script.relative_to(checkout / "examples"))
        command = [str(Path(__file__).resolve()), "--play", str(script)]
        ours = run(command, "ours", checkout, seconds)
        if "ModuleNotFoundError" in ours.outcome and not ours.record["served"]:
            print(f"{name}: left out: {ours.outcome}")
            continue
        original = run(command, "original", checkout, seconds)
        apart = difference(ours.record["firsts"], original.record["firsts"])
        served += ours.record["served"]
        refused.update(ours.record["refused"])
        verdict = "" if ours.outcome == "ok" else f", ended: {ours.outcome}"
        if original.outcome != "ok":
            verdict += f", original ended: {original.outcome}"
        if original.outcome == "ok" and (ours.outcome != "ok" or not apart <= SAME):
            worse.append(name)
        print(
            f"{name}: {ours.record['served']} calls served, {sum(ours.record['refused'].values())} refused, "
            f"first values {apart:.1e} from the original's{verdict}"
        )
    return worse, refused, served


def difference(got: list[float], want: list[float]) -> float:
    """The largest relative one, of the calls that both made; nan without any."""
    pairs = list(zip(got, want, strict=False))
    return max((abs(g - w) / max(abs(w), 1e-6) for g, w in pairs), default=float("nan"))


def main() -> int:
    """The status to exit with."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=300, help="for each script, and for all tests")
    parser.add_argument("--play", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.play:
        play(given.play)
        return 0
    checkout = Path(os.environ.get(CHECKOUT, ""))
    if not os.environ.get(CHECKOUT) or not checkout.is_dir():
        print(f"skipped: {CHECKOUT} names no checkout of https://github.com/jeanfeydy/geomloss")
        return 0
    if importlib.util.find_spec("geomloss") is None:
        print("skipped: geomloss is not installed")
        return 0
    checkout = checkout.resolve()
    worse_tests, refused, served = run_tests(checkout, given.seconds)
    worse, refused_there, served_there = run_gallery(checkout, given.seconds)
    refused.update(refused_there)
    print(f"in all: {served + served_there} calls served, {sum(refused.values())} refused")
    for reason, count in refused.most_common():
        print(f"  {count:5d} refused: {reason}")
    for name in worse_tests + worse:
        print(f"worse with ours alone: {name}")
    return 1 if worse_tests or worse else 0


if __name__ == "__main__":
    sys.exit(main())
