"""When POT's solvers look at their error, and how far a search for the first look that stops may go ahead."""

from __future__ import annotations

import math


def look_after(n_iter: int, period: int) -> int:
    """The first look after this iteration; looks are after iterations 1, 1 + period, ..."""
    return 1 + math.ceil(n_iter / period) * period


def iterations_ahead(before: float, now: float, steps: int, goal: float) -> int:
    """Half of the iterations after which an error that fell from ``before`` to ``now`` in ``steps`` meets the goal.

    0 where it does not fall. Whoever goes so far must go back where the goal was passed on the way.
    """
    if not 0 < goal < now < before < math.inf:
        return 0
    return int(steps * math.log(now / goal) / math.log(before / now) / 2)
