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
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from ._exp import exp_or_zero_, lowest

_SMALLEST_SQUARE = 1e-8  # GeomLoss's floor under the squared distance where p = 1
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
    float32 or float64. Cost matrices are kept whole: N M values, and N N + M M more with ``debias``.

    Args:
        loss: ``"sinkhorn"`` only.
        p: 1 for the cost |x - y|, 2 for |x - y|^2 / 2.
        blur: the last eps is ``blur ** p``; in units of distance.
        reach: None only (balanced).
        diameter: where eps starts; None takes the diagonal of the box around all points, which makes a GPU
            wait: give a number to avoid that.
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
        TypeError: at the call, something is not a tensor of float32 or float64, or dtypes differ.
        ValueError: values, shapes or devices that do not fit.
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
        a, x, b, y, batched = _measures(args)
        with torch.autocast(x.device.type, enabled=False):  # it would round the products inside the costs
            f, g = self._potentials(a.detach(), x, b.detach(), y)
            if self.potentials:
                return f, g
            value = (a * f).sum(1) + (b * g).sum(1)
        return value if batched else value[0]

    def _potentials(self, a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """F (B, N) and G (B, M), whose means under a and b add up to the loss."""
        with torch.no_grad():
            diameter = _diameter(x, y) if self.diameter is None else self.diameter
            schedule = _schedule(self.p, diameter, self.blur, self.scaling)
            eps = schedule[-1]
            log_a, log_b = a.log(), b.log()
            between = _cost(x, y, self.p)
            h_x, h_y = _descend(between, log_a, log_b, schedule)
        f = _LastStep.apply(x, y.detach(), between, h_y, eps, self.p, False)
        g = _LastStep.apply(y, x.detach(), between.mT, h_x, eps, self.p, False)
        if not self.debias:
            return f, g
        return f - self._self_potential(x, log_a, schedule), g - self._self_potential(y, log_b, schedule)

    def _self_potential(self, x: Tensor, log_a: Tensor, schedule: list[float]) -> Tensor:
        """(B, N), the potential of the problem between a measure and itself."""
        with torch.no_grad():
            within = _cost(x, x, self.p)
            h = _descend_within(within, log_a, schedule)
        return _LastStep.apply(x, x.detach(), within, h, schedule[-1], self.p, True)

    def extra_repr(self) -> str:
        """The options, for repr."""
        names = ("loss", "p", "blur", "diameter", "scaling", "debias", "potentials")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _measures(args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    """A (B, N), x (B, N, D), b (B, M), y (B, M, D), and whether the batch dimension was given."""
    if len(args) == 6:
        raise NotImplementedError(
            "cluster labels (l_x, a, x, l_y, b, y) belong to GeomLoss's multiscale backend: call with (a, x, b, y)"
        )
    if len(args) not in (2, 4):
        raise ValueError(f"call with (x, y) or (a, x, b, y), got {len(args)} arguments")
    a, x, b, y = args if len(args) == 4 else (None, args[0], None, args[1])
    for name, z in (("x", x), ("y", y)):
        checks.tensor(name, z, "(N, D) or (B, N, D)", 2, 3)
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
    batched = x.dim() == 3
    if not batched:
        a, x, b, y = (z[None] for z in (a, x, b, y))
    return a, x, b, y, batched


def _weights(name: str, weights: Tensor | None, points: Tensor) -> Tensor:
    """Of shape (N,) or (B, N)."""
    wanted = points.shape[:-1]
    if weights is None:
        return points.new_full(wanted, 1 / wanted[-1])
    if not isinstance(weights, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor of shape {tuple(wanted)}, got {type(weights).__name__}"
        )
    if weights.dtype != points.dtype:
        raise TypeError(f"{name} must have the points' dtype {points.dtype}, got {weights.dtype}")
    if weights.shape not in (wanted, (*wanted, 1)):
        raise ValueError(f"{name} must have shape {tuple(wanted)}, got {tuple(weights.shape)}")
    return weights.reshape(wanted)


def _diameter(x: Tensor, y: Tensor) -> float:
    """Diagonal of the box around all points of all batches."""
    points = [z.flatten(0, 1) for z in (x, y)]
    low = torch.minimum(*(z.amin(0) for z in points))
    high = torch.maximum(*(z.amax(0) for z in points))
    return (high - low).norm().item()


def _schedule(p: int, diameter: float, blur: float, scaling: float) -> list[float]:
    """Every eps in turn: diameter^p twice, down by scaling^p while above blur^p, and blur^p."""
    if diameter == 0:
        return [blur**p]
    start, step = p * math.log(diameter), p * math.log(scaling)
    count = max(0, math.ceil((p * math.log(blur) - start) / step))
    return [diameter**p, *(math.exp(start + k * step) for k in range(count)), blur**p]


def _cost(x: Tensor, y: Tensor, p: int) -> Tensor:
    """C (B, N, M) of x (B, N, D) and y (B, M, D)."""
    square = (x * x).sum(-1)[:, :, None] - 2 * (x @ y.mT) + (y * y).sum(-1)[:, None, :]
    return square.clamp_min_(_SMALLEST_SQUARE).sqrt_() if p == 1 else square.mul_(0.5)


def _softmin(cost: Tensor, h: Tensor, eps: float, work: Tensor) -> Tensor:
    """(B, N) of C (B, N, M) and h (B, M); work (B, N, M) is overwritten."""
    torch.sub(h[:, None, :], cost, alpha=1 / eps, out=work)
    top = work.amax(2, keepdim=True)
    # Every sum is at least 1: what the floor adds to it is below rounding.
    return (work.sub_(top).clamp_min_(lowest(work.dtype)).exp_().sum(2).log_() + top[:, :, 0]) * -eps


def _descend(cost: Tensor, log_a: Tensor, log_b: Tensor, schedule: list[float]) -> tuple[Tensor, Tensor]:
    """What the last step reads of each side: log a + f / eps (B, N) and log b + g / eps (B, M)."""
    work = torch.empty_like(cost)
    f, g = _softmin(cost, log_b, schedule[0], work), _softmin(cost.mT, log_a, schedule[0], work.mT)
    for eps in schedule:
        new_f = _softmin(cost, log_b + g / eps, eps, work)
        new_g = _softmin(cost.mT, log_a + f / eps, eps, work.mT)
        f, g = (f + new_f) / 2, (g + new_g) / 2
    return log_a + f / schedule[-1], log_b + g / schedule[-1]


def _descend_within(cost: Tensor, log_a: Tensor, schedule: list[float]) -> Tensor:
    """The same for the problem between a measure and itself, whose two potentials are one."""
    work = torch.empty_like(cost)
    f = _softmin(cost, log_a, schedule[0], work)
    for eps in schedule:
        f = (f + _softmin(cost, log_a + f / eps, eps, work)) / 2
    return log_a + f / schedule[-1]


class _LastStep(torch.autograd.Function):
    """softmin_eps(C(x, y), h) at fixed y and h; its gradient to x needs no second cost matrix."""

    @staticmethod
    def forward(ctx: Any, x, y, cost, h, eps, p, within):  # noqa: D102
        ctx.save_for_backward(x, y, cost, h)
        ctx.eps, ctx.p, ctx.within = eps, p, within
        return _softmin(cost, h, eps, torch.empty_like(cost))

    @staticmethod
    def backward(ctx: Any, grad_f):  # noqa: D102
        x, y, cost, h = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: again by torch, from x
            with torch.autocast(x.device.type, enabled=False):
                f = -ctx.eps * (h[:, None, :] - _cost(x, y, ctx.p) / ctx.eps).logsumexp(2)
            return torch.autograd.grad(f, x, grad_f, create_graph=True)[0], None, None, None, None, None, None
        # Rows of softmax sum to 1; dC/dx = x - y where p = 2, (x - y) / C where p = 1, 0 under the floor.
        scores = torch.sub(h[:, None, :], cost, alpha=1 / ctx.eps)
        weight = exp_or_zero_(scores.sub_(scores.amax(2, keepdim=True)))
        weight.mul_((grad_f / weight.sum(2))[:, :, None])
        if ctx.p == 1:
            weight = torch.where(cost > math.sqrt(_SMALLEST_SQUARE), weight / cost, 0)
            if ctx.within:  # a point does not pull itself: its cost is rounding, and dividing by it is noise
                weight.diagonal(dim1=1, dim2=2).zero_()
        with torch.autocast(x.device.type, enabled=False):
            grad_x = weight.sum(2, keepdim=True) * x - weight @ y
        return grad_x, None, None, None, None, None, None
