"""When POT's solvers look at their error, and how far a search for the first look that stops may go ahead."""

from __future__ import annotations

import math


def look_after(n_iter: int, period: int) -> int:
    """The first look after this iteration; looks are after iterations 1, 1 + period, ..."""
    return 1 + math.ceil(n_iter / period) * period


def iterations_ahead(before: float, now: float, steps: int, goal: float) -> int:
    """How far to go on from an error that fell from ``before`` to ``now`` in ``steps``, when it has to meet the goal.

    Half of the iterations that it takes at this rate; as far as the last time where it does not fall, as at the
    rounding of the numbers. Whoever goes so far must go back where the goal was passed on the way.
    """
    if before == math.inf or not 0 < goal < now:
        return 0
    if now >= before:
        return steps
    return int(steps * math.log(now / goal) / math.log(before / now) / 2)
