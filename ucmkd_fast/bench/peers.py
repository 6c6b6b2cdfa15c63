"""The Sinkhorn of other libraries, called the way their users call them: (x, y) -> loss and gradient of x."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Result = tuple[Tensor, Tensor]


def available(package: str) -> bool:
    """Whether a package can be imported here."""
    return importlib.util.find_spec(package) is not None


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """The published code's cosine cost."""
    return (1 - F.normalize(x, dim=1) @ F.normalize(y, dim=1).T).clamp_min(0)


def with_gradient(loss_of: Callable[..., Any]) -> Callable[[Tensor, Tensor], Result]:
    """Loss and its gradient with respect to x."""

    def run(x: Tensor, y: Tensor) -> Result:
        leaf = x.detach().requires_grad_()
        loss = loss_of(leaf, y)
        (grad,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), grad

    return run


def uniform(n: int, like: Tensor) -> Tensor:
    """Uniform masses."""
    return like.new_full((n,), 1 / n)


def pot_sinkhorn2(reg: float, max_iter: int) -> Callable[[Tensor, Tensor], Result]:
    """What the method's published code calls: POT's ``sinkhorn2`` under autograd, every iteration unrolled."""
    import ot

    def loss(x: Tensor, y: Tensor) -> Tensor:
        a, b = uniform(len(x), x), uniform(len(y), y)
        return ot.sinkhorn2(a, b, cosine(x, y), reg, numItermax=max_iter, stopThr=0, warn=False)

    return with_gradient(loss)


def pot_log(reg: float, max_iter: int) -> Callable[[Tensor, Tensor], Result]:
    """POT's log-domain solver under autograd."""
    import ot

    def loss(x: Tensor, y: Tensor) -> Tensor:
        a, b = uniform(len(x), x), uniform(len(y), y)
        return ot.sinkhorn2(
            a, b, cosine(x, y), reg, method="sinkhorn_log", numItermax=max_iter, stopThr=0, warn=False
        )

    return with_gradient(loss)


def plain_loss(reg: float, max_iter: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The log-domain iterations in a few lines of torch."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        cost = cosine(x, y)
        f = cost.new_zeros(len(x))
        log_a, log_b = (-torch.tensor(float(len(z))).log() for z in (x, y))
        for _ in range(max_iter):
            g = reg * (log_b - torch.logsumexp((f[:, None] - cost) / reg, 0))
            f = reg * (log_a - torch.logsumexp((g[None, :] - cost) / reg, 1))
        return (((f[:, None] + g - cost) / reg).exp() * cost).sum()

    return loss


def plain(reg: float, max_iter: int) -> Callable[[Tensor, Tensor], Result]:
    """`plain_loss`, eager."""
    return with_gradient(plain_loss(reg, max_iter))


def compiled(reg: float, max_iter: int) -> Callable[[Tensor, Tensor], Result]:
    """`plain_loss` with its iteration compiled: the whole loop unrolled takes minutes to compile."""
    log = torch.logsumexp

    def iteration(f: Tensor, cost: Tensor, log_a: float, log_b: float) -> tuple[Tensor, Tensor]:
        g = reg * (log_b - log((f[:, None] - cost) / reg, 0))
        return reg * (log_a - log((g[None, :] - cost) / reg, 1)), g

    step = torch.compile(iteration, dynamic=False)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        cost = cosine(x, y)
        f = cost.new_zeros(len(x))
        log_a, log_b = -math.log(len(x)), -math.log(len(y))
        for _ in range(max_iter):
            f, g = step(f, cost, log_a, log_b)
        return (((f[:, None] + g - cost) / reg).exp() * cost).sum()

    return with_gradient(loss)


def geomloss(reg: float, potentials: bool = False) -> Callable[[Tensor, Tensor], Any]:
    """GeomLoss on the cost |x^ - y^|^2 / 2, which is the cosine cost; its own annealing and default scaling."""
    from geomloss import SamplesLoss

    loss = SamplesLoss(
        "sinkhorn", p=2, blur=reg**0.5, debias=False, potentials=potentials, backend="tensorized"
    )
    return lambda x, y: loss(F.normalize(x, dim=1), F.normalize(y, dim=1))


def samples_loss(reach: float | None) -> Callable[[Tensor, Tensor], Any]:
    """GeomLoss's own SamplesLoss, its settings left as they are."""
    from geomloss import SamplesLoss

    loss: Callable[[Tensor, Tensor], Any] = SamplesLoss("sinkhorn", reach=reach, backend="tensorized")
    return loss


def jax_ott(reg: float, max_iter: int) -> Callable[[Tensor, Tensor], Result]:
    """OTT-JAX, jitted, gradients through the unrolled iterations."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ott.geometry import geometry
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    def loss(x: Any, y: Any) -> Any:
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        y = y / jnp.linalg.norm(y, axis=1, keepdims=True)
        cost = jnp.maximum(1 - x @ y.T, 0)
        geom = geometry.Geometry(cost_matrix=cost, epsilon=reg)
        from ott.problems.linear import linear_problem

        solver = ott_sinkhorn.Sinkhorn(
            threshold=0.0, min_iterations=max_iter, max_iterations=max_iter, inner_iterations=max_iter,
            implicit_diff=None,
        )  # fmt: skip
        out = solver(linear_problem.LinearProblem(geom))
        return jnp.sum(out.matrix * cost)

    both = jax.jit(jax.value_and_grad(loss))

    def run(x: Tensor, y: Tensor) -> Result:
        value, grad = both(jnp.asarray(x.numpy()), jnp.asarray(y.numpy()))
        grad.block_until_ready()
        return torch.from_numpy(np.array(value)), torch.from_numpy(np.array(grad))

    return run
