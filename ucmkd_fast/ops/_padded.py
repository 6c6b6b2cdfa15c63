"""Lists of problems on a GPU: padded to one batch where each fits a block, else one launch per problem."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import _autograd, _reference, _registered, not_converged, relative_reg
from ._devices import door, dtype_of_sums
from ._problem import Offsets, Options, Problem, Solution
from .matrix import with_classes

# Padded elements for each true one, up to which a list is one batch: beyond, every problem is a launch.
_PADDING = 4


def _launches(p: Problem, offsets: Offsets, options: Options) -> Iterator[tuple[Tensor, Rows, Rows]]:
    """Problems, by their numbers on the device, and their rows: all at once where each fits a block, else one by one.

    A problem without rows on one side is in none.
    """
    (n, m), device = offsets.counts, p.features[0].device
    live = ((n > 0) & (m > 0)).nonzero()[:, 0]
    parts = [live]
    if len(live):
        most = int(n[live].max()), int(m[live].max())
        padded = len(live) * most[0] * most[1] <= _PADDING * int((n[live] * m[live]).sum())
        if not (padded and door(p.features[0]).fits_block(*most, options.dtype, device)):
            parts = list(live.split(1))
    for chosen in parts if len(live) else []:
        rows, columns = Rows(offsets.x, chosen, device), Rows(offsets.y, chosen, device)
        yield chosen.to(device, non_blocking=True), rows, columns


def solve(p: Problem, offsets: Offsets, options: Options, quiet: bool) -> tuple[Solution, list[Tensor]]:
    """Values (B,), potentials flat, and the costs (N_k, M_k) of all problems; reg may be in units of a scale (B,)."""
    (x, y), (n, m), dtype = p.features, offsets.counts, options.dtype
    batch = len(n)
    value, dual, error = (x.new_zeros(batch, dtype=dtype) for _ in range(3))
    n_iter = x.new_zeros(batch, dtype=torch.int64)
    f, g = (x.new_full((len(z),), -torch.inf, dtype=dtype) for z in (x, y))
    costs = [x.new_zeros(sizes, dtype=dtype) for sizes in zip(n.tolist(), m.tolist(), strict=True)]
    for at, rows, columns in _launches(p, offsets, options):
        part = p if p.scale is None else p._replace(scale=p.scale[at])
        found, matrix = _one_launch(part, rows, columns, options, quiet)
        value, dual = value.index_copy(0, at, found.value), dual.index_copy(0, at, found.dual)
        error = error.index_copy(0, at, found.marginal_error)
        n_iter = n_iter.index_copy(0, at, found.n_iter)
        f, g = rows.put_back(f, found.f), columns.put_back(g, found.g)
        for place, k in enumerate(rows.chosen):
            costs[k] = matrix[place, : int(n[k]), : int(m[k])]
    return Solution(value, dual, f, g, error, n_iter), costs


def cost_sums(p: Problem, offsets: Offsets, options: Options) -> tuple[Tensor, Tensor]:
    """Of every problem the sum (B,) of its finite costs, and their number."""
    x = p.features[0]
    total = x.new_zeros(len(offsets.x) - 1, dtype=dtype_of_sums(x.device))
    count = torch.zeros_like(total, dtype=torch.int64)
    for at, rows, columns in _launches(p, offsets, options):
        inside = rows.inside[:, :, None] & columns.inside[:, None, :]
        total[at], count[at] = relative_reg.sums(_cost(p, rows, columns, options), inside)
    return total, count


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


def _one_launch(
    p: Problem, rows: Rows, columns: Rows, options: Options, quiet: bool
) -> tuple[Solution, Tensor]:
    """Some problems as a batch, and their costs. Rows and columns beside a problem have no mass and take no part."""
    matrix = _cost(p, rows, columns, options)
    a, b = (
        each.inside.to(matrix.dtype) / each.counts if mass is None else each.take(mass)
        for mass, each in ((p.a, rows), (p.b, columns))
    )
    init_f, init_g = (
        None if z is None else each.take(z) for z, each in ((p.init_f, rows), (p.init_g, columns))
    )
    batch = Problem(cost=matrix, a=a, b=b, init_f=init_f, init_g=init_g, scale=p.scale)
    if p.scale is not None:
        batch, _ = relative_reg.over(batch, options)
    if batch.init_f is None:  # as if each problem came alone
        start = (-options.reg * rows.counts.to(matrix.dtype).log()).expand(rows.inside.shape)
        batch = batch._replace(init_f=start.contiguous(), init_g=b.new_zeros(b.shape))
    found = _autograd.solve(batch, options) if door(matrix).KERNELS else _reference.solve(batch, options)
    if not quiet:
        metric = options.metric if p.class_cost is None else None
        not_converged.look(found.marginal_error, found.value, a, options, metric)
    return found if p.scale is None else relative_reg.back(found, p.scale), matrix.detach()


def _cost(p: Problem, rows: Rows, columns: Rows, options: Options) -> Tensor:
    """The costs (B', most, most) of some problems."""
    x, y = p.features
    matrix = _registered.cost(rows.take(x), columns.take(y), options.known_metric)
    if p.classes is None:
        return matrix
    class_cost, labels = p.classes
    taken = Problem(class_cost=rows.take(class_cost), labels=columns.take(labels))
    return with_classes(matrix, taken).contiguous()
