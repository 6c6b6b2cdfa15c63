"""The benchmarks' own rules: agreement before time, results kept beside each other, the command."""

import json

import pytest
import torch
from typer.testing import CliRunner

from ucmkd_fast.bench import SUBJECTS, rows_of
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
