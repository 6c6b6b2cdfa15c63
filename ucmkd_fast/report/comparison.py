"""Methods over the same seeds, each against a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .statistics import PairedDifference, Spread, paired_difference, spread
from .theory import BoundParts


@dataclass(frozen=True)
class Compared:
    """One method. Entry i of every sequence is of the same seed, for every method of a comparison."""

    key: str
    label: str
    accuracy: Sequence[float]  # 0 to 1
    figures: Mapping[str, Sequence[float]] = field(default_factory=dict)  # whatever else was measured
    bounds: Sequence[BoundParts] = ()
    control: bool = False  # there to be compared with, not to be used
    difference: PairedDifference | None = None  # of accuracy, to the baseline; None for the baseline itself
    test_samples: Sequence[int] = ()  # that the accuracies are shares of, where known

    @property
    def spread(self) -> Spread:
        """Of the accuracy."""
        return spread(self.accuracy)

    def over(self, other: Compared) -> PairedDifference:
        """Its accuracy minus another's."""
        samples = min((*self.test_samples, *other.test_samples), default=None)
        return paired_difference(self.accuracy, other.accuracy, samples=samples)

    def mean(self, figure: str) -> float:
        """A figure's mean over seeds."""
        return spread(self.figures[figure]).mean


def compare(methods: Sequence[Compared], baseline: str) -> list[Compared]:
    """The methods with their paired differences to the one of key ``baseline``.

    Raises:
        ValueError: no such method, or different numbers of seeds.
    """
    reference = next((method for method in methods if method.key == baseline), None)
    if reference is None:
        raise ValueError(f"expected a method {baseline!r} to compare with, got {[m.key for m in methods]}")
    return [
        Compared(**{**vars(method), "difference": method.over(reference)})
        if method is not reference
        else method
        for method in methods
    ]


def mean_bound(bounds: Sequence[BoundParts]) -> BoundParts:
    """The parts' means over seeds; ``tau`` is chosen so that FA = tau W_1 is the mean of the products."""
    means = {name: spread([vars(b)[name] for b in bounds]).mean for name in vars(bounds[0])}
    alignment = spread([b.feature_alignment for b in bounds]).mean
    means["tau"] = alignment / means["wasserstein"] if means["wasserstein"] else 0.0
    return BoundParts(**means)
