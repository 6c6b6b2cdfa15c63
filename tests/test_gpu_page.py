"""docs/gpu.md is what its results say: figures of the files, marks of targets, no section of what was not measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

GPU = Path(__file__).parents[1] / "benchmarks/gpu"
CARD = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
H100 = {"gpu": "H100", "torch": "2.11.0+cu130"}


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))


@pytest.fixture
def made(tmp_path):
    """The page of rows (mode, case, figures) as gpu_check.sh writes them, and of rows of training."""
    from page import page, read
    from run import Report

    def make(*rows, training=()):
        report = Report(tmp_path)
        for mode, case, figures in rows:
            report.row(mode, case, **figures)
        (tmp_path / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in training))
        return page(read([tmp_path]))

    return make


def titles(text):
    return [line[3:] for line in text.splitlines() if line.startswith("## ")]


def row_of(text, *begin):
    """The cells behind those of the one row of a table that begins so."""
    (cells,) = (
        found
        for found in (
            [c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
        )
        if found[: len(begin)] == list(begin)
    )
    return cells[len(begin) :]


PEER = {"value_differs": 1e-6, "ms": 50.0, "ours_ms": 1.0, "ratio": 50.0, "peak_mb": 9.0, "ours_peak_mb": 3.0}


def test_the_card_and_its_limits_come_from_the_rows(made):
    told = "NVIDIA H100, 580.1, 1200 MHz, 1980 MHz, 2619 MHz, 80.00 W, 700.00 W, 31"
    text = made(
        ("smoke", "device and build", {**H100, "capability": "9.0", "multiprocessors": 132}),
        ("speed", "card", {**H100, CARD: told}),
        ("speed", "copy of 1 GiB", {"gb_s": 3021.4}),
        ("speed", "a launch of torch", {"eager_us": 4.1, "in_graph_us": 1.2}),
    )
    for words in (
        "one H100",
        "132 multi",
        "driver 580.1",
        "1980 MHz at most",
        "torch 2.11.0, CUDA 13.0",
        "3,021 GB/s",
    ):
        assert words in text
    assert not titles(text)


def test_an_iteration_is_told_per_kernel_and_against_the_copy(made):
    figures = {
        "floor_us": 356.0, "forward_us": 384.0, "adjoint_us": 500.0, "whole_by_replay_us": 900.0,
        "gradient_pass_us": {"1": 10.0, "21": 420.0}, "of_copy": {"forward": 0.93, "adjoint": 0.71},
    }  # fmt: skip
    text = made(("speed", "copy of 1 GiB", {"gb_s": 3000.0}), ("speed", "iteration, N = 16384", figures))
    assert row_of(text, "16384") == ["356", "384", "500", "20", "900", "2,790 (93 %) / 2,130 (71 %)"]
    assert row_of(text, "share of copy, forward, N = 16,384") == [">= 80 %", "93 %", "reached"]
    assert row_of(text, "share of copy, adjoint, N = 16,384") == [">= 80 %", "71 %", "**not reached**"]
    assert row_of(text, "GPU time of loss and gradient, N = 64") == ["<= 0.15 ms", "not measured", ""]


def test_peers_stand_beside_ours_and_a_later_row_replaces_an_earlier_one(made):
    case = "flash-sinkhorn, N = 64"
    text = made(("peers", case, PEER), ("peers", case, {**PEER, "ratio": 4.9, "ours_alike_ms": 0.5}))
    assert row_of(text, "64", "flash-sinkhorn")[2:4] == ["4.9 x", "100 x"]
    assert row_of(text, "times as quick as flash-sinkhorn, N = 64")[1:] == ["4.9 x", "**not reached**"]


def test_a_label_loss_is_judged_by_its_kernels(made):
    figures = {
        "ms": 0.4,
        "of_copy": 0.5,
        "kernels_us": {"warp_kernel": 190.0, "others": 10.0},
        "peak_mb": 1.0,
    }
    text = made(("speed", "label 65536 x 1000 float32, forward", figures))
    assert row_of(text, "65536 x 1000 float32, forward") == ["0.4", "50 %", "100 %", "1"]
    assert row_of(text, "share of copy, label 65536 x 1000 float32, forward, kernels")[1:] == [
        "100 %",
        "reached",
    ]


def test_errors_are_the_worst_of_their_regime_and_type(made):
    cases = {
        "33x20 block f64 envelope": 1e-12,
        "130x257 block f64": 3e-12,
        "1024x1024 sweep f32, own barrier": 1e-7,
    }
    text = made(*(
        ("smoke", c, {"value_error": e, "gradient_error": 2 * e, "value_limit": 1e-6, "gradient_limit": 1e-6})
        for c, e in cases.items()
    ))  # fmt: skip
    assert row_of(text, "block", "f64") == ["2", "3.0e-12", "6.0e-12", "< 0.1 %"]
    assert row_of(text, "sweep, own barrier", "f32") == ["1", "1.0e-07", "2.0e-07", "20 %"]


def test_errors_of_what_is_switched_on_have_rows_of_their_own(made):
    figures = {"value_error": 1e-7, "gradient_error": 2e-6, "value_limit": 1e-5, "gradient_limit": 1e-4}
    cases = [
        "256x256 cluster f32 unrolled, 16 blocks",
        "batch of 7, 140x133 cluster",
        "streamed 300x257 l2 f16, D = 3, equal rows",
        "streamed 300x257 cosine f32, D = 3",
        "tensor cores 300x257 l2 bf16, D = 16",
        "panels 300x257 f32",
    ]
    text = made(*(("smoke", case, figures) for case in cases))
    for begin, count in (
        (("cluster", "f32"), "2"),
        (("streamed", "f16"), "1"),
        (("streamed", "f32"), "1"),
        (("tensor cores", "bf16"), "1"),
        (("panels", "f32"), "1"),
    ):
        assert row_of(text, *begin) == [count, "1.0e-07", "2.0e-06", "2.0 %"]


def test_clusters_and_costs_that_are_not_stored_stand_beside_the_default(made):
    one = {"forward_us_off": 4.5, "whole_us_off": 9.0, "forward_us_on": 3.0, "whole_us_on": 6.0, "times": 1.5}
    both = {
        "panels_ms": 90.0,
        "streamed_ms": 30.0,
        "panels_peak_mb": 150.0,
        "streamed_peak_mb": 20.0,
        "times": 3.0,
    }
    text = made(
        ("speed", "clusters, 32 x 256 x 256", one),
        ("speed", "costs that do not fit, N = 8192, D = 3, float32", both),
        ("speed", "costs that do not fit, N = 8192, D = 64, float32", {**both, "failed": "not the same"}),
        ("speed", "N = 8192, 20 iterations, float32, panels", {"ms": 94.7, "peak_mb": 158.0}),
    )
    assert titles(text) == ["Batches and panels", "Clusters", "Costs that do not fit", "Failed or left out"]
    assert row_of(text, "32 x 256 x 256") == ["4.5", "3", "9", "6", "1.5 x"]
    assert row_of(text, "N = 8192, D = 3, float32") == ["90", "30", "3 x", "150 / 20"]
    assert row_of(text, "N = 8192, 20 iterations, float32, panels") == ["94.7", "158 MB at most"]
    assert "| N = 8192, D = 64, float32" not in text


def test_what_a_pair_costs_is_told_both_ways_and_as_a_line(made):
    kind = "float32 l2"
    rows = [
        (
            "tune",
            f"a pair, {kind}, D = {d}, streamed={streamed}",
            {"kind": kind, "d": d, "streamed": streamed, "sweep_ps": ps},
        )
        for d, streamed, ps in ((16, False, 7.5), (16, True, 3.5), (64, True, 8.25))
    ]
    line = {"of_a_pass": {"feature_ps": 0.05, "rest_ps": 1.0}, "of_a_panel": None}
    text = made(*rows, ("tune", "costs of a pair, float32 l2", line))
    assert titles(text) == ["A pair of rows in a sweep"]
    assert row_of(text, "float32 l2", "16") == ["7.5", "3.5"]
    assert row_of(text, "float32 l2", "64") == ["-", "8.25"]
    assert row_of(text, "float32 l2", "0.05") == ["1", "-", "-"]


def test_fewer_configurations_of_a_peer_are_told(made):
    assert "fewer" not in made(("peers", "flash-sinkhorn, N = 64", PEER))
    sizes = {64: 12, 1024: 3, 4096: 2}
    text = made(
        *(("peers", f"flash-sinkhorn, N = {n}", {**PEER, "configurations": k}) for n, k in sizes.items())
    )
    assert "fewer configurations per kernel: 3 at N = 1,024, 2 at N = 4,096." in text


def test_what_failed_or_was_left_out_is_named(made):
    counts = {"tests_error": 0, "tests_skipped": 0}
    text = made(
        ("sanitize", "memcheck", {"cases": 46, "seconds": 30.0, "told": "a; ERROR SUMMARY: 0 errors"}),
        (
            "sanitize",
            "racecheck",
            {"cases": 9, "seconds": 60.0, "told": "", "failed": "killed at its time limit"},
        ),
        ("peers", "Liger", {"left_out": "liger_kernel is not here"}),
        ("correct", "ops", {**counts, "tests_passed": 9, "tests_failed": 1, "failed": "exit 1"}),
    )
    assert row_of(text, "memcheck") == ["46", "30", "ERROR SUMMARY: 0 errors"]
    assert row_of(text, "racecheck", "9")[1] == "killed at its time limit"
    assert row_of(text, "ops") == ["9", "1", "0", "0", "exit 1"]
    assert row_of(text, "peers", "Liger") == ["liger_kernel is not here"]
    assert titles(text) == ["Tests on the device", "Sanitizers", "Failed or left out"]


def test_the_best_setting_stands_beside_the_default(made):
    best = {"own_barrier": True, "tuning": {"grid": 66}}
    text = made(
        (
            "tune",
            "N = 256 regime=0",
            {"graph_ms": 2.0, "n": 256, "setting": {"regime": 0, "own_barrier": True}, "default": True},
        ),
        ("tune", "N = 256 grid", {"graph_ms": 1.6, "n": 256, "setting": best, "default": False}),
        (
            "tune",
            "N = 256 wrong",
            {"graph_ms": 0.1, "differs": 1.0, "failed": "not what the default computes"},
        ),
    )
    assert row_of(text, "256") == ["2", "2", "1.6", "1.25 x", "own_barrier True, grid 66"]


def test_a_training_step_is_told_as_times_of_cross_entropy(made):
    step = {"batch": 64, "ms": 3.0, "host_ms": 2.0, "device_ms": 1.0, "graph_ms": 1.5, "peak_mib": 4.0}
    step["waits"] = "never"
    ratios = {"ms_to_ce": 2.5, "host_ms_to_ce": 2.0, "device_ms_to_ce": 2.6}
    rows = [
        {**step, "method": "ce"}, {**step, **ratios, "method": "published-code"},
        {**step, **ratios, "method": "published-code, without FA"},
        {"batch": 64, "method": "by copies", "ms": 30.0, "host_ms": 2.0, "device_ms": 5.0, "peak_mib": 16.0},
    ]  # fmt: skip
    text = made(training=rows)
    assert row_of(text, "64", "published-code") == ["3 (2.50)", "1 (2.60)", "2 (2.00)", "1.5", "4"]
    assert row_of(text, "host time of a step, `published-code, without FA` / `ce`, batch 64")[1:] == [
        "2 x",
        "reached",
    ]
    assert row_of(text, "device time of a step, `published-code, without FA` / `ce`, batch 64")[1:] == [
        "2.6 x",
        "**not reached**",
    ]
    assert "10 times as long as `published-code`, 5 times on the device, with 4 times the memory" in text
    assert "3 of 3 kinds of step never waited" in text


def test_figures_of_two_cards_are_refused(made):
    with pytest.raises(SystemExit, match="several cards: H100, H200"):
        made(("speed", "card", H100), ("smoke", "device and build", {"gpu": "H200"}))


def test_the_cases_that_targets_ask_for_are_measured():
    import others
    import page_targets
    import speed

    names = {case.name for case in speed.cases()} | {case.name for case in others.cases()}
    asked = {f"{peer}, N = {n}" for peer, sizes in page_targets.RATIOS.items() for n in sizes}
    asked |= {f"loss and gradient, N = {n}, D = 512" for n in page_targets.GPU_MS}
    assert asked | {f"iteration, N = {n}" for n in page_targets.STREAMED} <= names
