"""How much of a method's gain is the teacher's: paired differences to its controls, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .statistics import PairedDifference, paired_difference


@dataclass(frozen=True)
class Share:
    """What remains of a method over one baseline or control.

    Attributes:
        over: the baseline's name.
        difference: paired over seeds.
        interval: 95 % bootstrap interval of its mean (percentiles over resampled seeds).
        wins: seeds at which the method is above.
    """

    over: str
    difference: PairedDifference
    interval: tuple[float, float]
    wins: int

    @property
    def points(self) -> str:
        """The difference and its standard error, in points."""
        return f"{100 * self.difference.mean:+.1f} ± {100 * self.difference.standard_error:.1f}"

    @property
    def clear(self) -> bool:
        """Whether the mean is at least two standard errors above 0."""
        return self.difference.mean >= 2 * self.difference.standard_error > 0


def bootstrap_interval(
    values: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of the mean of resampled values; of one value, that value."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not data.size:
        raise ValueError(f"expected at least one value, got an array of shape {data.shape}")
    rows = np.random.default_rng(seed).integers(data.size, size=(resamples, data.size))
    low, high = np.percentile(data[rows].mean(1), [2.5, 97.5])
    return float(low), float(high)


def share(values: Sequence[float], baseline: Sequence[float], over: str) -> Share:
    """Entry i of both is of the same seed."""
    difference = paired_difference(values, baseline)
    differences = np.subtract(values, baseline)
    return Share(over, difference, bootstrap_interval(differences.tolist()), int((differences > 0).sum()))


def shares(values: Sequence[float], baselines: Mapping[str, Sequence[float]]) -> list[Share]:
    """The method against each, in their order; the first is what its gain is counted from."""
    return [share(values, baseline, over) for over, baseline in baselines.items()]


def verdict_line(name: str, against: Sequence[Share]) -> str:
    """What of the gain over the first baseline remains over the others, in one sentence."""
    first, *others = against
    n = first.difference.n
    gain = f"{name}: {first.points} over {first.over} ({first.wins} of {n} seeds)"
    if first.difference.mean <= 0:
        return f"{gain}: there is no gain to explain."
    if not others:
        return f"{gain}; no control was run, so nothing says whose it is."
    return f"{gain}; of that, {remains(others)}."


def remains(others: Sequence[Share]) -> str:
    """What is left of a gain over each control, and whether that shows a share of the teacher."""
    left = [f"{s.points} remain over {s.over} ({s.wins} of {s.difference.n} seeds)" for s in others]
    unclear = [s.over for s in others if not s.clear]
    if not unclear:
        end = "the teacher's share is beyond two standard errors of chance over every control"
    else:
        end = f"less than two standard errors over {', '.join(unclear)}, so no share of the teacher is shown"
    return f"{', '.join(left)}: {end}"
