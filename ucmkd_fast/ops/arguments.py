"""What `sinkhorn` and `sinkhorn_loss` ask of their arguments; values are checked by the kernels."""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import _C
from . import checks, transforms
from ._problem import Options
from .cost import METRICS

OBJECTIVES = ("transport", "regularized", "divergence")
GRADS = tuple(_C.GRADS)
ACCELERATE = ("relax",)
REG_SCALES = ("mean",)
_MOST_ITERATIONS = (1 << 31) - 1  # sizes of a history stay countable
#: Masses up to this take no part; a table, as compilers trace no calls of the compiled module.
_LEAST_MASS = {dtype: _C.rules(dtype is torch.float64).least_mass for dtype in checks.FLOATS}


_NO_METRIC = object()  # None would be a metric that is asked for


class Asked(NamedTuple):
    """The options of a call as they were given."""

    reg: Any
    max_iter: Any
    tol: Any
    grad: Any
    accelerate: Any
    reg_scale: Any
    dtype: torch.dtype  # of the cost
    metric: Any = _NO_METRIC  # the cost is given
    objective: Any = "transport"
    unbalanced: Any = None


def checked(asked: Asked) -> Options:
    """The options, looked at once for the same values.

    Raises:
        TypeError: a number that is none.
        ValueError: an unknown name, a number out of range, or options that do not go together.
    """
    try:
        return _checked(*asked)
    except TypeError:  # also what cannot be looked up: the check itself says what is wrong with it
        return _checked.__wrapped__(*asked)


@functools.lru_cache(maxsize=256, typed=True)
def _checked(*asked: Any) -> Options:
    reg, max_iter, tol, grad, accelerate, reg_scale, dtype, metric, objective, unbalanced = asked
    if reg_scale is not None:
        checks.choice("reg_scale", reg_scale, REG_SCALES)
    given = metric is _NO_METRIC
    if not given:
        checks.choice("metric", metric, METRICS)
    checks.choice("objective", objective, OBJECTIVES)
    checks.choice("grad", grad, GRADS)
    if accelerate is not None:
        checks.choice("accelerate", accelerate, ACCELERATE)
        if grad == "unrolled":
            raise ValueError(
                f"accelerate={accelerate!r} needs grad='implicit' or 'envelope': 'unrolled' is the gradient of "
                "plain iterations"
            )
    reg = checks.positive_number("reg", reg)
    if reg_scale is None and not torch.finfo(dtype).tiny <= reg <= torch.finfo(dtype).max:
        raise ValueError(
            f"reg must be a normal number of {dtype}, in which the cost is computed, got {reg:g}: "
            "scale the cost and reg, or compute in float64"
        )
    max_iter, tol = checks.count_at_least_one("max_iter", max_iter), checks.number_at_least_zero("tol", tol)
    if max_iter > _MOST_ITERATIONS:
        raise ValueError(f"max_iter must be at most {_MOST_ITERATIONS}, got {max_iter}")
    rho = rho_pair(unbalanced, 0.0 if reg_scale is not None else torch.finfo(dtype).tiny)
    if rho is not None and accelerate is not None:
        raise ValueError(
            f"accelerate={accelerate!r} is for balanced transport: unbalanced iterations are shifted instead, where "
            "tol > 0 or grad is 'implicit' or 'envelope'"
        )
    return Options(
        reg, max_iter, tol, grad, accelerate, dtype, None if given else metric, objective != "transport", rho
    )


def rho_pair(unbalanced: Any, least: float) -> tuple[float, float] | None:
    """What holds the marginals of rows and columns, inf where exactly; None where it does both.

    Raises:
        TypeError: neither a number nor a pair of them.
        ValueError: one that is not above 0, or below ``least``.
    """
    if unbalanced is None:
        return None
    pair = unbalanced if isinstance(unbalanced, (tuple, list)) else (unbalanced, unbalanced)
    if len(pair) != 2:
        raise TypeError(f"unbalanced must be rho or a pair (rho_a, rho_b), got {len(pair)} values")
    found = []
    for rho in pair:
        if rho is not None and (isinstance(rho, bool) or not isinstance(rho, numbers.Real)):
            raise TypeError(
                f"unbalanced must be rho > 0 or a pair (rho_a, rho_b), None for a side that is exact, got "
                f"{type(rho).__name__}"
            )
        found.append(math.inf if rho is None else float(rho))
        if not (found[-1] > 0 and found[-1] >= least):
            raise ValueError(
                f"unbalanced must be a number above 0 (at least {least:.2g} in the cost's dtype), inf or None for "
                f"a side that is exact, got {rho}"
            )
    return None if found[0] == found[1] == math.inf else (found[0], found[1])


def check_init(init: Any, shape: torch.Size, like: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Earlier potentials (f, g) of a cost of this shape, which is ``like`` a tensor.

    The first half-step makes g from f: g only tells where to expect it.
    """
    if init is None:
        return None, None
    if not (isinstance(init, (tuple, list)) and len(init) == 2):
        raise TypeError(f"init must be a pair of potentials (f, g), got {type(init).__name__}")
    for name, z, size in (("f", init[0], shape[-2]), ("g", init[1], shape[-1])):
        wanted = (*shape[:-2], size)
        checks.tensor(f"init {name}", z, str(wanted), len(wanted))
        if tuple(z.shape) != wanted or z.dtype != like.dtype or z.device != like.device:
            raise ValueError(
                f"init {name} must have shape {wanted}, dtype {like.dtype} and device {like.device}, "
                f"got {tuple(z.shape)}, {z.dtype} and {z.device}"
            )
    return init[0].detach().contiguous(), init[1].detach().contiguous()


def envelope_has_no_mass_gradient(options: Options, a: Tensor | None, b: Tensor | None) -> None:
    """Raise ValueError where a gradient of masses is asked for that is not there."""
    if options.grad == "envelope" and not options.regularized:
        for name, mass in (("a", a), ("b", b)):
            if mass is not None and mass.requires_grad:
                raise ValueError(
                    f"grad='envelope' holds the plan constant, so objective='transport' has no gradient for {name}: "
                    "use grad='unrolled' or 'implicit', or objective='regularized'"
                )


def check_features(x: Tensor, y: Tensor, shards: bool = False) -> torch.dtype:
    """The cost's dtype. Of ``shards`` a process may have none."""
    if checks.alike(x, y):
        return x.dtype
    checks.tensor("x", x, "(N, D) or (B, N, D)", 2, 3, half=True)
    checks.tensor("y", y, "(M, D) or (B, M, D)", 2, 3, half=True)
    if x.shape[:-2] != y.shape[:-2]:
        raise ValueError(
            "x and y must be both of one problem or batches of equally many, got shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"x and y must have the same width, got {tuple(x.shape)} and {tuple(y.shape)}: "
            "project one of them to the other's width"
        )
    for name, z in (("x", x), ("y", y)):
        if z.shape[-1] == 0 or (0 in z.shape and not shards):
            raise ValueError(f"{name} must have at least one row and one column, got shape {tuple(z.shape)}")
    checks.same_device(x=x, y=y)
    return checks.common_dtype(x=x, y=y)


def mass(name: str, value: Tensor | None, size: int, batch: int | None, dtype: torch.dtype) -> Tensor | None:
    """Masses (size,), or (batch, size) in a batch; their values are checked by the kernel.

    One of at most 1e-30 (1e-290 in float64) becomes 0: it takes no part. Its gradient is that of a mass of 0.
    """
    if value is None:
        return None
    shape = f"({size},)" if batch is None else f"({size},) or ({batch}, {size})"
    checks.tensor(name, value, shape, *((1,) if batch is None else (1, 2)))
    if value.shape[-1] != size or (value.dim() == 2 and value.shape[0] != batch):
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must have the cost's dtype {dtype}, got {value.dtype}")
    counted = torch.nn.functional.hardshrink(value.detach(), _LEAST_MASS[dtype])
    if not (value.requires_grad or transforms.forward_mode() or transforms.active()):
        return counted
    return value - (value - counted).detach()
