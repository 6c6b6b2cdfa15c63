"""The runner of peer suites on a library and tests made up here, and POT's own tests where they are at hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "peer_suites"


def module(name, monkeypatch):
    """A script of that folder, imported without putting anything in place."""
    monkeypatch.syspath_prepend(str(HERE))
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, found)
    spec.loader.exec_module(found)
    return found


LIBRARY = """
def half(x, exact=False):
    return x / 2

def quarter(x):
    return half(half(x))
"""

TESTS = """
import library

def test_served():
    assert library.half(4) == 2 == library.half(4.0)

def test_refused():
    assert library.half(3, exact=True) == 1.5

def test_from_within():
    assert library.quarter(4) == 1

def test_ours_is_wrong():
    assert library.half(5) == 2.5

def test_known():
    assert library.half(7) == 3.5

def test_wrong_in_both():
    assert library.half(2) == 3
"""

PLUGIN = """
import library
import _runner

def half(x, exact=False):
    if exact:
        raise NotImplementedError("exact=True is not built here: use library")
    return x // 2

library.half = _runner.counted("half", half, library.half)
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    runner = module("_runner", monkeypatch)
    for name, text in (("library.py", LIBRARY), ("test_library.py", TESTS), ("replaced.py", PLUGIN)):
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PEER_TESTS", str(tmp_path))
    return runner, runner.Suite(
        "PEER_TESTS",
        ("test_library.py", "test_gone.py"),
        "replaced",
        {"test_library.py::test_known": "known"},
    )


def test_failures_and_calls_are_counted(suite, monkeypatch, capsys):
    runner, asked = suite
    assert asked.absence() is None and asked.present() == ["test_library.py"]
    comparison = runner.compare(asked)
    assert comparison.newly("failed") == [
        "test_library.py::test_known",
        "test_library.py::test_ours_is_wrong",
    ]
    assert comparison.unexcused(asked) == ["test_library.py::test_ours_is_wrong"]
    assert comparison.replaced["served"] == {"half": 5}
    assert comparison.replaced["refused"] == {"half: exact=True is not built here": 1}
    monkeypatch.setattr(runner, "compare", lambda suite: comparison)
    assert runner.main(asked) == 1
    said = capsys.readouterr().out
    assert "original: 1 failed, 5 passed" in said and "replaced: 3 failed, 3 passed" in said
    assert "calls served: 5, refused: 1" in said and "test_known: known" in said


def test_what_is_not_there_is_skipped_with_a_reason(suite, monkeypatch, capsys):
    runner, asked = suite
    for value, words in (
        (None, "does not name a folder"),
        (str(HERE), "has none of test_library.py, test_gone.py"),
    ):
        monkeypatch.delenv("PEER_TESTS") if value is None else monkeypatch.setenv("PEER_TESTS", value)
        assert words in asked.absence()
        assert runner.main(asked) == 0
        assert capsys.readouterr().out.startswith("skipped: PEER_TESTS")


def test_a_run_without_tests_is_an_error(suite):
    runner, asked = suite
    with pytest.raises(RuntimeError, match="pytest did not run the suite"):
        runner.run(asked, ("no_such_plugin",))


def test_pots_own_tests_pass(monkeypatch):
    pytest.importorskip("ot", reason="POT, whose tests these are, is not installed (extra: test)")
    runner = module("_runner", monkeypatch)
    suite = module("run_pot", monkeypatch).SUITE
    if reason := suite.absence():
        pytest.skip(reason)
    comparison = runner.compare(suite)
    comparison.print(suite)
    assert not comparison.unexcused(suite)
