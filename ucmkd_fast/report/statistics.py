"""Comparisons over seeds: means, deviations, and paired differences with what chance allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: Of an accuracy from 0 to 1. Gains in this field are of this size: seeds that could not show one that large have not
#: seen that there is none, and a test set of fewer than 20 samples cannot.
WORTH_SEEING = 0.05
_ROUNDING = 1e-12  # of float64: accuracies that differ by less are equal
_MANY = 1.96  # standard errors of the 95 % margin, were there seeds without end

Verdict = Literal["higher", "lower", "none", "too few seeds", "too few samples", "unknown"]


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation (n - 1) over seeds; the deviation of one value is NaN."""

    mean: float
    deviation: float


def spread(values: Sequence[float]) -> Spread:
    """Mean and deviation of at least one value."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not data.size:
        raise ValueError(f"expected at least one value, got an array of shape {data.shape}")
    return Spread(float(data.mean()), float(data.std(ddof=1)) if data.size > 1 else math.nan)


@dataclass(frozen=True)
class PairedDifference:
    """Mean over seeds of one method's value minus another's at the same seed.

    Attributes:
        mean: of the differences.
        standard_error: of that mean: sample deviation / sqrt(n); NaN for one seed.
        margin: half the width of the 95 % confidence interval: Student's t at n - 1 degrees of freedom
            times the standard error, where equal differences count as known to a test sample only. It assumes that
            differences are about normal; over many comparisons one in twenty is beyond it by chance. NaN where the
            spread cannot be told: one seed, or two equal differences of unknown resolution.
        n: seeds.
        step: what one test sample is of the values, where that is known.
    """

    mean: float
    standard_error: float
    margin: float
    n: int
    step: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What the seeds say; the one yardstick of every table and sentence.

        * "higher", "lower": the mean is beyond its margin, and at least one test sample.
        * "none": no difference seen, and one of `WORTH_SEEING` would have been.
        * "too few seeds": one seed; or a mean that would be beyond the margin of many seeds, or a margin that hides
          what is worth seeing.
        * "too few samples": beyond its margin and less than one test sample, or samples worth more than
          `WORTH_SEEING` where nothing hints at a difference.
        * "unknown": a value is missing.
        """
        if not math.isfinite(self.mean):
            return "unknown"
        if math.isnan(self.margin):
            return "too few seeds"
        step, size = self.step or 0.0, abs(self.mean)
        if size > self.margin:
            if size < step * (1 - 1e-9):
                return "too few samples"
            return "higher" if self.mean > 0 else "lower"
        hinted = size > _MANY * self.standard_error and size >= step * (1 - 1e-9)
        if step > WORTH_SEEING and not hinted:
            return "too few samples"
        if self.margin > WORTH_SEEING or size > _MANY * self.standard_error:
            return "too few seeds"
        return "none"

    @property
    def seen(self) -> bool:
        """Whether a difference is there."""
        return self.verdict in ("higher", "lower")


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], *, samples: int | None = None
) -> PairedDifference:
    """Compare two methods seed by seed: entry i of both is of the same seed.

    Args:
        values: one per seed, such as accuracies from 0 to 1.
        baseline: likewise.
        samples: that each value is a share of, where it is one (the smallest test set of the seeds).

    Raises:
        ValueError: nothing to compare, or sequences of different lengths.
    """
    if len(values) != len(baseline):
        raise ValueError(f"expected a value of both methods per seed, got {len(values)} and {len(baseline)}")
    difference = spread(np.subtract(values, baseline).tolist())
    n, step = len(values), None if samples is None else 1 / samples
    mean, deviation = (0.0 if abs(v) < _ROUNDING else v for v in (difference.mean, difference.deviation))
    if n == 1 or not math.isfinite(mean):
        return PairedDifference(mean, math.nan, math.nan, n, step)
    from scipy.stats import t  # slow to import

    # Counts of test samples are whole numbers: differences are equal by chance, and then known to a sample (Sheppard).
    known = max(deviation, 0.0 if step is None else step / math.sqrt(12))
    margin = float(t.ppf(0.975, n - 1)) * known / math.sqrt(n) if known or n > 2 else math.nan
    return PairedDifference(mean, deviation / math.sqrt(n), margin, n, step)
