"""``reg_scale="mean"``: reg as a factor of the mean cost of each problem, its gradient stopped.

Solving a cost C with reg r s is solving C / s with reg r, and values and potentials times s. A problem on the CPU
takes the first form, with s read there; batches, other devices and transforms the second, where nothing is read.
(Relative epsilons of OTT-JAX; Cuturi et al. 2022, "Optimal Transport Tools".)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _solve_cuda, checks
from ._solve import Options

SCALES = ("mean",)


def check(reg_scale: Any) -> None:
    """Raise ValueError unless it is None or ``"mean"``."""
    if reg_scale is not None:
        checks.choice("reg_scale", reg_scale, SCALES)


def on_host(*tensors: Tensor | None) -> bool:
    """Whether reading a scale waits for nobody: eager calls on the CPU."""
    x = tensors[0]
    return x is not None and x.is_cpu and not _solve_cuda.runs_on(x) and _autograd.direct(*tensors)


def mean_cost(matrix: Tensor, inside: Tensor | None = None) -> Tensor:
    """The mean (B?,) over the finite entries of costs (B?, N, M), of those ``inside`` where it is given.

    NaN where no entry is finite or the mean is not above 0.
    """
    return ratio(*sums(matrix, inside)).to(matrix.dtype)


def mean_cost_on_host(matrix: Tensor) -> Tensor:
    """The same of one problem on the CPU, in fewer steps where every entry is finite."""
    mean = matrix.detach().mean()
    return mean if math.isfinite(mean.item()) else mean_cost(matrix)


def sums(matrix: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum (B?,) of the entries that `mean_cost` takes, of `dtype_of_sums`, and their number."""
    matrix = matrix.detach()
    counts = matrix.isfinite() if inside is None else matrix.isfinite() & inside
    rows = torch.where(counts, matrix, 0).sum(-1)  # a double copy of the matrix would be too much
    return rows.to(dtype_of_sums(matrix.device)).sum(-1), counts.sum((-2, -1))


def dtype_of_sums(device: torch.device) -> torch.dtype:
    """Double, which not every device has."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def ratio(total: Tensor, count: Tensor) -> Tensor:
    """The mean from both; NaN as `mean_cost` says."""
    return torch.where(total > 0, total / count, torch.nan)


def settle(scale: Tensor, options: Options, host: bool) -> tuple[Options, Tensor | None]:
    """With ``host``, which reads the scale: the options of one problem with reg in units of the cost, and None.

    Otherwise, of batches, and where reg would leave the dtype's range, both as they are.

    Raises:
        ValueError: a scale that was read is none.
    """
    if not host:
        return options, scale
    numbers = scale.tolist() if scale.dim() else [scale.item()]
    refused = [k for k, number in enumerate(numbers) if not 0 < number < math.inf]
    if refused:
        which = f" in problem {refused[0]}" if scale.dim() else ""
        raise ValueError(
            "reg_scale='mean' needs a cost whose mean over its finite entries is a number above 0, got one whose mean "
            f"is not or that has no finite entry{which}: give reg in units of the cost (reg_scale=None)"
        )
    reg, range_ = options.reg * numbers[0], torch.finfo(scale.dtype)
    if scale.dim() or not range_.tiny <= reg <= range_.max:
        return options, scale
    return options._replace(reg=reg), None


#: Metrics whose distances scale with the features.
SCALABLE = ("l2", "l1", "sqeuclidean")


def features(x: Tensor, y: Tensor, metric: str, dtype: torch.dtype, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Features whose costs are those of x and y over ``scale`` (), for a metric of `SCALABLE`."""
    factor = scale.sqrt() if metric == "sqeuclidean" else scale
    return x.to(dtype) / factor, y.to(dtype) / factor


def over(z: Tensor | None, scale: Tensor) -> Tensor | None:
    """Vectors (B?, N) in units of ``scale`` (B?,)."""
    return None if z is None else z / scale[..., None]


def back(outputs: tuple[Any, ...], scale: Tensor) -> tuple[Any, ...]:
    """(value, dual, f, g, ...) of costs over ``scale`` (B?,), in units of cost again."""
    value, dual, f, g, *rest = outputs
    vector = scale[..., None]
    return value * scale, dual * scale, f * vector, g * vector, *rest
