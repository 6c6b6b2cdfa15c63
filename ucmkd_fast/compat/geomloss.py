"""GeomLoss's `SamplesLoss`: its schedule, its loop, its gradient, balanced and unbalanced, and its kernel norms.

    C_ij = |x_i - y_j|^p / p        softmin_eps(C, h)_i = -eps log sum_j exp(h_j - C_ij / eps)

eps falls from diameter^p to blur^p by scaling^p at each iteration, and both potentials move halfway to
what the other one asks for (Feydy, "Geometric data analysis, beyond convolutions", 2020, algorithm 3.5),

    f <- (f + d softmin_eps(C, log b + g / eps)) / 2,    g <- (g + d softmin_eps(C', log a + f / eps)) / 2

with d = 1, or d = 1 / (1 + eps / reach^p) for unbalanced transport (Sejourne et al., arXiv 1910.12958). One full step
at the last eps ends it. The gradient is that of this last step alone, at fixed potentials of the other side and fixed
points of the other side (envelope theorem, Feydy, eqs. 3.226-227).
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from . import _divergence, _divergence_native, _kernel_norms
from ._divergence import Settings
from ._measures import Measures, look, measures_of

_LOSSES = ("sinkhorn", *_kernel_norms.KERNELS)


class SamplesLoss(nn.Module):
    """Sinkhorn divergences and kernel norms between sampled measures, with GeomLoss's arguments and numbers.

    Called with ``(x, y)`` or ``(a, x, b, y)``: points x (N, D), y (M, D) or batches (B, N, D), (B, M, D),
    weights a (N,), b (M,) or (B, N), (B, M), each also with a last dimension of 1; uniform where left out.
    Returns the loss, () or (B,); with ``potentials=True`` the pair F (B, N), G (B, M), B = 1 without a batch.
    Any floating dtype, solved in float32 or float64; what comes back has the dtype that torch promotes the arguments
    to, as in GeomLoss. Works under ``torch.func`` (``vmap``, ``grad``, ``jacrev``, ``jvp``, ``hessian``) and in forward
    mode.

    On a CPU a divergence and its gradient are one native call, which keeps cost matrices of up to 64 MB (of more than
    8 features 4 GB) and makes larger ones anew in every sweep. On a GPU, for kernel norms, a ``cost`` of your own,
    transforms and second derivatives, torch's operations run on whole matrices: N M values, and N N + M M more.

    Args:
        loss: ``"sinkhorn"``, ``"energy"``, ``"gaussian"`` or ``"laplacian"``.
        p: 1 for the cost |x - y|, 2 for |x - y|^2 / 2.
        blur: the last eps is ``blur ** p``; in units of distance. The width of the kernels of kernel norms.
        reach: None for exact marginals; else they are held by ``reach ** p`` times their Kullback-Leibler divergence
            (unbalanced transport), and the masses of a and b need not be equal.
        diameter: where eps starts; None takes the diagonal of the box around all points (of all problems of a batch or
            of ``vmap``), which makes a GPU wait: give a number to avoid that.
        scaling: eps falls by ``scaling ** p`` at each iteration; between 0 and 1.
        truncate: nothing is ever truncated here; any number > 0, or None.
        cost: None, or a function of points (B, N, D) and (B, M, D) that gives costs (B, N, M), in the place of
            |x - y|^p / p.
        kernel: None, or for kernel norms a symmetric function ``kernel(x, y, blur=, use_keops=, ranges=)`` of
            points that gives (B, N, M).
        cluster_scale: None only.
        debias: subtract (OT(x, x) + OT(y, y)) / 2.
        potentials: return the potentials instead of the loss.
        verbose: a bool; only GeomLoss's multiscale backend has anything to say.
        backend: ``"auto"``, ``"tensorized"`` or ``"online"``, with one result; ``"online"`` keeps no cost matrix
            above 64 MB where the native call runs.

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
        _refuse_what_is_not_here(loss, backend, cluster_scale)
        checks.choice("loss", loss, _LOSSES)
        checks.choice("backend", backend, ("auto", "tensorized", "online"))
        if p not in (1, 2):
            raise ValueError(f"p must be 1 or 2, got {p!r}")
        self.loss, self.p, self.backend = loss, p, backend
        self.blur = checks.positive_number("blur", blur)
        self.reach = None if reach is None else checks.positive_number("reach", reach)
        self.diameter = None if diameter is None else checks.positive_number("diameter", diameter)
        self.scaling = checks.positive_number("scaling", scaling)
        if self.scaling >= 1:
            raise ValueError(f"scaling must be between 0 and 1, got {scaling}")
        self.truncate = None if truncate is None else checks.positive_number("truncate", truncate)
        self.cost, self.kernel = _function("cost", cost), _function("kernel", kernel)
        self.cluster_scale, self.debias, self.potentials, self.verbose = None, debias, potentials, verbose
        of_others = {"kernel": kernel} if loss == "sinkhorn" else {"reach": reach, "cost": cost}
        for name, value in of_others.items():
            if value is not None:
                raise ValueError(f"{name}= has no meaning with loss={loss!r}: leave it out")

    def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The loss, () or (B,), or the potentials; see the class."""
        m = measures_of(args)
        with torch.autocast(m.x.device.type, enabled=False):  # it would round the products inside the costs
            found = self._divergence(m) if self.loss == "sinkhorn" else self._kernel_norm(m)
        if isinstance(found, tuple):
            return found[0].to(m.dtype), found[1].to(m.dtype)
        value = found.to(m.dtype)
        return value if m.batched else value[0]

    def _divergence(self, m: Measures) -> Tensor | tuple[Tensor, Tensor]:
        seen = _look_where_free(m, self.diameter is None)
        diameter = seen if self.diameter is None else self.diameter
        settings = Settings(
            p=self.p,
            schedule=_divergence.schedule_of(self.p, diameter, self.blur, self.scaling),
            rho=math.inf if self.reach is None else self.reach**self.p,
            debias=self.debias,
            potentials=self.potentials,
            cost=self.cost,
            linear=self.backend == "online",
        )
        native = m.native and self.cost is None
        return _divergence_native.solve(m, settings) if native else _divergence.solve(m, settings)

    def _kernel_norm(self, m: Measures) -> Tensor | tuple[Tensor, Tensor]:
        _look_where_free(m, False)
        kernel = self.kernel or _kernel_norms.KERNELS[self.loss]
        return _kernel_norms.solve(m, kernel, self.blur, self.potentials)

    def extra_repr(self) -> str:
        """The options, for repr."""
        names = ("loss", "p", "blur", "reach", "diameter", "scaling", "debias", "potentials")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _refuse_what_is_not_here(loss: str, backend: str, cluster_scale: float | None) -> None:
    if loss == "hausdorff":
        raise NotImplementedError(
            "loss='hausdorff' is not built here (in GeomLoss 0.3.1 it is a kernel norm that needs kernel=): "
            "use loss='energy', 'gaussian' or 'laplacian'"
        )
    if backend == "multiscale" or cluster_scale is not None:
        raise NotImplementedError(
            "backend='multiscale' and cluster_scale= are not built here: leave them out for the value that they "
            "approximate, or use geomloss.SamplesLoss with KeOps"
        )


def _function(name: str, given: Any) -> Any:
    if given is not None and not callable(given):
        raise NotImplementedError(
            f"{name}= must be a function of points here, got {type(given).__name__} "
            "(formulas are for KeOps: use geomloss.SamplesLoss, or write it with torch)"
        )
    return given


def _look_where_free(m: Measures, needed: bool) -> float:
    """The diagonal of the box around all points, after a look at all values; nan where a GPU would have to wait."""
    free = m.x.is_cpu and not torch.compiler.is_compiling()
    if not (needed or free or os.environ.get("UCMKD_CHECK") == "1"):
        return math.nan
    with torch.no_grad():
        return look(m)
