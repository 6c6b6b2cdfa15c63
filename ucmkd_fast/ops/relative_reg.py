"""``reg_scale="mean"``: reg as a factor of the mean cost of each problem, its gradient stopped.

Solving a cost C with reg r s is solving C / s with reg r, and values and potentials times s. A problem on the CPU
takes the first form, with s read there; batches, other devices and transforms the second, where nothing is read.
(Relative epsilons of OTT-JAX; Cuturi et al. 2022, "Optimal Transport Tools".)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import transforms
from ._devices import door, dtype_of_sums
from ._problem import Options, Problem, Solution
from .cost import DEGREES


def on_host(*tensors: Tensor | None) -> bool:
    """Whether reading a scale waits for nobody: eager calls on the CPU."""
    x = tensors[0]
    return x is not None and door(x).HOST and transforms.direct(*tensors)


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
    """The sum (B?,) of the entries that `mean_cost` takes, in double where the device has it, and their number."""
    matrix = matrix.detach()
    counts = matrix.isfinite() if inside is None else matrix.isfinite() & inside
    rows = torch.where(counts, matrix, 0).sum(-1)  # a double copy of the matrix would be too much
    return rows.to(dtype_of_sums(matrix.device)).sum(-1), counts.sum((-2, -1))


def ratio(total: Tensor, count: Tensor) -> Tensor:
    """The mean from both; NaN as `mean_cost` says."""
    return torch.where(total > 0, total / count, torch.nan)


def settle(p: Problem, scale: Tensor, options: Options, host: bool) -> tuple[Problem, Options]:
    """With ``host``, which reads the scale () of one problem: the options with reg in units of the cost.

    Otherwise, of batches, and where reg would leave the dtype's range, the problem with its scale.

    Raises:
        ValueError: a scale that was read is none.
    """
    if not host:
        return p._replace(scale=scale), options
    numbers = scale.tolist() if scale.dim() else [scale.item()]
    refused = [k for k, number in enumerate(numbers) if not 0 < number < math.inf]
    if refused:
        which = f" in problem {refused[0]}" if scale.dim() else ""
        raise ValueError(
            "reg_scale='mean' needs a cost whose mean over its finite entries is a number above 0, got one whose mean "
            f"is not or that has no finite entry{which}: give reg in units of the cost (reg_scale=None)"
        )
    if (
        scale.dim()
        or not torch.finfo(scale.dtype).tiny <= options.reg * numbers[0] <= torch.finfo(scale.dtype).max
    ):
        return p._replace(scale=scale), options
    return p, options.scaled(numbers[0])


#: Metrics whose distances scale with the features.
SCALABLE = tuple(metric for metric, degree in DEGREES.items() if degree)


def over(p: Problem, options: Options) -> tuple[Problem, Tensor]:
    """A problem in units of its scale, in which the options' reg is, and the scale.

    Features of a metric of `SCALABLE`, or a given cost; potentials and the term by class are divided alike.
    """
    scale = p.scale
    assert scale is not None
    vector = scale[..., None]
    init_f, init_g = (None if z is None else z / vector for z in (p.init_f, p.init_g))
    p = p._replace(init_f=init_f, init_g=init_g, scale=None)
    if p.cost is not None:
        return p._replace(cost=p.cost / vector[..., None]), scale
    factor = scale.sqrt() if options.metric is not None and DEGREES[options.metric] == 2 else scale
    x, y = (z.to(options.dtype) / factor for z in p.features)
    return p._replace(x=x, y=y, class_cost=None if p.class_cost is None else p.class_cost / scale), scale


def back(found: Solution, scale: Tensor) -> Solution:
    """The solution of costs over ``scale`` (B?,), in units of cost again."""
    value, dual, f, g, *rest = found
    vector = scale[..., None]
    return Solution(value * scale, dual * scale, f * vector, g * vector, *rest)
