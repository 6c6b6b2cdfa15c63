"""Costs made panel by panel on a GPU: by a matrix product of torch and its epilogue, in one buffer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .._classes import Classes
from .._problem import Options, Problem
from .._products import product
from ..cost import SUMMED
from ..sharded import Spread
from . import _device as device
from . import costs


class Panels:
    """The costs of x (N, D) against y (M, D), some rows at a time, in one buffer; or kept, each in its own."""

    def __init__(self, p: Problem, options: Options, spread: Spread):
        x, y = p.features
        self.features, self.dtype = costs.features(x, y, options.known_metric, options.dtype), options.dtype
        self.n, self.m, self.metric, self._spread = len(x), len(y), options.known_metric, spread
        self.rows = max(min(spread.rows, self.n), 1)
        self.classes = None if p.classes is None else Classes(*p.classes)
        self._scales = device.empty(x, self.n, dtype=self.dtype), device.empty(y, self.m, dtype=self.dtype)
        self._kept: dict[int, Tensor] | None = {} if spread.keep else None
        self._buffer: Tensor | None = None
        #: The call on all rows, of which no cost is stored.
        self.whole = self.call(slice(0, self.n), self._scales[0])
        device.kernels.cuda_scales(self.whole)

    def new(self) -> Tensor:
        """Memory for a panel."""
        return device.empty(self.features.x, self.rows, self.m, dtype=self.dtype)

    def call(self, rows: slice, matrix: Tensor, distance: Tensor | None = None) -> Any:
        """The native call on the features of these rows."""
        scales = self._scales[0][rows].data_ptr(), self._scales[1].data_ptr()
        classes = None if self.classes is None else self.classes.rows(rows)._replace(distance=distance)
        return costs.call(self.features.rows(rows), scales, matrix, classes)

    def _make(self, rows: slice, matrix: Tensor, distance: Tensor | None) -> None:
        if self.metric not in SUMMED:
            product(self.features.x[rows], self.features.y, matrix)
        device.kernels.cuda_cost(self.call(rows, matrix, distance))

    def of(self, rows: slice, distance: Tensor | None = None, spare: Tensor | None = None) -> Tensor:
        """The costs (R, M) of a panel; and these without the term by class where there is memory for them.

        ``spare`` is memory for a panel: of costs that are kept, the distances are made once more.
        """
        matrix = None if self._kept is None else self._kept.get(rows.start)
        if matrix is None:
            if self._buffer is None or self._kept is not None:
                self._buffer = self.new()
            matrix = self._buffer[: rows.stop - rows.start]
            self._make(rows, matrix, distance)
            if self._kept is not None:
                self._kept[rows.start] = matrix
        elif distance is not None and spare is not None:
            self._make(rows, spare, distance)
        return matrix

    def each(self) -> Iterator[tuple[slice, Tensor]]:
        """Every panel: its rows and their costs."""
        for rows in self._spread.panels(self.n):
            yield rows, self.of(rows)


def cost_panels(p: Problem, options: Options, spread: Spread) -> Iterator[Tensor]:
    """The costs (R, M) of a panel at a time."""
    yield from (matrix for _, matrix in Panels(p, options, spread._replace(keep=False)).each())
