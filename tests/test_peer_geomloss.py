"""The script that runs GeomLoss's tests and gallery with ours in place, on a small checkout made for the purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "geomloss", reason="GeomLoss, whose gallery the script runs, is not installed (extra: test)"
)

SCRIPT = Path(__file__).parent / "peer_suites" / "run_geomloss.py"
GALLERY = """
import torch
from geomloss import SamplesLoss
x, y = torch.rand(20, 2, requires_grad=True), torch.rand(20, 2)
for options in ({}, {"reach": 0.3}, {"loss": "energy"}):
    SamplesLoss(**options)(x, y).backward()
"""
REFUSED = """
import torch
from geomloss import SamplesLoss
SamplesLoss(backend="multiscale")  # never called: it needs KeOps
SamplesLoss()(torch.rand(5, 2), torch.rand(5, 2))
"""


def run(checkout: Path | None) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "GEOMLOSS_CHECKOUT"}
    if checkout:
        environment["GEOMLOSS_CHECKOUT"] = str(checkout)
    return subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300
    )


def test_without_a_checkout_it_is_skipped():
    done = run(None)
    assert done.returncode == 0 and "skipped: GEOMLOSS_CHECKOUT names no checkout" in done.stdout


def test_calls_are_counted_and_compared(tmp_path):
    examples = tmp_path / "examples"
    examples.mkdir()
    (examples / "plot_served.py").write_text(GALLERY, encoding="utf-8")
    (examples / "plot_refused.py").write_text(REFUSED, encoding="utf-8")
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests: skipped:" in done.stdout
    assert "plot_served.py: 3 calls served, 0 refused" in done.stdout
    assert "plot_refused.py: 1 calls served, 1 refused" in done.stdout
    assert "in all: 4 calls served, 1 refused" in done.stdout


def test_a_script_that_ends_otherwise_with_ours_is_told(tmp_path):
    (tmp_path / "examples").mkdir()
    script = (
        GALLERY
        + "import ucmkd_fast.compat.geomloss as g\nassert not isinstance(SamplesLoss(), g.SamplesLoss)\n"
    )
    (tmp_path / "examples" / "plot_worse.py").write_text(script, encoding="utf-8")
    done = run(tmp_path)
    assert done.returncode == 1 and "worse with ours alone: plot_worse.py" in done.stdout
