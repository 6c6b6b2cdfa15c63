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


def how_alike_classes_lie(method: Compared) -> str:
    """For a method without a teacher and for the teacher: whether there is structure to pass on."""
    seen, seeds = sum(p <= 0.05 for p in method.figures["class_agreement_p"]), len(method.accuracy)
    what = "structure that a teacher can" if 2 * seen > seeds else "little structure that a teacher could"
    return (
        f"Classes lie to each other in {method.key}'s features as in the teacher's with a rank correlation of "
        f"{method.mean('class_agreement'):.2f}, beyond chance (p <= 0.05) at {seen} of {seeds} seeds: {what} pass on."
    )
