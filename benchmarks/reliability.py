"""Writes docs/reliability.md from what the long tests, the sanitizers and the fuzzer counted.

    python benchmarks/reliability.py RESULTS

RESULTS is a folder that `make reliability` fills: ``tests.xml`` (pytest's report of the long run), ``ops.log``,
``races.log``, ``fuzz.log`` (of tests/sanitizers.sh). A number that is not there is not written.
"""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

import ucmkd_fast as uk
from ucmkd_fast.bench.harness import machine
from ucmkd_fast.reference import sinkhorn as reference

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))


class Report:
    """A pytest report: cases by test, with what the tests recorded."""

    def __init__(self, path: Path):
        suite = ElementTree.parse(path).getroot()
        self.cases = list(suite.iter("testcase"))
        self.failed = [
            case for case in self.cases if case.find("failure") is not None or case.find("error") is not None
        ]
        self.skipped = [case for case in self.cases if case.find("skipped") is not None]

    def recorded(self, name: str, test: str = "") -> dict[str, int]:
        """Sum of a recorded property by test."""
        found: dict[str, int] = {}
        for case in self.cases:
            title = case.get("name") or ""
            for entry in case.iter("property"):
                if entry.get("name") == name and test in title:
                    found[title] = found.get(title, 0) + int(entry.get("value") or 0)
        return found


def worst_errors() -> list[str]:
    """Rows of a table: error of float32 and float64 against the float64 reference over the hard cases."""
    from sinkhorn_cases import CASES

    rows = []
    for dtype in (torch.float32, torch.float64):
        worst = {"value": 0.0, "gradient": 0.0}
        for case in CASES:
            results = []
            for solve, kind in ((reference.sinkhorn, torch.float64), (uk.sinkhorn, dtype)):
                C, a, b = (None if t is None else t.to(kind) for t in case.tensors())
                assert C is not None
                C.requires_grad_()
                value = solve(C, a, b, reg=case.reg, max_iter=case.max_iter).value
                results.append((value.double(), torch.autograd.grad(value, C)[0].double()))
            (want, wanted), (got, gotten) = results
            worst["value"] = max(worst["value"], ((got - want).abs() / want.abs().clamp_min(1e-6)).item())
            size = wanted.abs().max().clamp_min(1e-6)
            worst["gradient"] = max(worst["gradient"], ((gotten - wanted).abs().max() / size).item())
        rows.append(
            f"| {str(dtype).removeprefix('torch.')} | {worst['value']:.1e} | {worst['gradient']:.1e} |"
        )
    return rows


def _found(pattern: str, path: Path) -> tuple[str, ...] | None:
    match = re.search(pattern, path.read_text()) if path.is_file() else None
    return match.groups() if match else None


def _words(claim: str) -> str:
    return claim.removeprefix("test_holds_in_many_cases[").removesuffix("]").replace("_", " ")


def tried(results: Path, tests: Report) -> list[tuple[str, int, int]]:
    """What was tried, how often, and how often it failed."""

    def total(name: str) -> int:
        return sum(tests.recorded(name).values())

    generated = [case for case in tests.failed if "test_holds" in (case.get("name") or "")]
    rows = [
        (
            f"tests (`make test-long`); {len(tests.skipped)} skipped with a reason",
            len(tests.cases) - len(tests.skipped),
            len(tests.failed),
        ),
        ("generated problems, see below", sum(tests.recorded("cases").values()), len(generated)),
    ]
    if kills := total("kills"):
        what = "`kill -9` at random moments of training; after it, the weights of a run in peace, bit for bit"
        rows.append((what, kills, kills - total("survived")))
    if calls := total("calls"):
        rows.append(
            ("calls from eight Python threads at once, with the bits of the first", 8000, 8000 - calls)
        )
    if elements := total("elements"):
        rows.append(("entries of the largest cost, more than 2^31, against float64", elements, 0))
    passed, failed = (_found(rf"(\d+) {word}", results / "ops.log") for word in ("passed", "failed"))
    if passed:
        rows.append(
            (
                "op tests on AddressSanitizer and UndefinedBehaviorSanitizer",
                int(passed[0]),
                int(failed[0]) if failed else 0,
            )
        )
    if found := _found(r"(\d+) of (\d+) answers", results / "races.log"):
        rows.append(
            ("calls of the entry functions on ThreadSanitizer", int(found[1]), int(found[1]) - int(found[0]))
        )
    if found := _found(
        r"Done (\d+) runs in (\d+) second", results / "fuzz.log"
    ):  # written where it found nothing
        rows.append((f"inputs made by libFuzzer, in {found[1]} s", int(found[0]), 0))
    return rows


def page(results: Path) -> str:
    """The page."""
    tests = Report(results / "tests.xml")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    claims = tests.recorded("cases", "test_holds_in_many_cases")
    return TEMPLATE.format(
        commit=commit,
        cpu=machine()["cpu"],
        torch=torch.__version__,
        tried="\n".join(
            f"| {what} | {count:,} | {failed} |" for what, count, failed in tried(results, tests)
        ),
        claims="\n".join(f"| {_words(claim)} | {count:,} |" for claim, count in claims.items()),
        errors="\n".join(worst_errors()),
    )


TEMPLATE = """# Reliability

What was tried, and how often. Made by `make reliability` (the long tests, sanitizers and ten minutes of
fuzzing; over half an hour on two cores) at commit {commit}, on {cpu}, torch {torch}.

| | tried | failed |
|---|---|---|
{tried}

## Properties

Problems with duplicates, collinear or zero rows, norms from 1e-6 to 1e6, costs over twelve decades,
forbidden pairs, zero and heavy masses, 1 x 1 to 20 x 20, reg from 1e-4 to 1e3 of the mean cost
(`tests/properties/`):

| property | cases |
|---|---|
{claims}

## Worst error

Relative, against the float64 reference, over the hard cases of `tests/sinkhorn_cases.py` (reg down to 0.002,
zero masses, one mass 3000 times the others, costs over six decades); a gradient against its largest entry:

| | value | gradient |
|---|---|---|
{errors}

## Determinism

A run with one seed ends with the same weights, after any number of kills and resumes, on one machine with one number
of threads. What another number of threads, another machine or a free-threaded Python changes is said at
[the Sinkhorn loss](sinkhorn.md#same-bits).

## Found by fuzzing and properties, and mended

* Costs near the largest number of their type, whose differences overflow, gave NaN: refused.
* A wav header that claims 4 GB made that much memory be asked for: bounded by the file's size.
* YAML aliases that unfold without bound, brackets and numbers whose reading takes the square of their length, and
  `.npy` headers beyond their file: bounded.

Known and left alone: where reg is below the rounding of the cost (in float32, about 1e-7 of the largest),
nothing determines the plan any more, and neither value nor gradient means anything.
"""


def main() -> None:
    """Write the page, beside and renamed."""
    if len(sys.argv) != 2:
        sys.exit("expected one argument, the folder of results: use `make reliability`")
    text = page(Path(sys.argv[1]))
    target = ROOT / "docs" / "reliability.md"
    part = target.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.rename(target)
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
