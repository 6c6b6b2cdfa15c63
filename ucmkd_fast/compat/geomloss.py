"""GeomLoss's `SamplesLoss` for balanced transport: its schedule, its loop, its gradient.

    C_ij = |x_i - y_j|^p / p        softmin_eps(C, h)_i = -eps log sum_j exp(h_j - C_ij / eps)

eps falls from diameter^p to blur^p by scaling^p at each iteration, and both potentials move halfway to
what the other one asks for (Feydy, "Geometric data analysis, beyond convolutions", 2020, algorithm 3.5):

    f <- (f + softmin_eps(C, log b + g / eps)) / 2,    g <- (g + softmin_eps(C', log a + f / eps)) / 2

One full step at the last eps ends it. The gradient is that of this last step alone, at fixed potentials of the
other side and fixed points of the other side (envelope theorem, ibid., eqs. 3.226-227).
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..ops import checks
from ..ops.transforms import direct, fold
from ._distances import SMALLEST_SQUARE, cost_of, weighted_differences
from ._exp import exp_or_zero_, lowest

_OTHER_LOSSES = ("hausdorff", "energy", "gaussian", "laplacian")
_NOT_HERE = {
    "reach": "unbalanced transport; use reach=None, or geomloss.SamplesLoss",
    "cost": "a cost of your own; use p=1 or p=2, or ucmkd_fast.sinkhorn on a cost matrix",
    "kernel": "kernel norms; use geomloss.SamplesLoss",
    "cluster_scale": "the multiscale backend; leave it out, or use geomloss.SamplesLoss",
}


class SamplesLoss(nn.Module):
    """Sinkhorn divergence between sampled measures, with GeomLoss's arguments and numbers.

    Called with ``(x, y)`` or ``(a, x, b, y)``: points x (N, D), y (M, D) or batches (B, N, D), (B, M, D),
    weights a (N,), b (M,) or (B, N), (B, M), each also with a last dimension of 1; uniform where left out.
    Returns the loss, () or (B,); with ``potentials=True`` the pair F (B, N), G (B, M), B = 1 without a batch.
    Any floating dtype, solved in float32 or float64; what comes back has the dtype that torch promotes the arguments
    to, as in GeomLoss. Cost matrices are kept whole: N M values, and N N + M M more with ``debias``. Works under
    ``torch.func`` (``vmap``, ``grad``, ``jacrev``, ``jvp``, ``hessian``) and in forward mode.

    Args:
        loss: ``"sinkhorn"`` only.
        p: 1 for the cost |x - y|, 2 for |x - y|^2 / 2.
        blur: the last eps is ``blur ** p``; in units of distance.
        reach: None only (balanced).
        diameter: where eps starts; None takes the diagonal of the box around all points (of all problems of a batch or
            of ``vmap``), which makes a GPU wait: give a number to avoid that.
        scaling: eps falls by ``scaling ** p`` at each iteration; between 0 and 1.
        truncate: 5 or None; neither does anything to whole cost matrices.
        cost: None only.
        kernel: None only.
        cluster_scale: None only.
        debias: subtract (OT(x, x) + OT(y, y)) / 2.
        potentials: return the potentials instead of the loss.
        verbose: False only.
        backend: ``"auto"`` or ``"tensorized"``, which are one here.

    Raises:
        NotImplementedError: an argument that GeomLoss has and this lacks; the message names the alternative.
        TypeError: at the call, something is not a tensor of floats, or points of float64 meet those of another dtype.
        ValueError: shapes or devices that do not fit; points that are not finite, weights that are negative or all zero
            (on a GPU these are looked at where ``diameter`` is None or ``UCMKD_CHECK=1``, as that waits for it).
    """

    def __init__(
        self,
        loss: str = "sinkhorn",
        p: int = 2,
        blur: float = 0.05,
        reach: float | None = None,
        diameter: float | None = None,
        scaling: float = 0.5,
        truncate: float | None = 5,
        cost: Any = None,
        kernel: Any = None,
        cluster_scale: float | None = None,
        debias: bool = True,
        potentials: bool = False,
        verbose: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        if loss in _OTHER_LOSSES:
            raise NotImplementedError(
                f"loss={loss!r} is not built here: use geomloss.SamplesLoss({loss!r}), or loss='sinkhorn'"
            )
        checks.choice("loss", loss, ("sinkhorn",))
        given = {"reach": reach, "cost": cost, "kernel": kernel, "cluster_scale": cluster_scale}
        for name, value in given.items():
            if value is not None:
                raise NotImplementedError(f"{name}= is not built here ({_NOT_HERE[name]})")
        if truncate not in (None, 5) or verbose or backend in ("online", "multiscale"):
            raise NotImplementedError(
                "truncate=, verbose= and backend='online' or 'multiscale' belong to GeomLoss's KeOps solvers: "
                "use backend='tensorized' (whole cost matrices), or geomloss.SamplesLoss"
            )
        checks.choice("backend", backend, ("auto", "tensorized"))
        if p not in (1, 2):
            raise ValueError(f"p must be 1 or 2, got {p!r}")
        self.loss, self.p, self.backend = loss, p, backend
        self.blur = checks.positive_number("blur", blur)
        self.diameter = None if diameter is None else checks.positive_number("diameter", diameter)
        self.scaling = checks.positive_number("scaling", scaling)
        if self.scaling >= 1:
            raise ValueError(f"scaling must be between 0 and 1, got {scaling}")
        self.debias, self.potentials = debias, potentials

    def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The loss, () or (B,), or the potentials; see the class."""
        m = _measures(args)
        with torch.autocast(m.x.device.type, enabled=False):  # it would round the products inside the costs
            f, g = self._potentials(m.a.detach(), m.x, m.b.detach(), m.y)
            if self.potentials:
                return f.to(m.dtype), g.to(m.dtype)
            value = ((m.a * f).sum(1) + (m.b * g).sum(1)).to(m.dtype)
        return value if m.batched else value[0]

    def _potentials(self, a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """F (B, N) and G (B, M), whose means under a and b add up to the loss."""
        fixed_x, fixed_y = x.detach(), y.detach()
        with torch.no_grad():
            diameter = self.diameter
            free = x.is_cpu and not torch.compiler.is_compiling()
            if diameter is None or free or os.environ.get("UCMKD_CHECK") == "1":
                box = _Look.apply(a, fixed_x, b, fixed_y)
                diameter = box.item() if diameter is None else diameter
            schedule = _schedule(self.p, diameter, self.blur, self.scaling)
            eps = schedule[-1]
            log_a, log_b = a.log(), b.log()
            between = cost_of(fixed_x, fixed_y, self.p)
            h_x, h_y = _descend(between, log_a, log_b, schedule)
        f = _last_step(x, fixed_y, between, h_y, eps, self.p)
        g = _last_step(y, fixed_x, between.mT, h_x, eps, self.p)
        if not self.debias:
            return f, g
        return f - self._self_potential(x, log_a, schedule), g - self._self_potential(y, log_b, schedule)

    def _self_potential(self, x: Tensor, log_a: Tensor, schedule: list[float]) -> Tensor:
        """(B, N), the potential of the problem between a measure and itself."""
        fixed = x.detach()
        with torch.no_grad():
            within = cost_of(fixed, fixed, self.p)
            h = _descend_within(within, log_a, schedule)
        return _last_step(x, fixed, within, h, schedule[-1], self.p)

    def extra_repr(self) -> str:
        """The options, for repr."""
        names = ("loss", "p", "blur", "diameter", "scaling", "debias", "potentials")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class _Measures(NamedTuple):
    """Arguments of a call as batches, of the dtype that they are solved in."""

    a: Tensor  # (B, N)
    x: Tensor  # (B, N, D)
    b: Tensor  # (B, M)
    y: Tensor  # (B, M, D)
    batched: bool  # whether B was given
    dtype: torch.dtype  # of what comes back


def _measures(args: tuple[Tensor, ...]) -> _Measures:
    if len(args) == 6:
        raise NotImplementedError(
            "cluster labels (l_x, a, x, l_y, b, y) belong to GeomLoss's multiscale backend: call with (a, x, b, y)"
        )
    if len(args) not in (2, 4):
        raise ValueError(f"call with (x, y) or (a, x, b, y), got {len(args)} arguments")
    a, x, b, y = args if len(args) == 4 else (None, args[0], None, args[1])
    for name, z in (("x", x), ("y", y)):
        checks.tensor(name, z, "(N, D) or (B, N, D)", 2, 3, half=True)
        if 0 in z.shape:
            raise ValueError(
                f"{name} must have at least one point and one coordinate, got shape {tuple(z.shape)}"
            )
    if x.dim() != y.dim() or x.shape[-1] != y.shape[-1] or x.shape[:-2] != y.shape[:-2]:
        raise ValueError(
            "x and y must both be (N, D) or both be batches (B, N, D), of one width and one batch size, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    checks.common_dtype(x=x, y=y)
    a, b = _weights("a", a, x), _weights("b", b, y)
    checks.same_device(x=x, y=y, a=a, b=b)
    dtype = x.dtype
    for z in (y, a, b):
        dtype = torch.promote_types(dtype, z.dtype)
    batched = x.dim() == 3
    wide = [z.to(torch.promote_types(dtype, torch.float32)) for z in (a, x, b, y)]
    a, x, b, y = (z if batched else z[None] for z in wide)
    return _Measures(a, x, b, y, batched, dtype)


def _weights(name: str, weights: Tensor | None, points: Tensor) -> Tensor:
    """Of shape (N,) or (B, N)."""
    wanted = points.shape[:-1]
    if weights is None:
        return points.new_full(wanted, 1 / wanted[-1])
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        kind = str(weights.dtype) if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"{name} must be a torch.Tensor of floats of shape {tuple(wanted)}, got {kind}")
    if weights.shape not in (wanted, (*wanted, 1)):
        raise ValueError(f"{name} must have shape {tuple(wanted)}, got {tuple(weights.shape)}")
    return weights.reshape(wanted)


class _Look(torch.autograd.Function):
    """The diagonal of the box around all points of all batches; refuses values that have no loss."""

    @staticmethod
    def forward(a, x, b, y):  # noqa: D102
        low, high = (
            torch.minimum(*(z.amin((0, 1)) for z in (x, y))),
            torch.maximum(*(z.amax((0, 1)) for z in (x, y))),
        )
        diagonal = (high - low).norm()
        if not math.isfinite(diagonal.item()):
            _refuse_points(x=x, y=y)
        for name, weights in (("a", a), ("b", b)):
            _check_weights(name, weights)
        return diagonal

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: D102
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, in_dims, *tensors):  # noqa: D102
        return _Look.apply(*fold(info, in_dims, *tensors)), None


def _refuse_points(**points: Tensor) -> None:
    for name, z in points.items():
        if not bool(z.isfinite().all()):
            raise ValueError(f"{name} must hold finite points, got NaN or inf in it")
    raise ValueError(
        f"x and y must be points whose squared distances fit {points['x'].dtype}, got larger ones: scale them"
    )


def _check_weights(name: str, weights: Tensor) -> None:
    least = weights.amin().item()
    if math.isnan(least) or not math.isfinite(weights.amax().item()):
        raise ValueError(f"{name} must hold finite weights, got NaN or inf in it")
    if least < 0:
        raise ValueError(f"{name} must hold weights >= 0, got {least:.6g}")
    if not bool((weights > 0).any(1).all()):
        raise ValueError(f"{name} must hold a weight > 0, got zeros only")


def _schedule(p: int, diameter: float, blur: float, scaling: float) -> list[float]:
    """Every eps in turn: diameter^p twice, down by scaling^p while above blur^p, and blur^p."""
    if diameter == 0:
        return [blur**p]
    start, step = p * math.log(diameter), p * math.log(scaling)
    count = max(0, math.ceil((p * math.log(blur) - start) / step))
    return [diameter**p, *(math.exp(start + k * step) for k in range(count)), blur**p]


def _softmin(cost: Tensor, h: Tensor, eps: float, work: Tensor | None) -> Tensor:
    """(B, N) of C (B, N, M) and h (B, M); work (B, N, M) is overwritten; None where torch must see every step."""
    if work is None:
        return (h[:, None, :] - cost / eps).logsumexp(2) * -eps
    torch.sub(h[:, None, :], cost, alpha=1 / eps, out=work)
    top = work.amax(2, keepdim=True)
    # Every sum is at least 1: what the floor adds to it is below rounding.
    return (work.sub_(top).clamp_min_(lowest(work.dtype)).exp_().sum(2).log_() + top[:, :, 0]) * -eps


def _plain(*tensors: Tensor) -> bool:
    """Whether no transform and no forward mode looks on: then memory may be written over."""
    return forward_ad._current_level < 0 and direct(*tensors)


def _descend(cost: Tensor, log_a: Tensor, log_b: Tensor, schedule: list[float]) -> tuple[Tensor, Tensor]:
    """What the last step reads of each side: log a + f / eps (B, N) and log b + g / eps (B, M)."""
    work = torch.empty_like(cost) if _plain(cost, log_a, log_b) else None
    work_t = None if work is None else work.mT
    f, g = _softmin(cost, log_b, schedule[0], work), _softmin(cost.mT, log_a, schedule[0], work_t)
    for eps in schedule:
        new_f = _softmin(cost, log_b + g / eps, eps, work)
        new_g = _softmin(cost.mT, log_a + f / eps, eps, work_t)
        f, g = (f + new_f) / 2, (g + new_g) / 2
    return log_a + f / schedule[-1], log_b + g / schedule[-1]


def _descend_within(cost: Tensor, log_a: Tensor, schedule: list[float]) -> Tensor:
    """The same for the problem between a measure and itself, whose two potentials are one."""
    work = torch.empty_like(cost) if _plain(cost, log_a) else None
    f = _softmin(cost, log_a, schedule[0], work)
    for eps in schedule:
        f = (f + _softmin(cost, log_a + f / eps, eps, work)) / 2
    return log_a + f / schedule[-1]


def _last_step(x: Tensor, y: Tensor, cost: Tensor, h: Tensor, eps: float, p: int) -> Tensor:
    """(B, N), softmin_eps(C(x, y), h) at fixed y and h."""
    if _plain(x, y, h):
        return _LastStep.apply(x, y, cost, h, eps, p)
    return _softmin(cost_of(x, y, p), h, eps, None)


class _LastStep(torch.autograd.Function):
    """`_last_step` on a cost already made; its gradient to x needs no second cost matrix."""

    @staticmethod
    def forward(ctx: Any, x, y, cost, h, eps, p):  # noqa: D102
        ctx.save_for_backward(x, y, cost, h)
        ctx.eps, ctx.p = eps, p
        return _softmin(cost, h, eps, torch.empty_like(cost))

    @staticmethod
    def backward(ctx: Any, grad_f):  # noqa: D102
        x, y, cost, h = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            if torch.is_grad_enabled():  # create_graph: again by torch, from x
                f = _softmin(cost_of(x, y, ctx.p), h, ctx.eps, None)
                return torch.autograd.grad(f, x, grad_f, create_graph=True)[0], *[None] * 5
            # Rows of softmax sum to 1; dC/dx = x - y where p = 2, (x - y) / C where p = 1, 0 under the floor.
            scores = torch.sub(h[:, None, :], cost, alpha=1 / ctx.eps)
            weight = exp_or_zero_(scores.sub_(scores.amax(2, keepdim=True)))
            weight.mul_((grad_f / weight.sum(2))[:, :, None])
            if ctx.p == 1:  # the margin is for the rounding of the floor itself
                floor = math.sqrt(SMALLEST_SQUARE) * (1 + 1e-6)
                weight = torch.where(cost > floor, weight / cost, 0)
            return weighted_differences(weight, x, y), *[None] * 5
