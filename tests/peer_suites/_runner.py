"""Runs the public tests of another library twice: as they are, and with its functions replaced by ours.

Their files are not part of this repository: an environment variable names the folder of an installed copy. A call
that ours refuse (NotImplementedError) goes on to the original function, and is counted. Used as a pytest plugin (with
``-p``), this module writes down what became of every test.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
REPORT = "UCMKD_PEER_REPORT"  # the file that a run of pytest writes its outcomes and counts to

_outcomes: dict[str, str] = {}
_messages: dict[str, str] = {}
_served: Counter[str] = Counter()
_refused: Counter[str] = Counter()


def counted(name: str, ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Ours; where it refuses, and for calls from within the library, theirs."""
    library = theirs.__module__.partition(".")[0]

    @functools.wraps(theirs)
    def call(*args: Any, **kwargs: Any) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        if caller.partition(".")[0] == library:
            return theirs(*args, **kwargs)
        try:
            result = ours(*args, **kwargs)
        except NotImplementedError as refusal:
            _refused[f"{name}: {_kind_of(str(refusal))}"] += 1
            return theirs(*args, **kwargs)
        _served[name] += 1
        return result

    return call


def _kind_of(refusal: str) -> str:
    """What a refusal is about: the sentence up to its advice, without the values in it."""
    return re.sub(r"<[^>]*>|0x[0-9a-f]+", "...", refusal.split(":")[0])[:100]


def pytest_runtest_logreport(report: Any) -> None:
    """Keep the outcome of a test, of whichever phase it failed in."""
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome
        if report.failed:
            _messages[report.nodeid] = str(report.longrepr)[-2000:]


def pytest_sessionfinish() -> None:
    """Write what was kept."""
    if REPORT in os.environ:
        found = {"outcomes": _outcomes, "messages": _messages, "served": _served, "refused": _refused}
        Path(os.environ[REPORT]).write_text(json.dumps(found), encoding="utf-8")


class Suite(NamedTuple):
    """The tests of a library."""

    variable: str  # the environment variable with the folder of its tests
    files: tuple[str, ...]  # those that call what we replace
    plugin: str  # module of this folder that replaces the functions, as a plugin of pytest
    excused: dict[str, str]  # tests, without their parameters, that may fail with ours alone, and why

    def folder(self) -> Path | None:
        """Where the tests are, or None."""
        value = os.environ.get(self.variable)
        return Path(value) if value and Path(value).is_dir() else None

    def present(self) -> list[str]:
        """Files of the suite that are in the folder."""
        folder = self.folder()
        return [] if folder is None else [name for name in self.files if (folder / name).is_file()]

    def absence(self) -> str | None:
        """Why the suite cannot run, or None."""
        if self.folder() is None:
            return f"{self.variable} does not name a folder with the library's tests"
        if not self.present():
            return f"{self.variable}={os.environ[self.variable]} has none of {', '.join(self.files)}"
        return None


class Comparison(NamedTuple):
    """What became of the tests with the original functions and with ours."""

    original: dict[str, Any]
    replaced: dict[str, Any]

    def newly(self, outcome: str) -> list[str]:
        """Tests that end so, or are gone, with ours and passed with the original."""
        before, after = self.original["outcomes"], self.replaced["outcomes"]
        return sorted(k for k, v in before.items() if v == "passed" and after.get(k, "failed") == outcome)

    def unexcused(self, suite: Suite) -> list[str]:
        """Tests that fail with ours alone without a reason that is known."""
        return [test for test in self.newly("failed") if test.partition("[")[0] not in suite.excused]

    def print(self, suite: Suite) -> None:
        """Counts of tests and of calls, and the tests that differ."""
        for name, run in (("original", self.original), ("replaced", self.replaced)):
            counts = Counter(run["outcomes"].values())
            print(f"{name}: " + ", ".join(f"{counts[k]} {k}" for k in sorted(counts)))
        served, refused = Counter(self.replaced["served"]), Counter(self.replaced["refused"])
        print(f"calls served: {sum(served.values())}, refused: {sum(refused.values())}")
        for name, count in served.most_common():
            print(f"  {count:6d} served   {name}")
        for name, count in refused.most_common():
            print(f"  {count:6d} refused  {name}")
        for test in self.newly("skipped"):
            print(f"skipped with ours alone: {test}")
        for test in self.newly("failed"):
            why = suite.excused.get(test.partition("[")[0])
            print(f"fails with ours alone: {test}: {why or self.replaced['messages'].get(test, '')}")


def run(suite: Suite, plugins: Sequence[str]) -> dict[str, Any]:
    """Outcomes and counts of one run of pytest over the suite."""
    folder = suite.folder()
    assert folder is not None
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        paths = [str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), REPORT: str(report)}
        names = [argument for name in ("_runner", *plugins) for argument in ("-p", name)]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", *names]
        ended = subprocess.run(
            [*command, "--rootdir", str(folder), *suite.present()],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not report.is_file():
            raise RuntimeError(
                f"pytest did not run the suite:\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
            )
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        if not found["outcomes"]:
            raise RuntimeError(f"pytest ran no test of the suite:\n{ended.stdout[-4000:]}")
        return found


def compare(suite: Suite) -> Comparison:
    """Both runs."""
    return Comparison(run(suite, ()), run(suite, (suite.plugin,)))


def main(suite: Suite) -> int:
    """For a command line: 0 where no test fails with ours alone, also where there is nothing to run."""
    if reason := suite.absence():
        print(f"skipped: {reason}")
        return 0
    comparison = compare(suite)
    comparison.print(suite)
    return 1 if comparison.unexcused(suite) else 0
