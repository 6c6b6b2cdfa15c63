"""Ragged lists of problems on a GPU: padded to one batch where each fits a block, else one launch per problem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _autograd, _not_converged, _solve_cuda, class_aware, relative_reg

if TYPE_CHECKING:
    from .ragged import Offsets

# Padded elements for each true one, up to which a list is one batch: beyond, every problem is a launch.
_PADDING = 4


def launches(offsets: Offsets, dtype, device: torch.device) -> Iterator[tuple[Tensor, Rows, Rows]]:
    """Problems, by their numbers on the device, and their rows: all at once where each fits a block, else one by one.

    A problem without rows on one side is in none.
    """
    n, m = offsets.counts
    live = ((n > 0) & (m > 0)).nonzero()[:, 0]
    parts = [live]
    if len(live):
        most = int(n[live].max()), int(m[live].max())
        padded = len(live) * most[0] * most[1] <= _PADDING * int((n[live] * m[live]).sum())
        if not (padded and _solve_cuda.fits_block(*most, dtype, device)):
            parts = list(live.split(1))
    for chosen in parts if len(live) else []:
        rows, columns = Rows(offsets.x, chosen, device), Rows(offsets.y, chosen, device)
        yield chosen.to(device, non_blocking=True), rows, columns


def solve(
    x, y, a, b, init_fg, by_class, offsets: Offsets, metric, dtype, options, scale, quiet
) -> tuple[Any, ...]:
    """As `ragged.solve`."""
    n, m = offsets.counts
    batch = len(n)
    value, dual, error = (x.new_zeros(batch, dtype=dtype) for _ in range(3))
    n_iter = x.new_zeros(batch, dtype=torch.int64)
    f, g = (x.new_full((len(z),), -torch.inf, dtype=dtype) for z in (x, y))
    costs = [x.new_zeros(sizes, dtype=dtype) for sizes in zip(n.tolist(), m.tolist(), strict=True)]
    for at, rows, columns in launches(offsets, dtype, x.device):
        its_scale = None if scale is None else scale[at]
        how = metric, options, its_scale, quiet
        found, matrix = _one_launch(x, y, a, b, init_fg, by_class, rows, columns, *how)
        value, dual, error, n_iter = (
            whole.index_copy(0, at, part)
            for whole, part in zip((value, dual, error, n_iter), (*found[:2], *found[4:]), strict=True)
        )
        f, g = rows.put_back(f, found[2]), columns.put_back(g, found[3])
        for place, k in enumerate(rows.chosen):
            costs[k] = matrix[place, : int(n[k]), : int(m[k])]
    return value, dual, f, g, error, n_iter, costs


class Rows:
    """Rows of some problems (B', most), the shorter ones padded."""

    def __init__(self, starts: Tensor, chosen: Tensor, device: torch.device):
        self.chosen = chosen.tolist()
        counts = starts.diff()[chosen]
        place = torch.arange(int(counts.max()))
        inside = place < counts[:, None]
        at = torch.where(inside, starts[chosen][:, None] + place, 0)
        found = inside.flatten().nonzero()[:, 0]  # on the CPU: nothing waits for the device
        everything = inside, at, counts[:, None], found, at.flatten()[found]
        self.inside, self.at, self.counts, self._found, self._true = (
            t.to(device, non_blocking=True) for t in everything
        )

    def take(self, flat: Tensor) -> Tensor:
        """Rows of ``flat``, zeros where there are none; what comes back for those is dropped, NaN as well."""
        inside = self.inside if flat.dim() == 1 else self.inside[..., None]
        return torch.where(inside, flat[self.at], 0)

    def put_back(self, flat: Tensor, rows: Tensor) -> Tensor:
        """``flat`` with the true rows of (B', most) where they came from."""
        return flat.index_copy(0, self._true, rows.flatten()[self._found])


def _one_launch(x, y, a, b, init_fg, by_class, rows: Rows, columns: Rows, metric, options, scale, quiet):
    """(value, dual, f, g, marginal_error, n_iter) and the costs of some problems as a batch.

    Rows and columns beside a problem have no mass and take no part.
    """
    matrix = padded_cost(x, y, by_class, rows, columns, metric)
    masses = [
        each.inside.to(matrix.dtype) / each.counts if mass is None else each.take(mass)
        for mass, each in ((a, rows), (b, columns))
    ]
    init: list[Any] = [
        None if z is None else each.take(z) for z, each in zip(init_fg, (rows, columns), strict=True)
    ]
    scaled = matrix
    if scale is not None:
        init = [relative_reg.over(z, scale) for z in init]
        scaled = matrix / scale[:, None, None]
    if init[0] is None:  # as if each problem came alone
        init[0] = (-options.reg * rows.counts.to(matrix.dtype).log()).expand(rows.inside.shape)
        init[1] = masses[1].new_zeros(masses[1].shape)
    found = _autograd.Sinkhorn.apply(scaled, *(z.contiguous() for z in (*masses, *init)), options)
    if not quiet:
        _not_converged.look(found[4], found[0], masses[0], options, metric if by_class[0] is None else None)
    return found if scale is None else relative_reg.back(found, scale), matrix.detach()


def padded_cost(x, y, by_class, rows: Rows, columns: Rows, metric) -> Tensor:
    """The costs (B', most, most) of some problems."""
    matrix = _autograd.cost_transformed(rows.take(x), columns.take(y), metric)[0]
    if by_class[0] is None:
        return matrix
    return class_aware.cost_by_class(matrix, rows.take(by_class[0]), columns.take(by_class[1])).contiguous()
