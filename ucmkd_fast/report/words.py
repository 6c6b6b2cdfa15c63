"""What paired differences say, in sentences; each follows a rule, none is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .comparison import Compared
from .statistics import PairedDifference


def mean_and_deviation(method: Compared) -> str:
    """A method's accuracy over seeds, in per cent."""
    spread = method.spread
    deviation = "" if math.isnan(spread.deviation) else f" ± {100 * spread.deviation:.1f}"
    return f"{100 * spread.mean:.1f}{deviation}"


def plus_minus(difference: PairedDifference) -> str:
    """A difference of accuracies and its standard error, in points."""
    error = difference.standard_error
    if not math.isfinite(difference.mean):
        return "unknown"
    return f"{100 * difference.mean:+.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}")


def points(difference: PairedDifference) -> str:
    """A difference of accuracies, in points."""
    return f"{plus_minus(difference)} points"


def why_open(difference: PairedDifference) -> str:
    """For a difference of which nothing can be said: for want of what."""
    n, verdict = difference.n, difference.verdict
    if verdict == "unknown":
        return "it was not measured at every seed"
    if verdict == "too few samples":
        return f"there are too few test samples to tell (one is {100 * (difference.step or 0):.1f} points)"
    if n == 1:
        return "one seed cannot tell"
    if math.isnan(difference.margin):
        return f"{n} seeds are too few to tell (of two equal differences the spread is not known)"
    if difference.margin >= 1:
        return f"{n} seeds are too few to tell (chance alone makes any difference)"
    return f"{n} seeds are too few to tell (chance alone makes up to {100 * difference.margin:.1f} points)"


def what_would_be_seen(difference: PairedDifference) -> str:
    """For a difference that is not seen: how large one would have been."""
    if difference.mean == 0 == difference.standard_error:
        return f"the same at each of {difference.n} seeds"
    return f"{difference.n} seeds show one above {100 * difference.margin:.1f}"


def against_baseline(method: Compared, baseline: str) -> str:
    """Whether the method differs from the baseline of its comparison."""
    difference = method.difference
    assert difference is not None
    name, said = method.label, points(difference)
    if difference.seen:
        return f"{name}: {'better' if difference.verdict == 'higher' else 'worse'} than {baseline} ({said})."
    if difference.verdict == "none":
        return f"{name}: no difference to {baseline} seen ({said}; {what_would_be_seen(difference)})."
    return f"{name}: whether it differs from {baseline} is open ({said}): {why_open(difference)}."


def against_control(method: Compared, control: Compared, teacher: str = "permuted") -> str:
    """Whether the real teacher does better than a control's, at the same seeds."""
    difference = method.over(control)
    known = "what the teacher knows" + (" about the classes" if teacher == "permuted" else "")
    likeness = " with permuted classes" if teacher == "permuted" else ""
    match difference.verdict:
        case "higher":
            words = f"the real teacher is better: {known.replace('the teacher', 'it')} reached the student"
        case "lower":
            words = f"the {teacher} teacher is even better, so the gain, if any, is not from what the teacher knows"
        case "none":
            words = (
                f"no difference seen ({what_would_be_seen(difference)}); as far as these seeds can tell, the "
                f"control{likeness} does as well, and nothing shows that {known} reached the student"
            )
        case _:
            words = f"open, {why_open(difference)}"
    return f"{method.label}, real against {teacher} teacher ({points(difference)}): {words}."


def how_alike_classes_lie(method: Compared) -> str:
    """For a method without a teacher and for the teacher: whether there is structure to pass on."""
    seen, seeds = sum(p <= 0.05 for p in method.figures["class_agreement_p"]), len(method.accuracy)
    what = "structure that a teacher can" if 2 * seen > seeds else "little structure that a teacher could"
    return (
        f"Classes lie to each other in {method.key}'s features as in the teacher's with a rank correlation of "
        f"{method.mean('class_agreement'):.2f}, above 95 % of random renamings of the classes at {seen} of {seeds} "
        f"seeds: {what} pass on."
    )


def resolution(samples: Iterable[int]) -> str:
    """The resolution of accuracies: how many test samples there are, and what one of them is."""
    counts = sorted(set(samples))
    if not counts:
        return "of unknown size"
    if len(counts) == 1:
        return f"{counts[0]:,} samples: {100 / counts[0]:.2g} points each"
    low, high = counts[0], counts[-1]
    return f"{low:,} to {high:,} samples: {100 / low:.2g} to {100 / high:.2g} points each"
