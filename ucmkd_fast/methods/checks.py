"""Checks of options that methods share; the ops' own checks are in ``ops/checks.py``."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch

from ..alignment import Transport
from ..ops.arguments import rho_pair
from ..ops.checks import choice, count_at_least_one, number_at_least_zero, positive_number
from ..ops.cost import METRICS


def fraction(name: str, value: Any) -> float:
    """A number in [0, 1]."""
    result = number_at_least_zero(name, value)
    if result > 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value}")
    return result


def count_at_least_zero(name: str, value: Any) -> int:
    """An integer >= 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer >= 0, got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be an integer >= 0, got {value}")
    return int(value)


def rank_correlation(name: str, value: Any) -> float:
    """A number in [-1, 1]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number in [-1, 1], got {value!r}")
    result = float(value)
    if not -1 <= result <= 1:
        raise ValueError(f"{name} must be a number in [-1, 1], got {value}")
    return result


def norm_limit(name: str, value: Any) -> float:
    """A number > 0, or inf for none."""
    return math.inf if value == math.inf else positive_number(name, value)


def held_by(name: str, value: Any) -> tuple[None, float | None]:
    """``unbalanced`` of a transport to classes: rows exact, columns by rho > 0; None and inf: exactly."""
    return None, None if value is None else norm_limit(name, value)


def kappa_mode(value: Any) -> str:
    """Whether kappa has a gradient."""
    choice("kappa", value, ("detached", "live"))
    return str(value)


def transport(metric: Any, reg: Any, max_iter: Any, unbalanced: Any = None) -> Transport:
    """How FA is computed."""
    choice("metric", metric, METRICS)
    reg, max_iter = positive_number("reg", reg), count_at_least_one("max_iter", max_iter)
    return Transport(metric, reg, max_iter, rho_pair(unbalanced, torch.finfo(torch.float32).tiny))
