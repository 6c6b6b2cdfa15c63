"""Other values for what `_device` holds, for as long as a case lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ucmkd_fast.ops._cuda import _device

CLUSTERS_SINCE = (9, 0)  # compute capability


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """These attributes of a module, and afterwards what was there."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def overridden(**values: Any) -> Any:
    """As `replaced`, of `_device`."""
    return replaced(_device, **values)


def under(run: Callable[[], dict[str, Any]], **values: Any) -> dict[str, Any]:
    """What a case gives with these values in `_device`; ``clusters`` only where the card has them."""
    if values.get("clusters") and (why := no_clusters()):
        return {"left_out": why}
    with overridden(**values):
        return run()


def no_clusters() -> str:
    """Why nothing can run in clusters here; empty where it can."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() >= CLUSTERS_SINCE:
        return ""
    return "clusters need compute capability 9.0"


def no_early_end() -> Any:
    """The sweep back ends where nothing is left to add; to time an iteration, it must not."""
    return overridden(adjoint_tolerance=lambda dtype, tol: 0.0)
