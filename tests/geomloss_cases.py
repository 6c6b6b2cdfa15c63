"""What the tests of `compat.geomloss` share: sampled measures, what a loss gives, and how near is near."""

from __future__ import annotations

import torch

from ucmkd_fast.compat.geomloss import SamplesLoss


def close(got, want, tolerance):
    """Shape, dtype, and the largest difference relative to the largest entry where that is above 1."""
    assert got.shape == want.shape and got.dtype == want.dtype
    scale = max(1.0, want.abs().max().item())
    assert (got - want).abs().max().item() <= tolerance * scale  # false for NaN


def close_relative(got, want, tolerance, floor=1e-6):
    """The same relative to the largest entry, down to ``floor``."""
    assert got.shape == want.shape and got.dtype == want.dtype
    scale = max(floor, want.abs().max().item())
    assert (got - want).abs().max().item() <= tolerance * scale


def measures(batch=(), n=40, m=33, d=3, dtype=torch.float64, seed=0):
    """(a, x, b, y) in unit cubes, y in a smaller one; masses of 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*batch, *shape, generator=generator, dtype=torch.float64)

    a, x, b, y = draw(n), draw(n, d), draw(m), draw(m, d) * 0.7 + 0.2
    a, b = (w / w.sum(-1, keepdim=True) for w in (a, b))
    return [z.to(dtype).requires_grad_() for z in (a, x, b, y)]


def outputs(module, arguments, **options):
    """The loss, its gradients to all arguments, and both potentials."""
    options.setdefault("loss", "sinkhorn")
    value = module.SamplesLoss(**options)(*arguments)
    slopes = torch.autograd.grad(value.sum(), arguments)
    return value, *slopes, *module.SamplesLoss(**options, potentials=True)(*arguments)


class ours:
    """In the place of the module geomloss."""

    SamplesLoss = SamplesLoss
