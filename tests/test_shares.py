"""What of a gain is the teacher's: intervals, wins, and the sentence."""

import numpy as np
import pytest

from ucmkd_fast.report.shares import bootstrap_interval, share, shares, verdict_line


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(2.0, 1.0, size=400)
    low, high = bootstrap_interval(values.tolist())
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.02)
    assert bootstrap_interval([0.3]) == (0.3, 0.3)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])


def test_share_counts_wins_and_is_clear_at_two_standard_errors():
    one = share([0.6, 0.7, 0.8, 0.7], [0.5, 0.7, 0.7, 0.65], "kd")
    assert one.wins == 3 and one.difference.mean == pytest.approx(0.0625)
    assert one.clear == (one.difference.mean >= 2 * one.difference.standard_error)
    assert not share([0.5, 0.7], [0.6, 0.6], "kd").clear and not share([0.9], [0.1], "kd").clear


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
        "less than two standard errors over none, so no share of the teacher is shown."
    )
    del controls["none"]
    assert "the teacher's share is beyond two standard errors" in verdict_line(
        "plus", shares(method, controls)
    )
    assert "no gain to explain" in verdict_line(
        "kd", shares([0.4, 0.5], {"ce": [0.5, 0.6], "kd": [0.3, 0.3]})
    )
    assert "no control was run" in verdict_line("kd", shares([0.7, 0.8], {"ce": [0.5, 0.6]}))
