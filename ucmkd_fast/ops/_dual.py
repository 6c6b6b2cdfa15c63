"""The dual value <f - reg log a, a> + <g - reg log b, b> - reg (sum a - sum a sum b), and what it gives the masses.

Zero masses take no part. A side is 0 for the rows (f, a) and 1 for the columns (g, b).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._problem import Kept, Options, Pair, Problem, Upstream


def direct(z: Tensor, mass: Tensor, other_sum: Tensor, reg: float, side: int) -> Tensor:
    """The gradient of a mass at constant potentials ``z``, with the sum of the other side's masses."""
    free = z - reg * mass.log() - (2 - side) * reg + reg * other_sum
    return torch.where(mass > 0, free, 0)


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


def arriving(up: Upstream, masses: Pair, potentials: Pair, sizes: tuple[int, int], reg: float) -> Arriving:
    """The dual value pulls f by a and g by b, and each given mass by what is left of its potential."""
    value, dual, up_f, up_g = up
    if dual is up_f is up_g is None:
        return Arriving(None if value is None else value.contiguous())
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


def of_loss(up: Tensor, p: Problem, kept: Kept, options: Options, sizes: tuple[int, int]) -> Arriving:
    """The same of a loss, which is one of the two values."""
    if options.grad == "envelope" or not options.regularized:
        return Arriving(up.contiguous())
    return arriving(Upstream(dual=up), (p.a, p.b), (kept.f, kept.g), sizes, options.reg)


def with_direct(up: Arriving, grads: Pair) -> Pair:
    """Gradients of the masses through the iterations, with what comes to them directly; in place."""
    grad_a, grad_b = grads
    if grad_a is not None and up.direct_a is not None:
        grad_a.add_(up.direct_a)
    if grad_b is not None and up.direct_b is not None:
        grad_b.add_(up.direct_b)
    return grad_a, grad_b


def mass_gradients(p: Problem, kept: Kept, up: Arriving, grads: Pair, options: Options, host: bool) -> Pair:
    """Of a loss: through the iterations and directly, or those of the envelope."""
    if options.grad != "envelope":
        return with_direct(up, grads)
    return envelope_masses(p, kept, up.value if options.regularized else None, options.reg, host)


def envelope_masses(p: Problem, kept: Kept, dual: Tensor | None, reg: float, host: bool) -> Pair:
    """Gradients of the dual value: potentials without their masses. The plan is a constant of the other value.

    ``host``: whether all masses are positive may be asked.
    """
    grads: list[Tensor | None] = []
    for mass, z, other, turned in ((p.a, kept.f, kept.g, False), (p.b, kept.g, kept.f, True)):
        if mass is None:
            grads.append(None)
        elif dual is None:
            grads.append(torch.zeros_like(mass))
        else:
            assert z is not None and other is not None
            free = z - reg * mass.log()
            if not (host and bool((mass > 0).all())):
                cost = p.matrix.mT if turned else p.matrix
                everywhere = -reg * torch.logsumexp((other[..., None, :] - cost) / reg, -1)
                free = torch.where(mass > 0, free, everywhere)
            grads.append(like_mass(dual[..., None] * free, mass))
    return grads[0], grads[1]


def like_mass(grad: Tensor | None, mass: Tensor | None) -> Tensor | None:
    """Masses shared by a batch get the sum of its gradients."""
    if grad is None or mass is None:
        return None
    return grad.sum(0) if grad.dim() > mass.dim() else grad
