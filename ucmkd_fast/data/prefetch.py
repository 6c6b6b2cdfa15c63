"""The next batch is read while this one is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_ahead(make: Callable[[int], T], steps: int) -> Iterator[T]:
    """``make(0)`` to ``make(steps - 1)`` in order, each made in a thread while the one before is in use.

    An error of ``make`` is raised where its batch would have come.
    """
    if not steps:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="ucmkd-batch") as thread:
        coming = thread.submit(make, 0)
        for step in range(steps):
            batch = coming.result()
            if step + 1 < steps:
                coming = thread.submit(make, step + 1)
            yield batch
