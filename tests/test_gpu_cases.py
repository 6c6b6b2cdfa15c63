"""The cases of `benchmarks/gpu_check.sh`, as far as they run without a GPU: on the execution model, and their lists."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from cuda_harness import build, model

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device
from ucmkd_fast.ops.cuda_switches import SWITCHES

GPU = Path(__file__).parents[1] / "benchmarks/gpu"
MODES = {"smoke": "smoke", "speed": "speed", "peers": "others", "tune": "tune"}
H100 = {"multiprocessors": 132, "shared": 227 * 1024, "threads": 512}
needs_model = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with")


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    monkeypatch.delenv("TUNE", raising=False)
    monkeypatch.delenv("SIZES", raising=False)


def state():
    return {name: getattr(_device, name) for name in ("regime", "tuning", *(s.name for s in SWITCHES))}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_lists_its_cases_without_a_gpu(mode):
    names = [case.name for case in importlib.import_module(MODES[mode]).cases()]
    by_row = {"label", "linear label", "Liger"}  # rows of theirs have names of their own
    assert {name for name in names if names.count(name) > 1} <= by_row and len(names) > 10


SMOKE = [
    "33x20 cluster f32 unrolled", "33x20 cluster f64 implicit", "256x256 cluster f32 unrolled, 16 blocks",
    "33x20 resident f32, library barrier", "batch of 7, 140x133 cluster", "panels 300x257 f32",
    "streamed 300x257 l2 f64, D = 3, equal rows", "streamed 260x131 l2 f32, D = 12, cost by class",
    "tensor cores 300x257 l2 bf16, D = 16", "33x20 sweep f32 unrolled", "batch of 7, 64x33",
    "33x20 resident f32 unrolled, unbalanced", "33x20 auto f64 implicit, unbalanced",
    "130x257 auto f32, unbalanced with tol",
]  # fmt: skip


@needs_model
@pytest.mark.parametrize("name", SMOKE)
def test_cases_of_smoke_pass_and_leave_the_switches_as_they_were(name, monkeypatch):
    import smoke
    import smoke_checks

    monkeypatch.setattr(smoke_checks, "DEVICE", "cpu")
    (case,) = (case for case in smoke.cases() if case.name == name)
    with model(**H100) as module:
        before = state()
        found = case.run()
        assert state() == before
        assert (module.clusters_launched() > 0) is ("cluster" in name)
    assert "failed" not in found and {"value_error", "gradient_error"} <= set(found)


@needs_model
@pytest.mark.parametrize("visited", ["no sweep", "threads"])
def test_a_streamed_case_fails_where_another_way_ran(visited, monkeypatch):
    """The loss is right: only what ran is not what was asked for."""
    import smoke_checks
    import smoke_switches
    from overrides import under

    monkeypatch.setattr(smoke_checks, "DEVICE", "cpu")
    with model(**H100) as module:
        plan = module.cuda_stream_plan
        monkeypatch.setattr(module, "cuda_stream_plan", lambda call, cores: plan(call, False))
        asked = {"streamed": False} if visited == "no sweep" else {"streamed": True, "tensor_cores": True}
        run = lambda: smoke_switches.streamed((70, 65, 5), torch.bfloat16, "l2")  # noqa: E731
        found = under(run, **asked)
    assert "asked for" in found["failed"] and found["value_error"] < found["value_limit"]


def test_switches_are_restored_where_a_case_raises_and_clusters_are_left_out_of_older_cards(monkeypatch):
    from overrides import under

    before = state()
    with pytest.raises(ZeroDivisionError):
        under(lambda: {"ms": 1 / 0}, clusters=True, regime=6, tuning={"grid": 4}, streamed=False)
    assert state() == before
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert "9.0" in under(lambda: {"ms": 1.0}, clusters=True)["left_out"]
    assert under(lambda: {"now": _device.streamed}, streamed=True) == {"now": True}


@needs_model
def test_what_is_tuned_as_clusters_runs_as_clusters():
    """The regime would be another one without a word where the blocks have no room for the cost."""
    import tune

    for n in tune.CLUSTER_SIZES:
        C = torch.rand(n, n)
        for setting in tune.of_clusters(n)[1:]:
            with model("cluster", tuning=setting.get("tuning"), **H100) as module:
                _device.clusters = True
                uk.sinkhorn(C, max_iter=1)
                assert module.clusters_launched() == 1, (n, setting)


def test_the_constants_of_a_pair_are_those_of_the_line(tmp_path, monkeypatch):
    import tune_features

    rows = []
    for kind in tune_features.KINDS[:2]:
        for d in kind.widths:
            for streamed, spent in ((True, 2 * (0.05 * d + 1.5)), (False, 0.04 * d + 7)):
                case = f"a pair, {kind}, D = {d}, streamed={streamed}"
                row = {"kind": str(kind), "d": d, "streamed": streamed, "sweep_ps": spent}
                rows.append({"mode": "tune", "case": case, **row})
    rows.insert(0, {**rows[0], "sweep_ps": 1e9})  # of a run before
    rows.append({"mode": "tune", "case": "a wrong one", "sweep_ps": 1.0, "failed": "not what panels compute"})
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("RESULTS", str(tmp_path / "results.jsonl"))
    found = {row["case"]: row for row in tune_features.constants()}
    for kind in tune_features.KINDS[:2]:
        row = found[f"costs of a pair, {kind}"]
        assert row["of_a_pass"] == pytest.approx({"feature_ps": 0.05, "rest_ps": 1.5})
        assert row["of_a_panel"] == pytest.approx({"feature_ps": 0.04, "rest_ps": 7.0})
    assert found[f"costs of a pair, {tune_features.KINDS[2]}"]["of_a_pass"] is None


def test_peers_without_figures_come_first():
    import others

    cases = others.cases()
    names = [case.name for case in cases]
    new = ["geomloss", "Liger", "compiled torch", "flash-sinkhorn, N = 1024", "flash-sinkhorn, N = 4096"]
    known = [names.index(f"published code's call, N = {n}") for n in (64, 1024, 2048, 4096)]
    for begin in new:
        assert all(k < min(known) for k, name in enumerate(names) if name.startswith(begin))
    counts = [others.configurations(n) for n in (64, 1024, 2048, 4096, 16384)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[1] and counts[-1] >= 2
