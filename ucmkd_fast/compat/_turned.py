"""POT makes the scalings of the rows first, our op those of the columns: it then gets a problem transposed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..ops.not_converged import silent
from ..ops.sinkhorn import Unbalanced, sinkhorn


@contextmanager
def turned(cost: Tensor, a: Tensor, b: Tensor, reg: float, unbalanced: Unbalanced = None) -> Iterator[None]:
    """Around calls with this problem transposed: without warnings, and refusals name rows and columns as given here."""
    with silent():  # who called warns as POT does
        try:
            yield
        except ValueError:
            sinkhorn(cost, a, b, reg=reg, max_iter=1, unbalanced=unbalanced)
            raise
