"""Paired differences against direct computation and against scipy's paired t-test."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from ucmkd_fast.report import Compared, compare
from ucmkd_fast.report.shares import remains, share
from ucmkd_fast.report.statistics import paired_difference, spread
from ucmkd_fast.report.words import against_baseline, against_control, resolution


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
    found = paired_difference(values.tolist(), baseline.tolist())
    assert found.seen == (test.pvalue < 0.05)
    assert not found.seen or found.verdict == ("higher" if test.statistic > 0 else "lower")
    assert found.seen or found.verdict == ("too few seeds" if abs(test.statistic) > 1.96 else "none")


def test_the_order_of_seeds_matters_and_one_seed_says_nothing():
    assert paired_difference([0.3, 0.5, 0.7], [0.2, 0.4, 0.6001]).verdict == "higher"
    assert paired_difference([0.7, 0.5, 0.3], [0.2, 0.4, 0.6001]).verdict == "too few seeds"
    assert paired_difference([0.9], [0.1]).verdict == "too few seeds"
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([0.9, 0.8], [0.1])


def verdict_of(*differences, samples=None):
    """Of differences in points."""
    values = [0.5 + one / 100 for one in differences]
    return paired_difference(values, [0.5] * len(values), samples=samples).verdict


@pytest.mark.parametrize(
    ("differences", "samples", "expected"),
    [
        ((24, 30), 50, "too few seeds"),  # +27.0 +- 3.0: chance reaches 38 points at two seeds
        ((-24, -30), 50, "too few seeds"),
        ((26.9, 27.1), 1000, "higher"),
        ((24, 30, 27, 26, 28), 50, "higher"),
        ((-24, -30, -27, -26, -28), 50, "lower"),
        ((30, -20), 50, "too few seeds"),
        ((30, -20, 10), 50, "too few seeds"),
        ((1, -1, 0, 1, -1), 100, "none"),
        ((27,), 50, "too few seeds"),
        ((0,), 50, "too few seeds"),
        # All equal: no spread to measure with, but counts of test samples are known to a sample only.
        ((0, 0), 50, "too few seeds"),
        ((0, 0), 500, "none"),
        ((0, 0), None, "too few seeds"),
        ((0, 0, 0, 0, 0), None, "none"),
        ((2, 2), 50, "too few seeds"),
        ((2, 2), None, "too few seeds"),
        ((2, 2, 2, 2, 2), None, "higher"),
        ((2, 2, 2, 2, 2), 50, "higher"),
        # Fewer test samples than would tell.
        ((0.6, 0.5, 0.7, 0.6, 0.6, 0.5, 0.7, 0.6, 0.6, 0.6), 50, "too few samples"),
        ((0.6, 0.5, 0.7, 0.6, 0.6, 0.5, 0.7, 0.6, 0.6, 0.6), 1000, "higher"),
        ((10, 0, -10, 0, 10, 0), 10, "too few samples"),
        ((30, 30, 20, 30, 40, 30), 10, "higher"),
        # Samples are worth much, and yet what is missing is seeds: many would call it a difference.
        ((-38.9, -22.2), 18, "too few seeds"),
        ((50, 30), 10, "too few seeds"),
        ((20, 20), 10, "too few seeds"),
        ((0, 0), 10, "too few samples"),
        ((10, 0), 10, "too few samples"),
        ((3.0, math.nan), 50, "unknown"),
        ((3.0, math.inf), 50, "unknown"),
    ],
)
def test_what_seeds_and_test_samples_can_tell(differences, samples, expected):
    with np.errstate(invalid="ignore"):
        assert verdict_of(*differences, samples=samples) == expected


def said_of(differences, samples=50):
    """Every sentence and the table's bold mark for one number, over the baseline and over a control alike."""
    base = [0.4] * len(differences)
    values = [0.4 + one / 100 for one in differences]
    counts = [samples] * len(base)
    twin = Compared("twin", "twin", base, control=True, test_samples=counts)
    methods = [
        Compared("ce", "ce", base, test_samples=counts),
        Compared("kd", "kd", values, test_samples=counts),
    ]
    kd = compare(methods, "ce")[1]
    share_of = share(values, base, "twin", samples)
    return [against_baseline(kd, "ce"), against_control(kd, twin), remains([share_of])], kd.difference.seen


NOTHING = ("no difference", "as well")


@pytest.mark.parametrize(
    ("differences", "words", "never"),
    [
        ((24, 30), "2 seeds are too few to tell (chance alone makes up to 38.1 points)", (*NOTHING, "margin")),
        ((24, 30, 27, 26, 28), "", (*NOTHING, "open", "too few")),
        ((1, -1, 0, 1, -1), "no difference", ("margin over", "too few", "better")),
        ((0, 0, 0), "no difference", ("too few", "better")),
        ((0, 0), "2 seeds are too few", (*NOTHING, "better")),
        ((27,), "one seed cannot tell", ("no difference", "better", "nan")),
        ((90, -90), "chance alone makes any difference", ("no difference", "better")),
        ((0.6, 0.5, 0.7, 0.6, 0.6, 0.5, 0.7, 0.6), "too few test samples to tell (one is 2.0 points)", NOTHING),
        ((5, math.nan), "not measured at every seed", (*NOTHING, "better", "nan")),
    ],
)  # fmt: skip
def test_no_two_sentences_judge_one_number_by_two_yardsticks(differences, words, never):
    sentences, bold = said_of(differences)
    assert all(words in one for one in sentences)
    assert not any(one in sentence for sentence in sentences for one in never)
    assert bold == ("better than ce" in sentences[0]) == ("is better: " in sentences[1])
    assert bold == ("above its 95 % margin" in sentences[2])


def test_the_resolution_of_a_test_set_is_said():
    assert resolution([50, 50]) == "50 samples: 2 points each"
    assert resolution([30]) == "30 samples: 3.3 points each"
    assert resolution([400, 50, 100]) == "50 to 400 samples: 2 to 0.25 points each"
    assert resolution([]) == "of unknown size"
