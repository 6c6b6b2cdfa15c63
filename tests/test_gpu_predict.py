"""The model of time: its parts as pure functions, its constants, and that docs/kernels.md shows what it says now."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks/gpu"
LOOP = {"units": 32, "instructions": 400, "exponential": 32, "special": 34, "registers": 128}
OWN = {"quads": 2, "rows": 4, "keeps": 1, "threads": 512, "groups": 1, "span": 512, "held": 0}


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))


@pytest.fixture
def card():
    from costs import Card

    return Card("a card", multiprocessors=100, clock_ghz=2.0, copy_gb_s=1000, l2_gb_s=4000)


def test_32768_matrices_of_4_x_4_are_predicted_to_take_30_us_both_ways():
    from predict import COUNTS, predicted_projections

    times = predicted_projections(json.loads(COUNTS.read_text()))[32768]
    assert sum(time.total for time in times.values()) <= 30


# ---- The parts


def test_a_multiprocessor_issues_from_four_schedulers(card):
    from costs import ISSUED
    from predicted_time import issue_us

    assert issue_us(card, 4 * 2000, warps=64) == pytest.approx(1 / ISSUED), (
        "2,000 clocks at 2 GHz are a microsecond"
    )


def test_few_warps_leave_slots_empty(card):
    from costs import ISSUED, LATENCY
    from predicted_time import filled

    assert filled(4) == pytest.approx(1 / LATENCY) and filled(8) == pytest.approx(2 / LATENCY)
    assert filled(12) == filled(64) == ISSUED


def test_exponentials_are_sixteen_per_clock(card):
    from predicted_time import special_us

    assert special_us(card, 1000) == pytest.approx(1.0), "1,000 of a warp are 32,000: 2,000 clocks"


@pytest.mark.parametrize(
    "threads, registers, blocks",
    [(512, 128, 1), (512, 64, 2), (256, 128, 2), (128, 114, 4), (128, 168, 3), (1024, 16, 2), (2048, 16, 1)],
)
def test_how_many_blocks_a_multiprocessor_holds(threads, registers, blocks):
    from predicted_time import resident_blocks

    assert resident_blocks(threads, registers) == blocks


def test_the_longest_of_what_goes_on_together_and_the_barriers(card):
    from predicted_time import Time

    time = Time(issue=3, special=1, memory=5, cache=2, fixed=4)
    assert time.total == 9 and time.bound_by == "memory"
    assert Time(issue=3, fixed=4).bound_by == "barriers"


def test_an_iteration_that_stays_on_chip_reads_nothing(card):
    from predicted_time import iteration

    plan = {"grid": 100}
    time = iteration(card, 1600, plan, OWN, LOOP)  # 16 rows of a block: four trips of 16 warps
    assert time.memory == time.cache == 0
    assert time.special == pytest.approx(4 * 16 * 34 * 2 / 2000)
    assert time.issue == pytest.approx(4 * 16 * 400 / 4 / 0.66 / 2000)
    assert time.fixed > 0 and iteration(card, 1600, {"grid": 1}, OWN, LOOP).fixed == 0, (
        "one block has no barrier"
    )


def test_rows_that_pass_through_are_read(card):
    from predicted_time import iteration

    streams, some = ({**OWN, "keeps": keeps, "held": held} for keeps, held in ((0, 0), (2, 4)))
    every = iteration(card, 1600, {"grid": 100}, streams, LOOP)
    assert every.memory == pytest.approx(4 * 1600**2 / 1e6) and every.cache == pytest.approx(every.memory / 4)
    assert iteration(card, 1600, {"grid": 100}, some, LOOP).memory == pytest.approx(every.memory * 12 / 16)
    twice = iteration(card, 1600, {"grid": 100}, streams, {**LOOP, "exponential": 64})
    assert twice.memory == every.memory and twice.cache == 2 * every.cache, "a second look finds the cache"


def test_a_few_rows_more_are_a_trip_more(card):
    from predicted_time import iteration

    times = [iteration(card, n, {"grid": 100}, OWN, LOOP).issue for n in (1600, 1601, 2000, 2001)]
    assert times[0] < times[1] == times[2] < times[3]


def test_the_gradient_is_two_multiply_adds_per_element_and_one_pass_over_the_cost(card):
    from predicted_time import LAUNCH_US, gradient_pass

    loop = {"units": 512, "instructions": 900, "registers": 128}
    one, four = (gradient_pass(card, n, 128, loop, 10) for n in (1280, 2560))  # tiles of a multiprocessor
    assert one.issue == pytest.approx(8 * 2 * 64 / 512 * 900 / (4 * 0.5) / 2000), (
        "eight warps fill half of the slots"
    )
    assert four.issue == pytest.approx(4 * one.issue * 0.5 / 0.66)
    assert one.fixed == pytest.approx((8 * 1280**2 / 1e6 + LAUNCH_US) / 10)


# ---- The constants


def test_kernels_of_others_take_about_as_long_as_published():
    from costs import ISSUED, KNOWN, WARP_TILED
    from predicted_time import known_rate

    assert known_rate(WARP_TILED) == pytest.approx(WARP_TILED.published, rel=0.02), "it sets ISSUED"
    assert len(KNOWN) == 3 and 0.5 < ISSUED < 1
    for known in KNOWN:
        assert 0.8 < known.published / known_rate(known) < 1.25, known.name


def test_constants_are_those_of_their_sources():
    from costs import BARRIER_US, EXCHANGE_US, H100, LAUNCH_US

    page = (ROOT / "docs/gpu.md").read_text()
    assert f"moves {H100.copy_gb_s:,} GB/s" in page and f"in a graph {LAUNCH_US} us" in page
    assert (
        f"{H100.multiprocessors} multiprocessors" in page
        and f"{H100.clock_ghz * 1000:.0f} MHz at most" in page
    )
    regime = (ROOT / "csrc/sinkhorn/regime.h").read_text()
    assert re.search(rf"kBarrier = {BARRIER_US}, kGrid = {EXCHANGE_US};", regime)


# ---- The page


def test_measurements_are_read_from_the_page():
    from predict import measured_iterations, measured_labels

    page = """# Measured
## An iteration

Words.

| N = M | floor | forward | adjoint | gradient | all | GB/s |
| --- | --- | --- | --- | --- | --- | --- |
| 64 | 0.129 | 0.515 | 0.652 | - | 1.17 | - |
| 32768 | 1,449 | 2,235 | 2,569 | 279 | 4,917 | 1,922 (65 %) |
| 64, double | - | 6.38 | 6.12 | 0.165 | 13 | - |

## Label transport

| N x K, type | ms of a call | of copy, call | of copy, kernels | peak MB |
| --- | --- | --- | --- | --- |
| 65536 x 1000 float32, forward | 0.341 | 52 % | 90 % | 0.263 |

## Next
"""
    assert measured_iterations(page) == {
        64: {"forward": 0.515, "adjoint": 0.652, "gradient": None},
        32768: {"forward": 2235, "adjoint": 2569, "gradient": 279},
    }
    assert measured_labels(page) == {"65536 x 1000 float32, forward": 0.9}


def test_predictions_are_within_twice_of_what_was_measured():
    """A loop that is read wrongly, or a constant off by a factor, is further off than the model is."""
    from predict import (
        COUNTS,
        MEASURED,
        label_cases,
        measured_iterations,
        measured_labels,
        predicted_iterations,
    )

    counts, page = json.loads(COUNTS.read_text()), MEASURED.read_text()
    times, compared = predicted_iterations(counts), 0
    for n, measured in measured_iterations(page).items():
        for way, time in times[n].items():
            if measured[way]:
                compared += 1
                assert 0.5 < measured[way] / time.total < 2, (n, way, time)
    assert compared == 28
    labels = list(label_cases(counts, measured_labels(page)))
    assert len(labels) == 6 and all(0.5 < spent / guess < 2 for _, guess, spent, _ in labels), labels


def test_the_page_shows_what_the_script_says():
    from predict import PAGE, between, sections, written

    page = PAGE.read_text()
    for name, text in sections().items():
        assert between(page, name) == text.strip(), "python benchmarks/gpu/predict.py --write"
    assert written(page, sections()) == page


def test_what_is_predicted_says_so():
    from predict import sections

    assert sections()["predicted"].startswith("**Predicted, not measured.**")
