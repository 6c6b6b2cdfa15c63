"""Comparisons over seeds: means, deviations, and paired differences with what chance allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
            times the standard error. It assumes that differences are about normal; over many comparisons
            one in twenty is beyond it by chance.
        n: seeds.
    """

    mean: float
    standard_error: float
    margin: float
    n: int

    @property
    def verdict(self) -> str:
        """One of "higher", "lower", "none" (no difference seen) and "unknown" (one seed cannot tell)."""
        if math.isnan(self.margin):
            return "unknown"
        if abs(self.mean) <= self.margin:
            return "none"
        return "higher" if self.mean > 0 else "lower"


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Compare two methods seed by seed: entry i of both is of the same seed.

    Raises:
        ValueError: nothing to compare, or sequences of different lengths.
    """
    if len(values) != len(baseline):
        raise ValueError(f"expected a value of both methods per seed, got {len(values)} and {len(baseline)}")
    difference = spread(np.subtract(values, baseline).tolist())
    n = len(values)
    if n == 1:
        return PairedDifference(difference.mean, math.nan, math.nan, n)
    from scipy.stats import t  # slow to import

    error = difference.deviation / math.sqrt(n)
    return PairedDifference(difference.mean, error, float(t.ppf(0.975, n - 1)) * error, n)
