"""What `benchmarks/gpu_check.sh` does with cases that die or hang; the cases themselves need a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "benchmarks/gpu/run.py"
CASES = """
import os, time
from worker import Case

def cases():
    return [
        Case("dies", lambda: os.abort()),
        Case("raises", lambda: 1 / 0),
        Case("hangs", lambda: time.sleep(600), 1),
        Case("answers", lambda: {"ms": 2.0}),
    ]
"""


def test_a_case_that_dies_or_hangs_takes_nothing_from_the_others(tmp_path):
    (tmp_path / "planted.py").write_text(CASES)
    out = tmp_path / "out"
    paths = os.pathsep.join([str(tmp_path), str(RUN.parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(RUN), str(out), "planted", "--seconds", "120"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths}, check=False, timeout=180,
    )  # fmt: skip
    rows = {row["case"]: row for row in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert done.returncode == 1, done.stderr
    assert "signal 6" in rows["dies"]["failed"] and "ZeroDivisionError" in rows["raises"]["failed"]
    assert "time limit" in rows["hangs"]["failed"] and rows["answers"]["ms"] == 2.0
    assert rows["all"]["failures"] == 3 and sorted(p.name for p in out.iterdir()) == [
        "log.txt",
        "results.jsonl",
    ]


@pytest.mark.parametrize("passes", [True, False])
def test_a_part_of_the_device_tests_is_a_failure_only_where_one_fails(passes, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RUN.parent))
    import run

    planted = tmp_path / "test_planted.py"
    planted.write_text(f"def test_one(): assert True\ndef test_two(): assert {passes}\n")
    report = run.Report(tmp_path / "out")
    run.pytest_part(report, "planted", [str(planted)], time.monotonic() + 90, 1)
    row = json.loads((tmp_path / "out/results.jsonl").read_text().splitlines()[-1])
    assert (
        row["case"] == "planted" and row["tests_failed"] == (not passes) and ("failed" in row) == (not passes)
    )
    assert bool(report.failures) == (not passes)
