"""How much of a method's gain is the teacher's: paired differences to its controls, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .statistics import PairedDifference, paired_difference
from .words import plus_minus, why_open


@dataclass(frozen=True)
class Share:
    """What remains of a method over one baseline or control.

    Attributes:
        over: the baseline's name.
        difference: paired over seeds.
        wins: seeds at which the method is above.
    """

    over: str
    difference: PairedDifference
    wins: int

    @property
    def points(self) -> str:
        """The difference and its standard error, in points."""
        return plus_minus(self.difference)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean, by Student's t over the seeds."""
        return self.difference.mean - self.difference.margin, self.difference.mean + self.difference.margin

    @property
    def clear(self) -> bool:
        """Whether the method is above, beyond the margin."""
        return self.difference.verdict == "higher"

    @property
    def open(self) -> bool:
        """Whether that cannot be told."""
        return not self.difference.seen and self.difference.verdict != "none"


def share(values: Sequence[float], baseline: Sequence[float], over: str, samples: int | None = None) -> Share:
    """Entry i of both is of the same seed; ``samples``: of the test set."""
    wins = int((np.subtract(values, baseline) > 0).sum())
    return Share(over, paired_difference(values, baseline, samples=samples), wins)


def shares(
    values: Sequence[float], baselines: Mapping[str, Sequence[float]], samples: int | None = None
) -> list[Share]:
    """The method against each, in their order; the first is what its gain is counted from."""
    return [share(values, baseline, over, samples) for over, baseline in baselines.items()]


def verdict_line(name: str, against: Sequence[Share]) -> str:
    """What of the gain over the first baseline remains over the others, in one sentence."""
    first, *others = against
    n, difference = first.difference.n, first.difference
    gain = f"{name}: {first.points} over {first.over} ({first.wins} of {n} seeds)"
    if difference.mean <= 0 or difference.verdict == "none":
        return f"{gain}: there is no gain to explain."
    if not difference.seen:
        return f"{gain}: whether that is a gain is open, {why_open(difference)}."
    if not others:
        return f"{gain}; no control was run, so nothing says whose it is."
    return f"{gain}; of that, {remains(others)}."


def remains(others: Sequence[Share]) -> str:
    """What is left of a gain over each control, and whether that shows a share of the teacher."""
    left = [f"{s.points} remain over {s.over} ({s.wins} of {s.difference.n} seeds)" for s in others]
    return f"{', '.join(left)}: {_whose(others)}"


def _whose(others: Sequence[Share]) -> str:
    if all(s.clear for s in others):
        return "the teacher's share is above its 95 % margin over every control"
    by_verdict: dict[str, list[Share]] = {}
    for s in others:
        by_verdict.setdefault(s.difference.verdict, []).append(s)
    said = []
    for verdict, words in (("lower", "below {}"), ("none", "no difference to {} seen")):
        if verdict in by_verdict:
            said.append(words.format(", ".join(s.over for s in by_verdict[verdict])))
    shown = "so no share of the teacher is shown" if said else "so whether any of it is the teacher's is open"
    said += [f"over {s.over} {why_open(s.difference)}" for s in others if s.open]
    return f"{'; '.join(said)}, {shown}"
