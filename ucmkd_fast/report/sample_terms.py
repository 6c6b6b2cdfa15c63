"""Theorem 2.7: what a finite sample adds to the bound of Theorem 2.6.

With probability at least 1 - 3 delta over samples of n_S and n_T,

    err_S <= err_T + FA + LA + tau (sqrt(log(2 / delta) / (2 n_S)) + sqrt(log(2 / delta) / (2 n_T))
                                    + C1 n_S^(-1 / s1) + C2 n_T^(-1 / s2))
             + C3 (2 sqrt(2 d log(n_S / d) / n_S) + sqrt(log(1 / delta) / (2 n_S))).

The constants of the theorem are not known for a given problem: whoever asks for the terms says them, and a
report shows what was said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..config import check_keys


@dataclass(frozen=True)
class Constants:
    """What Theorem 2.7 does not determine.

    Attributes:
        d: the VC dimension of the students, > 0 and below n_S.
        s1: above the upper Wasserstein dimension of the student's features.
        s2: above that of the teacher's.
        c1: the factor of n_S^(-1 / s1).
        c2: the factor of n_T^(-1 / s2).
        c3: an upper bound of LA's integrand, nats; None: the largest on the samples at hand.
        delta: the theorem holds with probability 1 - 3 delta; in (0, 1/3).

    Raises:
        ValueError: a constant out of range.
    """

    d: float
    s1: float
    s2: float
    c1: float
    c2: float
    c3: float | None = None
    delta: float = 0.05

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name} must be a finite number > 0, got {value}")
        if self.delta >= 1 / 3:
            raise ValueError(f"delta must be below 1/3, got {self.delta}")

    @classmethod
    def read(cls, text: str) -> Constants:
        """From ``d=20,s1=4,s2=4,c1=1,c2=1``.

        Raises:
            ValueError: something else, an unknown constant, or one that is missing.
        """
        values: dict[str, float] = {}
        for one in text.split(","):
            name, _, value = one.partition("=")
            try:
                values[name.strip()] = float(value)
            except ValueError:
                raise ValueError(f"expected constants as name=number, got {one.strip()!r}") from None
        check_keys(values, (f.name for f in fields(cls)), "constant of Theorem 2.7")
        missing = [name for name in ("d", "s1", "s2", "c1", "c2") if name not in values]
        if missing:
            raise ValueError(
                f"Theorem 2.7 needs {', '.join(missing)} as well: the theorem does not determine them"
            )
        return cls(**values)


@dataclass(frozen=True)
class SampleTerms:
    """The added terms, nats."""

    feature_concentration: float  # tau times both square roots of log(2 / delta)
    feature_dimension: float  # tau (C1 n_S^(-1/s1) + C2 n_T^(-1/s2))
    label_complexity: float  # C3 2 sqrt(2 d log(n_S / d) / n_S)
    label_concentration: float  # C3 sqrt(log(1 / delta) / (2 n_S))

    @property
    def total(self) -> float:
        """What is added to the bound of Theorem 2.6."""
        return sum(vars(self).values())


def sample_terms(
    constants: Constants, tau: float, student_samples: int, teacher_samples: int, largest_la: float
) -> SampleTerms:
    """The terms of Theorem 2.7.

    Args:
        constants: what the theorem leaves open.
        tau: the Lipschitz constant, nats per unit of feature distance.
        student_samples: n_S.
        teacher_samples: n_T.
        largest_la: the largest of LA's integrand on samples, for C3 where it is not said; nats.

    Raises:
        ValueError: d is not below n_S, where the term does not apply.
    """
    d, n, m = constants.d, student_samples, teacher_samples
    if d >= n:
        raise ValueError(f"d must be below the number of student samples, {n}, got {d:g}")
    c3 = max(largest_la, 0.0) if constants.c3 is None else constants.c3
    log = math.log(2 / constants.delta)
    return SampleTerms(
        tau * (math.sqrt(log / (2 * n)) + math.sqrt(log / (2 * m))),
        tau * (constants.c1 * n ** (-1 / constants.s1) + constants.c2 * m ** (-1 / constants.s2)),
        c3 * 2 * math.sqrt(2 * d * math.log(n / d) / n),
        c3 * math.sqrt(math.log(1 / constants.delta) / (2 * n)),
    )
