"""What does_it_help.py runs, as data: contenders by setting on ten seeds, and what is tried on validation data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from transfer_tasks import SETTINGS


@dataclass(frozen=True)
class Contender:
    """A method, or a control of one."""

    method: str
    control: str | None = None  # "deranged" | "untrained"; of numbers "digits deranged" | "names"
    options: dict[str, Any] = field(default_factory=dict)
    teacher_head: str | None = None  # "prototypes": cosines to class means
    unlabelled_batch: int | None = None  # None: as many as labelled samples are asked for
    student: str = ""  # a change of `transfer_tasks.changed_student`


PLUS = Contender("ucmkd-plus")
SELF = "self-training (no teacher)"
HARD = "self-training, alpha 0 (no teacher)"
FROZEN = "teacher's head, frozen"
SEEDS = range(10)
VALIDATION = range(200, 203)


def plus(**options: Any) -> Contender:
    """ucmkd-plus with other options."""
    return Contender("ucmkd-plus", options=options)


CONTENDERS = {
    "ce": Contender("ce"),
    "kd": Contender("kd"),
    "prototype-kd": Contender("prototype-kd"),
    "feature": Contender("feature"),
    "label-aware-fa": Contender("label-aware-fa"),
    "ucmkd": Contender("ucmkd"),
    "ucmkd-plus": Contender("ucmkd-plus"),
    "ucmkd-plus, unlabelled alpha 0": Contender("ucmkd-plus", options={"unlabelled_alpha": 0.0}),
    "smoothing (no teacher)": Contender("ce", options={"label_smoothing": 0.3}),
    SELF: Contender("self-training"),
    HARD: Contender("self-training", options={"alpha": 0.0}),
    "kd, deranged": Contender("kd", "deranged"),
    "kd, digits deranged": Contender("kd", "digits deranged"),
    "kd from names (no teacher)": Contender("kd", "names"),
    "label-aware-fa, deranged": Contender("label-aware-fa", "deranged"),
    "ucmkd-plus, deranged": Contender("ucmkd-plus", "deranged"),
    "ucmkd-plus, untrained": Contender("ucmkd-plus", "untrained"),
    "ce, the teacher's head": Contender("ce", student=FROZEN),
    "kd, the teacher's head": Contender("kd", student=FROZEN),
    "self-training, the teacher's head": Contender("self-training", student=FROZEN),
    "ucmkd-plus, the teacher's head": Contender("ucmkd-plus", student=FROZEN),
    "ce, the teacher's head, deranged": Contender("ce", "deranged", student=FROZEN),
    "kd, the teacher's head, deranged": Contender("kd", "deranged", student=FROZEN),
    "self-training, the teacher's head, deranged": Contender("self-training", "deranged", student=FROZEN),
    "ucmkd-plus, the teacher's head, deranged": Contender("ucmkd-plus", "deranged", student=FROZEN),
}
HEADS = [name for name in CONTENDERS if "the teacher's head" in name]
FEW = [
    "ce",
    "kd",
    "ucmkd",
    "ucmkd-plus",
    "ucmkd-plus, unlabelled alpha 0",
    SELF,
    HARD,
    "ucmkd-plus, deranged",
    *(name for name in HEADS if name.startswith(("self-training", "ucmkd-plus"))),
]
PEN = [name for name in FEW if name != "ucmkd"]
OF_NUMBERS = ["kd, digits deranged", "kd from names (no teacher)", "label-aware-fa, deranged"]
DIGITS = [name for name in CONTENDERS if name not in OF_NUMBERS]
NUMBERS = [
    "ce", "kd", "label-aware-fa", "ucmkd", "ucmkd-plus", "smoothing (no teacher)", SELF, HARD, "kd, deranged",
    *OF_NUMBERS, "ucmkd-plus, deranged", *HEADS,
]  # fmt: skip
PLAN = {
    "n_2": NUMBERS, "n_5": NUMBERS, "s_2": NUMBERS, "s_5": NUMBERS,
    "a_2": FEW, "a_5": DIGITS, "i_5": FEW, "q_1": PEN, "q_2": PEN, "q_5": PEN, "p_2": PEN,
}  # fmt: skip

# What was chosen last, once more on seeds that nothing had been run on.
UNSEEN = range(10, 20)
CONFIRMED = {
    setting: ["ce", "kd", SELF, *(name for name in HEADS if name.startswith(("self-training", "ucmkd-plus")))]
    for setting in ("a_2", "a_5", "n_2", "s_2")
}

# What is tried, and where. Every one runs with its deranged twin, beside ce and self-training.
TRIALS: dict[str, tuple[Contender, tuple[str, ...]]] = {
    "ucmkd-plus": (
        PLUS,
        (
            "a_2", "a_5", "a_20", "b", "b_4", "c", "i_2", "i_5", "i_30",
            "p_1", "p_2", "p_5", "q_1", "q_2", "q_5", "r_2", "t_5", "n_1", "n_2", "n_5", "s_2", "s_5",
        ),
    ),
    "kd": (Contender("kd"), ("n_1", "n_2", "n_5", "s_2", "s_5")),
    "label-aware-fa": (Contender("label-aware-fa"), ("n_2", "s_2")),
    "ce, the teacher's head": (CONTENDERS["ce, the teacher's head"], ("n_2", "n_5", "s_2", "a_5", "i_5")),
    "kd, the teacher's head": (CONTENDERS["kd, the teacher's head"], ("n_2", "n_5", "s_2", "a_5", "i_5")),
    "self-training, the teacher's head": (
        CONTENDERS["self-training, the teacher's head"], ("n_2", "n_5", "s_2", "a_5", "i_5"),
    ),
    "kd, starts with the teacher's head": (
        Contender("kd", student="teacher's head"), ("n_2", "n_5", "s_2", "a_5", "i_5"),
    ),
    "ucmkd-plus, unlabelled alpha 0": (
        plus(unlabelled_alpha=0.0),
        ("a_2", "a_5", "i_1", "i_2", "i_30", "p_1", "p_2", "p_5", "q_1", "q_2", "q_5", "r_2"),
    ),
    "outputs on unlabelled without similarity of classes": (Contender("without-similarity"), ("q_2", "a_2")),
    "unlabelled alpha 0.9": (plus(unlabelled_alpha=0.9), ("q_2", "p_2", "i_2")),
    "features weigh 0.3": (Contender("lighter-features"), ("q_2", "p_2", "i_2")),
    "features weigh 0.3, unlabelled alpha 0": (
        Contender("lighter-features", options={"unlabelled_alpha": 0.0}), ("q_2", "p_2", "i_2"),
    ),
    "outputs alone (no FA, no pull, features weigh 0.3)": (
        Contender("lighter-features", options={"fa_weight": 0.0, "move_weight": 0.0}), ("q_2", "a_2", "a_5"),
    ),
    "targets of class similarity (prototype head)": (replace(PLUS, teacher_head="prototypes"), ("q_2",)),
    "predictions translated by class similarity": (Contender("translated"), ("q_2",)),
    "adaptive class marginals": (Contender("adaptive-marginals"), ("q_2",)),
    "chordal cost": (plus(metric="chordal"), ("q_2",)),
    "chordal cost, unit features with a learned scale": (
        replace(plus(metric="chordal"), student="unit features"), ("q_2",),
    ),
    "bank of 100": (plus(bank_size=100), ("q_2",)),
    "bank of 1200": (plus(bank_size=1200), ("q_2",)),
    "unlabelled batch of 32": (replace(PLUS, unlabelled_batch=32), ("q_2", "a_5")),
    "starts with the teacher's head": (replace(PLUS, student="teacher's head"), ("q_2",)),
    "the teacher's head, frozen": (replace(PLUS, student="teacher's head, frozen"), ("q_2",)),
    "alpha 0.9 on both": (plus(alpha=0.9, unlabelled_alpha=0.9), ("q_2", "a_5", "n_2", "s_2")),
    "alpha 1 on both": (plus(alpha=1.0, unlabelled_alpha=1.0), ("q_2", "a_5")),
    "alpha 0.9 on both, temperature 2": (plus(alpha=0.9, unlabelled_alpha=0.9, temperature=2.0), ("a_5",)),
    "temperature 8": (plus(temperature=8.0), ("q_2",)),
    "move weight 3": (plus(move_weight=3.0), ("q_2",)),
    "no class-conditional FA": (plus(fa_weight=0.0), ("q_2",)),
    "no KD of labelled samples": (plus(alpha=0.0), ("q_2",)),
    "ucmkd, order 1": (Contender("ucmkd"), ("q_2",)),
    "ucmkd, order 2": (Contender("ucmkd", options={"order": 2}), ("q_2",)),
}  # fmt: skip


# Marginals held by rho KL, where the two sides do not match, and beside it less of FA with exact ones. All are chosen
# on validation data, in `TUNED_ON`. In units of cost: the mean cosine cost is about 1, the mean l2 cost of ucmkd about
# 12 on `i_5` and 40 on `n_5`.
TUNED: dict[tuple[str, str], tuple[float, ...]] = {
    ("feature", "unbalanced"): (0.1, 0.5, 2.0),
    ("feature", "fa_weight"): (0.1, 0.3),
    ("ucmkd", "unbalanced"): (1.0, 5.0, 20.0, 80.0),
    ("label-aware-fa", "unbalanced"): (0.1, 0.5, 2.0),
    ("label-aware-fa", "fa_weight"): (0.1, 0.3),
    ("ucmkd-plus", "unbalanced"): (0.1, 0.5, 2.0),
    ("ucmkd-plus", "fa_weight"): (0.1, 0.3),
    ("ucmkd-plus", "unlabelled_unbalanced"): (0.1, 0.5, 2.0),
    (SELF, "unbalanced"): (0.1, 0.5, 2.0),
}
TUNED_ON = ("i_5_imbalance", "i_5_all", "n_5_imbalance", "n_5_all")


def tuned(name: str, option: str, value: float) -> str:
    """What a contender is called that has another value of an option."""
    return f"{name}, {option} {value:g}"


VARIANTS = {
    tuned(name, option, value): replace(CONTENDERS[name], options={option: value})
    for (name, option), values in TUNED.items()
    for value in values
}
# The best on validation data, then on seeds that nothing had been run on, without a mismatch and with each.
CHOSEN = {
    ("feature", "unbalanced"): 0.1,
    ("feature", "fa_weight"): 0.1,
    ("ucmkd", "unbalanced"): 5.0,
    ("label-aware-fa", "unbalanced"): 0.1,
    ("label-aware-fa", "fa_weight"): 0.1,
    ("ucmkd-plus", "unbalanced"): 0.1,
    ("ucmkd-plus", "fa_weight"): 0.1,
    ("ucmkd-plus", "unlabelled_unbalanced"): 2.0,
    (SELF, "unbalanced"): 2.0,
}
CHOSEN_NAMES = [tuned(name, option, value) for (name, option), value in CHOSEN.items()]
WITH_A_TWIN = ["label-aware-fa, unbalanced 0.1", "ucmkd-plus, unlabelled_unbalanced 2"]
VARIANTS |= {f"{name}, deranged": replace(VARIANTS[name], control="deranged") for name in WITH_A_TWIN}
FRESH = range(20, 30)
_COMPARED = ["ce", *dict.fromkeys(name for name, _ in CHOSEN), *CHOSEN_NAMES]
_COMPARED += [f"{name}, deranged" for name in WITH_A_TWIN]
MISMATCHES = ("", "_imbalance", "_pool", "_noise", "_all")
MISMATCHED = {f"i_5{part}": _COMPARED for part in MISMATCHES}
# ucmkd is as slow as four others, and as ce: on digits only.
MISMATCHED |= {
    f"n_5{part}": [n for n in _COMPARED if not n.startswith("ucmkd,") and n != "ucmkd"] for part in MISMATCHES
}


def trial_contenders() -> dict[str, Contender]:
    """All by name, each with its deranged twin."""
    out = {}
    for name, (contender, _) in TRIALS.items():
        out[name] = contender
        out[f"{name}, deranged"] = replace(contender, control="deranged")
    return out


ALL = {**CONTENDERS, **trial_contenders(), **VARIANTS}


def wanted_runs() -> list[tuple[str, str, int]]:
    """Setting, name and seed of every run."""
    planned = [
        (setting, name, seed)
        for plan, seeds in ((PLAN, SEEDS), (CONFIRMED, UNSEEN))
        for seed in seeds
        for setting, names in plan.items()
        for name in names
    ]
    return planned + _wanted_trials() + _wanted_mismatched()


def _wanted_mismatched() -> list[tuple[str, str, int]]:
    """Setting, name and seed of the runs that rho is chosen by, and of those that show what it is worth."""
    tried = dict.fromkeys(name for name, _ in TUNED)
    tried |= dict.fromkeys(tuned(*key, value) for key, values in TUNED.items() for value in values)
    validation = [(setting, name, seed) for seed in VALIDATION for setting in TUNED_ON for name in tried]
    return validation + [
        (setting, name, seed) for seed in FRESH for setting, names in MISMATCHED.items() for name in names
    ]


def _wanted_trials() -> list[tuple[str, str, int]]:
    """Setting, name and seed of every run on validation seeds; students of speech, which are slow, come last."""
    runs: dict[tuple[str, str, int], None] = {}
    for name, (_, settings) in TRIALS.items():
        for setting in settings:
            for seed in VALIDATION:
                for one in ("ce", SELF, name, f"{name}, deranged"):
                    runs[setting, one, seed] = None
    return sorted(runs, key=lambda run: SETTINGS[run[0]].own == "speech")
