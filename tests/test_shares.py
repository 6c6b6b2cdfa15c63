"""What of a gain is the teacher's: intervals, wins, and the sentence."""

import pytest
from scipy.stats import ttest_rel

from ucmkd_fast.report.shares import share, shares, verdict_line


def test_the_interval_is_students_and_a_share_is_clear_outside_of_it():
    one = share([0.6, 0.7, 0.8, 0.7], [0.5, 0.7, 0.7, 0.65], "kd")
    assert one.wins == 3 and one.difference.mean == pytest.approx(0.0625)
    low, high = ttest_rel([0.6, 0.7, 0.8, 0.7], [0.5, 0.7, 0.7, 0.65]).confidence_interval(0.95)
    assert one.interval == pytest.approx((low, high)) and one.clear == (low > 0)
    assert not share([0.5, 0.7], [0.6, 0.6], "kd").clear and not share([0.9], [0.1], "kd").clear
    assert share([0.9], [0.1], "kd").open and not share([0.5] * 3, [0.5] * 3, "kd").open


def test_sentences():
    method = [0.60, 0.62, 0.64, 0.61]
    controls = {
        "ce": [0.50, 0.51, 0.55, 0.52],
        "kd": [0.57, 0.60, 0.60, 0.58],
        "none": [0.6, 0.6, 0.66, 0.61],
    }
    said = verdict_line("plus", shares(method, controls))
    assert said.startswith("plus: +9.7 ± 0.5 over ce (4 of 4 seeds); of that, +3.0 ± 0.")
    assert "remain over kd (4 of 4 seeds)" in said and said.endswith(
        "no difference to none seen, so no share of the teacher is shown."
    )
    del controls["none"]
    assert "the teacher's share is above its 95 % margin" in verdict_line("plus", shares(method, controls))
    assert "no gain to explain" in verdict_line(
        "kd", shares([0.4, 0.5], {"ce": [0.5, 0.6], "kd": [0.3, 0.3]})
    )
    assert "no control was run" in verdict_line("kd", shares([0.7, 0.81, 0.8], {"ce": [0.5, 0.6, 0.6]}))
    assert "2 seeds are too few" in verdict_line(
        "kd", shares([0.7, 0.9], {"ce": [0.5, 0.6], "kd": [0.3, 0.3]})
    )
    below = shares([0.7, 0.71, 0.7], {"ce": [0.5, 0.5, 0.5], "up": [0.9, 0.9, 0.91], "wild": [0.1, 0.9, 0.5]})
    said = verdict_line("kd", below)
    assert "below up; over wild 3 seeds are too few to tell" in said and said.endswith(
        "so no share of the teacher is shown."
    )
    (only,) = below[2:]
    assert verdict_line("kd", [below[0], only]).endswith("so whether any of it is the teacher's is open.")
