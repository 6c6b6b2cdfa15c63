"""One property over many generated cases; the count goes into the test report."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st


def holds(
    claim: Callable[[Any], None],
    cases: st.SearchStrategy,
    count: int,
    record: Callable[[str, Any], None],
    *,
    anew: bool,
) -> None:
    """Try ``claim`` on ``count`` cases; where ``anew``, other ones in every run.

    A claim may end by ``assume(False)`` (not a case it speaks of): that one does not count, and hypothesis
    gives up where too many do. ``UCMKD_PROPERTY_CASES`` overrides ``count``.
    """
    count = int(os.environ.get("UCMKD_PROPERTY_CASES", count))
    tried = 0

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=not anew,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    @given(cases)
    def run(case: Any) -> None:
        nonlocal tried
        claim(case)
        tried += 1

    run()
    record("cases", tried)
    assert tried >= count // 2, f"only {tried} of {count} cases were ones that the property speaks of"


__all__ = ["assume", "holds"]
