"""What `sinkhorn` and `sinkhorn_loss` ask of their arguments; values are checked by the kernels."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from . import checks
from ._solve import Options

OBJECTIVES = ("transport", "regularized", "divergence")
GRADS = ("unrolled", "implicit", "envelope")
ACCELERATE = ("relax",)


def check_options(*values: Any) -> Options:
    """As `_checked_options`, which is asked once for the same values."""
    try:
        return _checked_options(*values)
    except TypeError:  # also what cannot be looked up: the check itself says what is wrong with it
        return _checked_options.__wrapped__(*values)


@functools.lru_cache(maxsize=256, typed=True)
def _checked_options(reg, max_iter, tol, grad, accelerate, dtype) -> Options:
    """The dtype is that of the cost; None where reg is not in its units."""
    checks.choice("grad", grad, GRADS)
    if accelerate is not None:
        checks.choice("accelerate", accelerate, ACCELERATE)
        if grad == "unrolled":
            raise ValueError(
                f"accelerate={accelerate!r} needs grad='implicit' or 'envelope': 'unrolled' is the gradient of "
                "plain iterations"
            )
    reg = checks.positive_number("reg", reg)
    if dtype is not None and not torch.finfo(dtype).tiny <= reg <= torch.finfo(dtype).max:
        raise ValueError(
            f"reg must be a normal number of {dtype}, in which the cost is computed, got {reg:g}: "
            "scale the cost and reg, or compute in float64"
        )
    return Options(
        reg,
        checks.count_at_least_one("max_iter", max_iter),
        checks.number_at_least_zero("tol", tol),
        grad,
        accelerate,
    )


def check_init(
    init: Any, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Earlier potentials (f, g). The first half-step makes g from f: g only tells where to expect it."""
    if init is None:
        return None, None
    if not (isinstance(init, (tuple, list)) and len(init) == 2):
        raise TypeError(f"init must be a pair of potentials (f, g), got {type(init).__name__}")
    for name, z, size in (("f", init[0], shape[-2]), ("g", init[1], shape[-1])):
        wanted = (*shape[:-2], size)
        checks.tensor(f"init {name}", z, str(wanted), len(wanted))
        if tuple(z.shape) != wanted or z.dtype != dtype or z.device != device:
            raise ValueError(
                f"init {name} must have shape {wanted}, dtype {dtype} and device {device}, "
                f"got {tuple(z.shape)}, {z.dtype} and {z.device}"
            )
    return init[0].detach().contiguous(), init[1].detach().contiguous()


def envelope_has_no_mass_gradient(objective, grad, a, b) -> None:
    """Raise ValueError where a gradient of masses is asked for that is not there."""
    if objective == "transport" and grad == "envelope":
        for name, mass in (("a", a), ("b", b)):
            if mass is not None and mass.requires_grad:
                raise ValueError(
                    f"grad='envelope' holds the plan constant, so objective='transport' has no gradient for {name}: "
                    "use grad='unrolled' or 'implicit', or objective='regularized'"
                )


def check_features(x: Any, y: Any, shards: bool = False) -> torch.dtype:
    """The cost's dtype. Of ``shards`` a process may have none."""
    if checks.alike(x, y) and len(x) and len(y):
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
