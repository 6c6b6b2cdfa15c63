"""Problems through their cost matrix, and what every way to a loss is told."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import sinkhorn as reference
from . import (
    _autograd,
    _by_torch,
    _devices,
    _not_converged,
    _solve_cuda,
    _transforms,
    class_aware,
    relative_reg,
)
from ._loss import LossOptions, loss_options
from ._solve import Options
from .result import Convergence, SinkhornResult


class Settings(NamedTuple):
    """What a loss runs with, once checked, on whatever way."""

    metric: str
    dtype: torch.dtype  # of the cost
    regularized: bool
    options: Options
    convergence: Convergence | None = None  # to fill in
    scale: Tensor | None = None  # () or (B,), in whose units reg is

    @property
    def quiet(self) -> bool:
        """Whether the caller looks at the marginal errors by himself."""
        return self.convergence is not None

    def within(self) -> Settings:
        """For a problem within one set, of a divergence: nobody asks how it converged, or all are quiet."""
        return self._replace(convergence=Convergence() if self.quiet else None)

    def record(self, outputs: tuple[Any, ...]) -> None:
        """Fill in what a solver says."""
        if self.convergence is not None:
            self.convergence.take(outputs[4], outputs[5])

    def for_kernels(self) -> LossOptions:
        """As the native calls take them."""
        options = loss_options(self.metric, self.dtype, self.regularized, self.options)
        return options if self.convergence is None else options._replace(convergence=self.convergence)


def solve(
    cost, a, b, init_fg: Any, options: Options, scale: Tensor | None = None, quiet: bool = False
) -> tuple[Tensor, ...]:
    """(value, dual, f, g, marginal_error, n_iter) by whatever runs on these tensors; reg in units of ``scale``."""
    if scale is not None:
        init_fg = [relative_reg.over(z, scale) for z in init_fg]
        found = solve(cost / scale[..., None, None], a, b, init_fg, options, None, quiet)
        return relative_reg.back(found, scale)
    direct, kernels = _autograd.direct(cost, a, b, *init_fg), _devices.has_kernels(cost)
    if not direct and (_transforms.by_torch() or (_transforms.active() and not kernels)):
        return _by_torch.solve(cost, a, b, init_fg[0], options)
    if not kernels:
        _devices.warn_without_kernels(cost.device)
        found = _autograd.reference_solved(cost, a, b, init_fg[0], init_fg[1], options)
    elif not direct:  # the op itself looks, when it runs
        if not quiet or torch.compiler.is_compiling():
            return _autograd.sinkhorn_transformed(cost, a, b, *init_fg, *options)[:6]
        with _not_converged.silent():
            return _autograd.sinkhorn_transformed(cost, a, b, *init_fg, *options)[:6]
    else:
        masses = [None if t is None else t.contiguous() for t in (a, b)]
        found = _autograd.Sinkhorn.apply(cost.contiguous(), *masses, *init_fg, options)
    if direct and not quiet:
        _not_converged.look(found[4], found[0], a, options)
    return found


def dense(x, y, a, b, init_fg, by_class, settings: Settings, return_result):
    """The loss or the result through the cost (B?, N, M): for results, other devices, transforms and compilers."""
    matrix = cost_matrix(x, y, settings.metric, settings.dtype, by_class)
    outputs = solve(matrix, a, b, init_fg, settings.options, settings.scale, settings.quiet)
    settings.record(outputs)
    if not return_result:
        return outputs[int(settings.regularized)]
    classes = None if by_class[0] is None else (by_class[1], by_class[0].shape[-1])
    return SinkhornResult(matrix, outputs, settings.options, classes, settings.scale)


def cost_matrix(x, y, metric, dtype, by_class=(None, None)) -> Tensor:
    """The cost (B?, N, M) as one op with a gradient: never (N, M, D) where kernels run (on a CPU without B)."""
    if (_solve_cuda.runs_on(x) or (x.device.type == "cpu" and x.dim() == 2)) and not _transforms.by_torch():
        matrix = _autograd.cost_transformed(x, y, metric)[0]
    else:
        matrix = reference.cost(x.to(dtype), y.to(dtype), metric)
    return matrix if by_class[0] is None else class_aware.cost_by_class(matrix, *by_class)
