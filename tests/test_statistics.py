"""Paired differences against direct computation and against scipy's paired t-test."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from ucmkd_fast.report.statistics import paired_difference, spread


def test_spread_is_mean_and_sample_deviation():
    assert spread([1.0, 2.0, 6.0]).mean == 3.0
    assert spread([1.0, 2.0, 6.0]).deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert math.isnan(spread([0.5]).deviation)
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def test_paired_difference_is_computed_seed_by_seed():
    ours, theirs = [0.61, 0.70, 0.52, 0.66], [0.55, 0.71, 0.50, 0.60]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(differences) / 4
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / 3) / 2
    found = paired_difference(ours, theirs)
    assert found.mean == pytest.approx(mean) and found.standard_error == pytest.approx(error)
    assert found.margin == pytest.approx(3.18244630528371 * error)  # t, 95 %, 3 degrees of freedom
    assert found.n == 4


@pytest.mark.parametrize("seed", range(40))
def test_a_difference_is_seen_where_the_t_test_sees_it(seed):
    draw = np.random.default_rng(seed)
    baseline = draw.normal(0.5, 0.1, 6)
    values = baseline + draw.normal(draw.choice([-0.02, 0.0, 0.02]), 0.02, 6)
    test = ttest_rel(values, baseline)
    expected = "none" if test.pvalue >= 0.05 else "higher" if test.statistic > 0 else "lower"
    assert paired_difference(values.tolist(), baseline.tolist()).verdict == expected


def test_the_order_of_seeds_matters_and_one_seed_says_nothing():
    assert paired_difference([0.3, 0.5, 0.7], [0.2, 0.4, 0.6001]).verdict == "higher"
    assert paired_difference([0.7, 0.5, 0.3], [0.2, 0.4, 0.6001]).verdict == "none"
    assert paired_difference([0.9], [0.1]).verdict == "unknown"
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([0.9, 0.8], [0.1])
