"""Tables of docs/does-it-help.md: marginals held by rho KL where the two sides do not match, beside exact ones."""

from __future__ import annotations

import numpy as np
from transfer_plan import CHOSEN, FRESH, MISMATCHED, MISMATCHES, SELF, TUNED, TUNED_ON, VALIDATION, tuned
from transfer_tasks import SETTINGS

from ucmkd_fast.report.shares import Share, share, shares, verdict_line

Accuracy = dict[tuple[str, str, int], float]  # by setting, name and seed
BASES = ("i_5", "n_5")
HEADINGS = ("none", "class shares", "disjoint pools", "noise", "all three")


def choice_table(accuracy: Accuracy) -> str:
    """What every value of an option was worth on validation data, over all of `TUNED_ON` together."""
    lines = ["| | option | to the default, by its value |", "|---|---|---|"]
    for (name, option), values in TUNED.items():
        worth = []
        for value in values:
            words = (
                f"{value:g}: {_gain(accuracy, tuned(name, option, value), name, TUNED_ON, VALIDATION).points}"
            )
            worth.append(f"**{words}**" if value == CHOSEN[name, option] else words)
        lines.append(f"| {name} | `{option}` | {'; '.join(worth)} |")
    return "\n".join(lines) + "\n"


def mismatch_tables(accuracy: Accuracy) -> str:
    """Accuracies, gains over exact marginals, and whose they are, on fresh seeds."""
    presets = [f"* `{setting}`: {SETTINGS[setting].title}." for setting in MISMATCHED]
    parts = ["\n".join(presets)]
    for base in BASES:
        parts += [f"Accuracy, `{base}`:", _accuracies(accuracy, base)]
    parts += ["Gain over the same method with exact marginals, at its defaults:", _gains(accuracy)]
    parts += ["Gain of held marginals over exact ones with a tenth of FA's weight:", _beyond_less(accuracy)]
    lines, rest = _verdicts(accuracy)
    parts += [
        "Where held marginals are above exact ones, beyond the margin, and then above `ce` as well, what of that is "
        f"the teacher's (in {rest} more cases they are above exact ones, and not above `ce` beyond the margin):"
    ]
    parts += ["\n".join(f"* {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _accuracies(accuracy: Accuracy, base: str) -> str:
    lines = [_head("", *HEADINGS)]
    for name in MISMATCHED[base]:
        cells = []
        for part in MISMATCHES:
            values = [100 * accuracy[base + part, name, seed] for seed in FRESH]
            cells.append(f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gains(accuracy: Accuracy) -> str:
    """A row a method, option and base; in bold where the 95 % interval of Student's t leaves out 0."""
    lines = [_head("", "", *HEADINGS)]
    for (name, option), value in CHOSEN.items():
        for base in BASES:
            if name in MISMATCHED[base]:
                cells = [_cell(_of_setting(accuracy, name, option, base + part)) for part in MISMATCHES]
                lines.append(f"| {name}, `{option}` {value:g} | `{base}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _beyond_less(accuracy: Accuracy) -> str:
    """The same where the exact method has the ``fa_weight`` that was chosen: less of FA without rho."""
    lines = [_head("", "", *HEADINGS)]
    for name in dict.fromkeys(name for name, option in CHOSEN if option == "fa_weight"):
        own, less = (tuned(name, option, CHOSEN[name, option]) for option in ("unbalanced", "fa_weight"))
        for base in BASES:
            cells = [_cell(_gain(accuracy, own, less, (base + part,), FRESH)) for part in MISMATCHES]
            lines.append(f"| {own} | `{base}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdicts(accuracy: Accuracy) -> tuple[list[str], int]:
    """A sentence for every clear gain by a method with a teacher, and how many gains leave it no better than ce."""
    lines, rest = [], 0
    for (name, option), value in CHOSEN.items():
        for setting, names in MISMATCHED.items():
            freed = option.endswith("unbalanced") and name in names and name != SELF
            if freed and _of_setting(accuracy, name, option, setting).clear:
                own = tuned(name, option, value)
                known = [
                    "ce",
                    f"{own}, deranged",
                    SELF,
                    tuned(SELF, "unbalanced", CHOSEN[SELF, "unbalanced"]),
                ]
                values = {one: _values(accuracy, one, setting) for one in (own, *known) if one in names}
                against = shares(values.pop(own), values)
                if against[0].clear:
                    lines.append(f"`{setting}`: {verdict_line(own, against)}")
                else:
                    rest += 1
    return lines, rest


def _of_setting(accuracy: Accuracy, name: str, option: str, setting: str) -> Share:
    return _gain(accuracy, tuned(name, option, CHOSEN[name, option]), name, (setting,), FRESH)


def _gain(accuracy: Accuracy, name: str, over: str, settings: tuple[str, ...], seeds: range) -> Share:
    pairs = [(accuracy[s, name, k], accuracy[s, over, k]) for s in settings for k in seeds]
    return share([one for one, _ in pairs], [other for _, other in pairs], over)


def _values(accuracy: Accuracy, name: str, setting: str) -> list[float]:
    return [accuracy[setting, name, seed] for seed in FRESH]


def _cell(gain: Share) -> str:
    low, high = gain.interval
    return f"**{gain.points}**" if low > 0 or high < 0 else gain.points


def _head(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"
