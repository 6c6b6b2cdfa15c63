"""The losses of many problems between features: batches (B, N, D), and ragged lists."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _autograd, _devices, _solve_cuda, ragged, relative_reg
from .dense import Settings, cost_matrix, dense
from .one_problem import one_problem
from .result import Convergence


class Problems(NamedTuple):
    """The arguments of a batch: (B, N, ...), or flat."""

    x: Tensor
    y: Tensor
    a: Tensor | None
    b: Tensor | None
    init_fg: tuple[Any, Any]
    by_class: tuple[Any, Any]

    def within(self) -> tuple[Problems, Problems]:
        """Each set against itself."""
        none = None, None
        x, y, a, b = self[:4]
        return Problems(x, x, a, a, none, none), Problems(y, y, b, b, none, none)

    def flat(self) -> Problems:
        """Of (B, N, ...) as a ragged list."""
        x, y, a, b, init_fg, by_class = self
        a = a if a is None else a.expand(x.shape[:2]).reshape(-1)
        b = b if b is None else b.expand(y.shape[:2]).reshape(-1)
        init_fg = init_fg if init_fg[0] is None else (init_fg[0].reshape(-1), init_fg[1].reshape(-1))
        if by_class[0] is not None:
            by_class = by_class[0].flatten(0, 1), by_class[1].flatten()
        return Problems(x.flatten(0, 1), y.flatten(0, 1), a, b, init_fg, by_class)

    def one(self, rows: slice, columns: slice) -> Problems:
        """One problem of a ragged list."""
        x, y, a, b, init_fg, by_class = self

        def part(t, at):
            return t if t is None else t[at]

        init, classes = ((part(z[0], rows), part(z[1], columns)) for z in (init_fg, by_class))
        return Problems(x[rows], y[columns], part(a, rows), part(b, columns), init, classes)


def batch_loss(p: Problems, offsets, objective, settings: Settings, relative: bool, return_result):
    """The losses (B,) of a batch (B, N, D) or of a ragged list; ``relative``: reg is a factor of the mean cost."""
    x, y = p.x, p.y
    metric, dtype, options = settings.metric, settings.dtype, settings.options
    if x.dim() == 3:
        if offsets is not None:
            raise ValueError(f"offsets are for flat x (sum N_k, D), got x of shape {tuple(x.shape)}")
        if not x.is_cpu or _solve_cuda.runs_on(x) or not _autograd.direct(x, y, p.a, p.b, p.by_class[0]):
            return _composite_batch(p, objective, settings, relative, return_result)
        shape = torch.Size((*x.shape[:2], y.shape[1]))
        at, p = ragged.of_batch(*shape), p.flat()
    else:
        shape = None
        at = ragged.check_offsets(offsets, x.shape[0], y.shape[0])
    if relative:
        scale = ragged.mean_costs(p.x, p.y, p.by_class, at, metric, dtype)
        options, its_scale = relative_reg.settle(scale, options, relative_reg.on_host(p.x, p.y))
        settings = settings._replace(options=options, scale=its_scale)
    solve = _one_by_one
    if _devices.has_kernels(x) and (settings.scale is None or _solve_cuda.runs_on(x)):
        solve = _ragged

    outputs = solve(p, at, settings, return_result)
    settings.record(outputs)
    if return_result:
        return ragged.result(outputs, at, shape, options, p.by_class, settings.scale)
    if objective != "divergence":
        return outputs[int(settings.regularized)]
    own = ragged.Offsets(at.x, at.x), ragged.Offsets(at.y, at.y)
    within = [solve(z, k, settings.within(), False)[1] for z, k in zip(p.within(), own, strict=True)]
    empty = (at.x.diff() == 0) | (at.y.diff() == 0)
    return torch.where(empty.to(x.device, non_blocking=True), 0, outputs[1] - (within[0] + within[1]) / 2)


def _ragged(p: Problems, at: ragged.Offsets, settings: Settings, return_result: bool) -> tuple[Any, ...]:
    """(value, dual, f, g, marginal_error, n_iter, costs) in one call."""
    how = settings.metric, settings.dtype, settings.options
    return ragged.solve(*p, at, *how, settings.scale, settings.quiet)


def _one_by_one(p: Problems, at: ragged.Offsets, settings: Settings, return_result: bool) -> tuple[Any, ...]:
    """The same problem by problem; without ``return_result`` only what a loss needs is there."""
    parts: list[tuple[Any, ...]] = []
    for k in range(len(at.x) - 1):
        rows, columns = at.rows(k)
        one, told = p.one(rows, columns), Convergence()
        options, scale = settings.options, settings.scale
        if rows.start == rows.stop or columns.start == columns.stop:
            parts.append(ragged.nothing(len(one.x), len(one.y), p.x, settings.dtype))
            continue
        if scale is not None:
            options, scale = relative_reg.settle(scale[k], options, relative_reg.on_host(p.x, p.y))
        mine = settings._replace(options=options, scale=scale, convergence=told if settings.quiet else None)
        found: Any = one_problem(*one, mine, _NO_PANELS, None, return_result)
        if return_result:
            parts.append((*found.outputs(), found._cost.detach()))
        else:
            parts.append((found, found, *[None] * 2, told.marginal_error, told.n_iter, None))
    value, dual, f, g, error, n_iter, costs = zip(*parts, strict=True)
    vectors = [torch.cat(z) for z in (f, g)] if return_result else [None] * 2
    numbers = [torch.stack(z) for z in (error, n_iter)] if return_result or settings.quiet else [None] * 2
    return torch.stack(value), torch.stack(dual), *vectors, *numbers, list(costs)


_NO_PANELS = 1 << 62  # a budget that every problem of a list is in


def _composite_batch(p: Problems, objective, settings: Settings, relative: bool, return_result):
    """A batch through its cost (B, N, M): on GPUs, under transforms and compilers."""
    if relative:
        matrix = cost_matrix(p.x.detach(), p.y.detach(), settings.metric, settings.dtype, p.by_class)
        settings = settings._replace(scale=relative_reg.mean_cost(matrix))
    found = dense(*p, settings, return_result)
    if objective != "divergence":
        return found
    within = [dense(*z, settings.within(), False) for z in p.within()]
    return found - (within[0] + within[1]) / 2
