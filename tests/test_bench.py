"""The benchmarks' own rules: agreement before time, results kept beside each other, the command."""

import json
import sys
import types

import pytest
import torch
from typer.testing import CliRunner

from ucmkd_fast.bench import SUBJECTS, liger, rows_of
from ucmkd_fast.bench.busy import busy_processes
from ucmkd_fast.bench.harness import Disagreement, compare, save
from ucmkd_fast.cli import app


def test_disagreement_stops_the_timing():
    implementations = {"ours": lambda x: x, "theirs": lambda x: x + 1e-3}
    with pytest.raises(Disagreement, match="theirs differs by 1.00e-03"):
        compare(
            implementations,
            lambda seed: (torch.zeros(1),),
            lambda a, b: float((a - b).abs()),
            {"theirs": 1e-4},
        )


def test_subjects_are_kept_beside_each_other(tmp_path):
    path = tmp_path / "results.json"
    save(path, "one", [{"case": {"N": 1}}])
    save(path, "two", [])
    save(path, "one", [{"case": {"N": 2}}])
    found = json.loads(path.read_text())
    assert found["one"]["rows"] == [{"case": {"N": 2}}] and found["two"]["rows"] == []
    assert found["one"]["machine"]["threads"] == torch.get_num_threads()


def test_every_subject_has_rows():
    assert all(callable(rows_of(name)) for name in SUBJECTS)


SMALL = {"n": 40, "D": 6, "K": 9}


def test_linear_label_transport_stands_beside_a_plain_head_where_liger_is_missing(monkeypatch):
    monkeypatch.setattr(liger, "CASES", (SMALL,))
    monkeypatch.setattr(liger.peers, "available", lambda package: False)
    row, on_a_gpu = liger.rows(True)
    assert [t.name for t in row.timings] == [liger.OURS, liger.TORCH] and row.timings[1].error <= 1e-5
    assert row.extra["Liger"] == on_a_gpu.extra["Liger"] == "left out, liger_kernel is not installed"
    assert row.extra[f"peak MB, {liger.OURS}"] < 50 and not on_a_gpu.timings


@pytest.mark.parametrize("shift", [0, 1e-2])
def test_liger_is_compared_before_it_is_timed(monkeypatch, shift):
    """With a stand-in for its loss of two heads, called as Liger's is; where that is wrong nothing is timed."""

    class Loss:
        def __init__(self, weight_hard_loss, weight_soft_loss):
            assert (weight_hard_loss, weight_soft_loss) == (1, 0)

        def __call__(self, x, weight, teacher_x, teacher_weight, labels, bias, teacher_bias):
            assert x.requires_grad and not teacher_x.requires_grad and teacher_weight.shape == weight.shape
            logits = torch.nn.functional.linear(x, weight, bias)
            return torch.nn.functional.cross_entropy(logits, labels) + shift * teacher_bias[0] / 1e4

    for name in ("liger_kernel", "liger_kernel.chunked_loss", "liger_kernel.chunked_loss.jsd_loss"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["liger_kernel.chunked_loss.jsd_loss"].LigerFusedLinearJSDLoss = Loss
    monkeypatch.setattr(liger, "CASES", (SMALL,))
    monkeypatch.setattr(liger.peers, "available", lambda package: True)
    monkeypatch.setattr(liger, "_peak_on_the_cpu", lambda name, case: 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if shift:
        with pytest.raises(Disagreement, match="Liger JSD, two heads differs"):
            next(liger.rows(True))
        return
    row, on_a_gpu = liger.rows(True)
    assert [t.name for t in row.timings] == [liger.OURS, liger.CHUNKED, liger.TORCH]
    assert row.extra[f"peak MB, {liger.CHUNKED}"] == 1 and "Liger" not in row.extra
    assert on_a_gpu.extra == {"Liger": "left out, torch sees no GPU"}


def test_command_measures_and_prints_json():
    pytest.importorskip("ot", reason="POT is not installed: pip install 'ucmkd-fast[bench]'")
    pytest.importorskip("geomloss", reason="geomloss is not installed: pip install 'ucmkd-fast[bench]'")
    done = CliRunner().invoke(app, ["bench", "overhead", "--quick", "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["subjects"]["overhead"]
    assert [t["name"] for t in row["timings"]] == ["null", "ucmkd_fast"]
    assert row["timings"][0]["median_ms"] > 0


def test_command_names_the_nearest_subject():
    done = CliRunner().invoke(app, ["bench", "sinkhron"])
    assert isinstance(done.exception, ValueError) and "did you mean 'sinkhorn'" in str(done.exception)


@pytest.mark.parametrize(
    ("holds", "said"), [(None, "this is a folder"), ("x", "expected JSON"), ("[]", "got a list")]
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path, monkeypatch, holds, said
):
    monkeypatch.setattr("ucmkd_fast.bench.rows_of", lambda name: pytest.fail("measured"))
    monkeypatch.setattr("ucmkd_fast.extras.need", lambda name: None)
    path = tmp_path
    if holds is not None:
        path = tmp_path / "results.json"
        path.write_text(holds)
    done = CliRunner().invoke(app, ["bench", "overhead", "--output", str(path)])
    assert isinstance(done.exception, ValueError) and said in str(done.exception)
    assert str(path) in str(done.exception)


def test_busy_processes_end_with_their_block_whatever_happens_in_it():
    with pytest.raises(KeyError), busy_processes(2) as running:
        assert [process.poll() for process in running] == [None, None]
        raise KeyError
    assert len(running) == 2 and all(process.poll() is not None for process in running)
