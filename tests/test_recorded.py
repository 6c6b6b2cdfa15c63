"""Agreement with recorded runs of the published code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import run_recorded_case
from run_recorded_case import SHARED, load_case, replay

PARITY = SHARED / "parity"
# Ten times the float32 noise of a plain reimplementation: AdamW's first step is a sign.
TOLERANCE = {
    "ce": 1e-5,
    "vanillaKD": 1e-5,
    "feadistill": 1e-5,
    "sumall": 1e-5,
    "bilevel_cosine": 1e-4,
    "bilevel_l2_two_inner_steps": 1e-4,
    "bilevel_adamw_l1": 1e-3,
    "norm": 1e-4,
    "reviewkd": 1e-4,
    "c2kd": 1e-4,
}
#: What we log, and its name in the record.
LOGGED = {
    "ce": "train/CE_loss",
    "loss": "train/loss",
    "norm": "train/NORM_loss",
    "review": "train/Review_loss",
    "loss_student": "train/loss2",
    "loss_teacher": "train/loss1",
    "kendall_tau": "train/corr_mean",
}

pytestmark = pytest.mark.skipif(
    not PARITY.is_dir(),
    reason=f"no recorded runs in {PARITY} (UCMKD_SHARED names the folder that holds parity/)",
)


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", TOLERANCE)
def test_update_agrees(case):
    result = replay(PARITY / f"{case}.npz")
    assert result["case"] == case
    assert result["update_error"] <= TOLERANCE[case]
    assert result["buffer_error"] <= 1e-5


@pytest.mark.parametrize("case", TOLERANCE)
def test_logged_values_agree(case):
    path = PARITY / f"{case}.npz"
    _, settings, recorded = load_case(path)
    names = {ours: theirs for ours, theirs in LOGGED.items() if theirs in recorded[0]}
    if settings["n1_steps"] == settings["n2_steps"] == 1:  # of several inner steps we log the first
        names |= {"fa": "train/FA_loss", "la": "train/LA_loss"}
    for ours, theirs in zip(replay(path)["log"], recorded, strict=True):
        for name in names.keys() & ours.keys():
            assert ours[name] == pytest.approx(theirs[names[name]], rel=1e-5), name


@pytest.mark.parametrize("case", TOLERANCE)
def test_float32_noise(case, record_property):
    """The same run with the rows of each batch permuted: what rounding alone does to the error."""
    errors = sorted(replay(PARITY / f"{case}.npz", seed)["update_error"] for seed in range(5))
    print(f"{case}: update error under permuted reductions", " ".join(f"{e:.1e}" for e in errors))
    record_property("update_errors", errors)
    assert errors[0] != errors[-1], "the permutation must change the rounding"
    assert median(errors) <= TOLERANCE[case]


def run(case: Path) -> subprocess.CompletedProcess:
    script = Path(run_recorded_case.__file__)
    return subprocess.run(
        [sys.executable, str(script), str(case)], capture_output=True, text=True, cwd=case.parent
    )


def test_command_prints_one_json_line_wherever_the_file_lies(tmp_path):
    elsewhere = tmp_path / "renamed.npz"
    shutil.copy(PARITY / "ce.npz", elsewhere)
    done = run(elsewhere)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert set(result) == {"case", "update_error", "buffer_error"}
    assert result["case"] == "renamed" and result["update_error"] <= 1e-5


def test_a_method_that_is_not_built_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(run_recorded_case, "available_methods", lambda: ["kd"])
    monkeypatch.setattr(sys, "argv", ["run_recorded_case.py", str(PARITY / "ce.npz")])
    assert run_recorded_case.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and "method 'ce' is not built" in err
