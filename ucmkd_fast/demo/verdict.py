"""What the run's own numbers say, in sentences; each follows a rule, none is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..report import Compared
from ..report.statistics import paired_difference
from ..report.words import against_baseline, against_control, how_alike_classes_lie
from .settings import BASELINE

_LITTLE_ROOM = 0.9  # accuracy of the baseline above which no method has much to add

#: Not of this run: what it may be held against.
EXPECTATION = (
    "For comparison, on recordings of the Free Spoken Digit Dataset with 5 labels per digit: this code over 20 seeds "
    "found both ucmkd presets and kd level with ce (+0.0, +0.2 and +0.4 points), feature and joint below it (-4.4 and "
    "-7.4). An earlier study with other code and weaker students, 15 and 16 seeds, found ucmkd level with ce and kd "
    "3.9 to 4.5 points above it."
)


def sentences(methods: Sequence[Compared], classes: int) -> list[str]:
    """The conclusions that the numbers allow, most important first."""
    by_key = {method.key: method for method in methods}
    said = [
        against_baseline(by_key[key], BASELINE)
        for key in ("ucmkd", "ucmkd_published", "kd", "feature", "joint")
    ]
    if by_key["ce"].spread.mean > _LITTLE_ROOM:
        said.append(
            f"ce alone reaches {100 * by_key['ce'].spread.mean:.0f} %: there is little left for any teacher to add; "
            "--labels-per-class 1 makes it harder."
        )
    said.append(against_control(by_key["ucmkd"], by_key["ucmkd_permuted"]))
    said.append(against_control(by_key["kd"], by_key["kd_permuted"]))
    said.append(_alignment(by_key["feature"], by_key["ce"], classes))
    said.append(how_alike_classes_lie(by_key["ce"]))
    said.append(_theorem(methods, classes))
    return said


def _alignment(method: Compared, baseline: Compared, classes: int) -> str:
    """Whether aligned clouds also put the right classes together."""
    change = paired_difference(method.figures["fa"], baseline.figures["fa"])
    reads, chance = method.mean("teacher_reads"), 1 / classes
    moved = f"{method.label} takes FA from {baseline.mean('fa'):.2f} (ce) to {method.mean('fa'):.2f}"
    level = f"the teacher's head reads its features at {100 * reads:.0f} % (chance {100 * chance:.0f} %)"
    if change.verdict == "higher":
        return f"{moved}, further apart; {level}."
    if change.verdict != "lower":
        return f"{moved}, which chance could do as well; {level}."
    if reads < 2 * chance:
        return f"{moved}, and {level}: the clouds meet, the classes do not."
    return f"{moved}, and {level}: clouds and classes meet."


def _theorem(methods: Sequence[Compared], classes: int) -> str:
    bounds = [bound for method in methods for bound in method.bounds]
    held = sum(bound.slack >= 0 for bound in bounds)
    low, high = min(b.slack for b in bounds), max(b.slack for b in bounds)
    text = f"Theorem 2.6 held in {held} of {len(bounds)} runs, with {low:.1f} to {high:.1f} nats to spare"
    guess = math.log(classes)
    if min(bound.bound for bound in bounds) > guess:
        text += (
            f"; every bound is above {guess:.1f} nats, the error of guessing: true, but it promises nothing"
        )
    return text + "."
