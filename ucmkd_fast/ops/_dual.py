"""The dual value <f - reg log a, a> + <g - reg log b, b> - reg (sum a - sum a sum b), and what it gives the masses.

Zero masses take no part. A side is 0 for the rows (f, a) and 1 for the columns (g, b).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._problem import Upstream


def direct(z: Tensor, mass: Tensor, other_sum: Tensor, reg: float, side: int) -> Tensor:
    """The gradient of a mass at constant potentials ``z``, with the sum of the other side's masses."""
    free = z - reg * mass.log() - (2 - side) * reg + reg * other_sum
    return torch.where(mass > 0, free, 0)


def free_potential(z: Tensor, mass: Tensor, everywhere: Tensor, reg: float) -> Tensor:
    """A potential without its log-mass: the gradient of a mass where the potentials are constants.

    ``everywhere`` is -reg LSE of the other side, which is finite also where the mass is 0.
    """
    return torch.where(mass > 0, z - reg * mass.log(), everywhere)


class Arriving(NamedTuple):
    """Upstream gradients as the kernels take them: of the value and of the potentials."""

    value: Tensor | None  # (B?)
    f: Tensor | None = None  # (B?, N)
    g: Tensor | None = None  # (B?, M)
    direct_a: Tensor | None = None  # (B?, N), to be added to the gradient of a
    direct_b: Tensor | None = None


def envelope_weight(up: Upstream) -> Tensor:
    """With constant potentials the dual value has the gradient of the value: the weight of both."""
    weight = up.value if up.dual is None else up.dual if up.value is None else up.value + up.dual
    assert weight is not None, "some upstream gradient is there"
    return weight.contiguous()


Pair = tuple[Tensor | None, Tensor | None]


def arriving(up: Upstream, masses: Pair, potentials: Pair, sizes: tuple[int, int], reg: float) -> Arriving:
    """The dual value pulls f by a and g by b, and each given mass by what is left of its potential."""
    value, dual, up_f, up_g = up
    direct_a = direct_b = None
    if dual is not None:
        (a, b), (f, g), (n, m), w = masses, potentials, sizes, dual[..., None]
        mass_a = dual.new_full((n,), 1 / n) if a is None else a
        mass_b = dual.new_full((m,), 1 / m) if b is None else b
        up_f = w * mass_a if up_f is None else w * mass_a + up_f
        up_g = w * mass_b if up_g is None else w * mass_b + up_g
        if a is not None and f is not None:
            direct_a = w * direct(f, a, mass_b.sum(-1, keepdim=True), reg, 0)
        if b is not None and g is not None:
            direct_b = w * direct(g, b, mass_a.sum(-1, keepdim=True), reg, 1)
    value, up_f, up_g = (None if t is None else t.contiguous() for t in (value, up_f, up_g))
    return Arriving(value, up_f, up_g, direct_a, direct_b)


def added(grad: Tensor | None, more: Tensor | None) -> Tensor | None:
    """``grad`` with ``more`` added in place, where both are there."""
    return grad if grad is None or more is None else grad.add_(more)


def like_mass(grad: Tensor | None, mass: Tensor | None) -> Tensor | None:
    """Masses shared by a batch get the sum of its gradients."""
    if grad is None or mass is None:
        return None
    return grad.sum(0) if grad.dim() > mass.dim() else grad
