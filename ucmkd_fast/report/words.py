"""What paired differences say, in sentences; each follows a rule, none is known beforehand."""

from __future__ import annotations

import math

from .comparison import Compared
from .statistics import PairedDifference, paired_difference


def points(difference: PairedDifference) -> str:
    """A difference of accuracies, in points."""
    if math.isnan(difference.standard_error):
        return f"{100 * difference.mean:+.1f} points"
    return f"{100 * difference.mean:+.1f} ± {100 * difference.standard_error:.1f} points"


def against_baseline(method: Compared, baseline: str) -> str:
    """Whether the method differs from the baseline of its comparison."""
    difference = method.difference
    assert difference is not None
    words = {
        "higher": f"better than {baseline}",
        "lower": f"worse than {baseline}",
        "none": f"no difference to {baseline} seen",
        "unknown": f"one seed cannot tell whether that differs from {baseline}",
    }
    return f"{method.label}: {words[difference.verdict]} ({points(difference)})."


def against_control(method: Compared, control: Compared, teacher: str = "permuted") -> str:
    """Whether the real teacher does better than a control's, at the same seeds."""
    difference = paired_difference(method.accuracy, control.accuracy)
    known = "what the teacher knows" + (" about the classes" if teacher == "permuted" else "")
    likeness = " with permuted classes" if teacher == "permuted" else ""
    words = {
        "higher": f"the real teacher is better: {known.replace('the teacher', 'it')} reached the student",
        "lower": f"the {teacher} teacher is even better, so the gain, if any, is not from what the teacher knows",
        "none": (
            f"no difference seen; as far as these seeds can tell, the control{likeness} does as well, "
            f"and nothing shows that {known} reached the student"
        ),
        "unknown": "one seed cannot tell",
    }
    return (
        f"{method.label}, real against {teacher} teacher ({points(difference)}): {words[difference.verdict]}."
    )
