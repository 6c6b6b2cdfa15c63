"""docs/does-it-help.md is what its results say: every table is made from the JSON beside it, and no run is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

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


def test_labels_are_as_frequent_by_class_as_the_pool(benchmarks):
    pytest.importorskip("sklearn", reason="scikit-learn, which has the handwritten digits, is not installed")
    from transfer_tasks import labels_by_share, mismatched

    from ucmkd_fast.data import TensorData

    pool = TensorData(torch.arange(72.0)[:, None], torch.tensor([0] * 40 + [1] * 20 + [2] * 12), list("abc"))
    labelled, rest = labels_by_share(pool, 6, seed=1)
    assert labelled.labels.bincount().tolist() == [10, 5, 3]
    assert torch.cat([labelled.x, rest.x]).flatten().sort().values.equal(pool.x.flatten())
    assert labels_by_share(pool, 6, seed=1)[0].x.equal(labelled.x)
    assert not labels_by_share(pool, 6, seed=2)[0].x.equal(labelled.x)

    even = TensorData(torch.randn(90, 4), torch.arange(90) % 3, list("abc"))
    own, other = (mismatched(even, side, "hard-imbalance").labels.bincount() for side in ("images", "speech"))
    assert own.tolist() != other.tolist() and sorted(own.tolist()) == sorted(other.tolist())
    assert own.argmax() == other.argmin() and int(own.max()) == 30
    noisy = mismatched(even, "images", "hard-noise")
    assert noisy.labels.equal(even.labels) and not noisy.x.equal(even.x)
