"""docs/does-it-help.md is what its results say: every table is made from the JSON beside it, and no run is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("does-it-help.md", "does-it-help.json", "does-it-help-time.json", "does-it-help-agreement.json")


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_the_page_is_made_from_its_results(tmp_path, benchmarks):
    from transfer_page import write_page

    for name in NAMES:
        shutil.copy(ROOT / "docs" / name, tmp_path)
    page = tmp_path / NAMES[0]
    written = page.read_text()
    write_page(tmp_path)
    assert page.read_text() == written

    results = json.loads((tmp_path / NAMES[1]).read_text())
    results[0]["accuracy"] -= 0.3
    (tmp_path / NAMES[1]).write_text(json.dumps(results))
    write_page(tmp_path)
    assert page.read_text() != written


def test_the_results_are_the_runs_of_the_plan(benchmarks):
    from transfer_plan import wanted_runs

    results = json.loads((ROOT / "docs" / NAMES[1]).read_text())
    assert [(r["setting"], r["name"], r["seed"]) for r in results] == wanted_runs()
