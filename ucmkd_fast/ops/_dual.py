"""The dual value <f - reg log a, a> + <g - reg log b, b> - reg (sum a - sum a sum b), and what it gives the masses.

Unbalanced, with f~ = f - reg log a: rho_a <1 - exp(-f~ / rho_a), a> + the same of b - reg (sum P - sum a sum b), where
sum P = <exp(-f~ / rho_a), a>, as the last half-step was that of f.

Zero masses take no part. A side is 0 for the rows (f, a) and 1 for the columns (g, b).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._problem import Kept, Options, Pair, Problem, Upstream


def paid(free: Tensor, rho: float) -> Tensor:
    """What a potential without its mass adds to the dual value per mass: less where the marginal may give way."""
    return free if rho == math.inf else -rho * torch.expm1(-free / rho)


def kept(z: Tensor, mass: Tensor, options: Options, side: int) -> Tensor:
    """What a half-step leaves of the masses: all where they are exact, else mass exp(-z~ / rho)."""
    rho = options.rho[side]
    if rho == math.inf:
        return mass
    return torch.where(mass > 0, mass * (-(z - options.reg * mass.log()) / rho).exp(), 0)


def pull(z: Tensor | None, mass: Tensor, options: Options, side: int) -> Tensor:
    """The gradient of the dual value with respect to the potential ``z``: sum P is a function of f, as f came last."""
    if options.rho[side] == math.inf:
        return mass
    assert z is not None
    left = kept(z, mass, options, side)
    return left if side else left * (1 + options.reg / options.rho[0])


def direct(z: Tensor, mass: Tensor, other_sum: Tensor, options: Options, side: int) -> Tensor:
    """The gradient of a mass at constant potentials ``z``, with the sum of the other side's masses."""
    reg, rho = options.reg, options.rho[side]
    free = z - reg * mass.log()
    if options.unbalanced is None:
        found = free - (2 - side) * reg + reg * other_sum
    else:
        times = 1 if side else 2 + reg / rho
        found = paid(free, rho) - times * reg * (-free / rho).exp() + reg * other_sum
    return torch.where(mass > 0, found, 0)


def of_envelope(free: Tensor, other_sum: Tensor, options: Options, side: int) -> Tensor:
    """The gradient of a mass where the plan is a constant, from the potential without mass.

    Of exact marginals without what all masses gain alike, as their sums are equal.
    """
    if options.unbalanced is None:
        return free
    rho = options.rho[side]
    return paid(free, rho) - options.reg * (-free / rho).exp() + options.reg * other_sum


def softmin(other: Tensor, cost: Tensor, options: Options, side: int) -> Tensor:
    """A potential (B?, N) without mass from the other side's, with cost (B?, N, M): also where there is no mass."""
    reg = options.reg
    return -options.damping[side] * reg * torch.logsumexp((other[..., None, :] - cost) / reg, -1)


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


def arriving(
    up: Upstream, masses: Pair, potentials: Pair, sizes: tuple[int, int], options: Options
) -> Arriving:
    """The dual value pulls f by a and g by b, and each given mass by what is left of its potential."""
    value, dual, up_f, up_g = up
    if dual is up_f is up_g is None:
        return Arriving(None if value is None else value.contiguous())
    direct_a = direct_b = None
    if dual is not None:
        (a, b), (f, g), (n, m), w = masses, potentials, sizes, dual[..., None]
        mass_a = dual.new_full((n,), 1 / n) if a is None else a
        mass_b = dual.new_full((m,), 1 / m) if b is None else b
        pull_f, pull_g = w * pull(f, mass_a, options, 0), w * pull(g, mass_b, options, 1)
        up_f = pull_f if up_f is None else pull_f + up_f
        up_g = pull_g if up_g is None else pull_g + up_g
        if a is not None and f is not None:
            direct_a = w * direct(f, a, mass_b.sum(-1, keepdim=True), options, 0)
        if b is not None and g is not None:
            direct_b = w * direct(g, b, mass_a.sum(-1, keepdim=True), options, 1)
    value, up_f, up_g = (None if t is None else t.contiguous() for t in (value, up_f, up_g))
    return Arriving(value, up_f, up_g, direct_a, direct_b)


def of_loss(up: Tensor, p: Problem, kept: Kept, options: Options, sizes: tuple[int, int]) -> Arriving:
    """The same of a loss, which is one of the two values."""
    if options.grad == "envelope" or not options.regularized:
        return Arriving(up.contiguous())
    return arriving(Upstream(dual=up), (p.a, p.b), (kept.f, kept.g), sizes, options)


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
    return envelope_masses(p, kept, up.value if options.regularized else None, options, host)


def envelope_masses(p: Problem, kept: Kept, dual: Tensor | None, options: Options, host: bool) -> Pair:
    """Gradients of the dual value: potentials without their masses. The plan is a constant of the other value.

    ``host``: whether all masses are positive may be asked.
    """
    grads: list[Tensor | None] = []
    masses, potentials = (p.a, p.b), (kept.f, kept.g)
    for side, mass in enumerate(masses):
        if mass is None:
            grads.append(None)
            continue
        if dual is None:
            grads.append(torch.zeros_like(mass))
            continue
        z, other, other_mass = potentials[side], potentials[1 - side], masses[1 - side]
        assert z is not None and other is not None
        free = z - options.reg * mass.log()
        if not (host and bool((mass > 0).all())):
            everywhere = softmin(other, p.matrix.mT if side else p.matrix, options, side)
            free = torch.where(mass > 0, free, everywhere)
        total = mass.new_ones(1) if other_mass is None else other_mass.sum(-1, keepdim=True)
        grads.append(like_mass(dual[..., None] * of_envelope(free, total, options, side), mass))
    return grads[0], grads[1]


def like_mass(grad: Tensor | None, mass: Tensor | None) -> Tensor | None:
    """Masses shared by a batch get the sum of its gradients."""
    if grad is None or mass is None:
        return None
    return grad.sum(0) if grad.dim() > mass.dim() else grad
