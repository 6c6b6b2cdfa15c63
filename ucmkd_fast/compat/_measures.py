"""The arguments of a call of `compat.geomloss`, and what has to be true of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import _C
from ..ops import checks
from ..ops.transforms import direct, fold


class Measures(NamedTuple):
    """Arguments of a call as batches, of the dtype that they are solved in."""

    a: Tensor  # (B, N)
    x: Tensor  # (B, N, D)
    b: Tensor  # (B, M)
    y: Tensor  # (B, M, D)
    batched: bool  # whether B was given
    dtype: torch.dtype  # of what comes back

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(a, x, b, y)."""
        return self.a, self.x, self.b, self.y

    @property
    def native(self) -> bool:
        """Whether the kernels take them: on a CPU, and no transform or mode has to see the steps."""
        return self.x.is_cpu and direct(*self.tensors)


def measures_of(args: tuple[Tensor, ...]) -> Measures:
    """Of the arguments of a call, checked but for their values."""
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
    return Measures(a, x, b, y, batched, dtype)


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


def addresses(m: Measures) -> dict[str, Any]:
    """Sizes and addresses of contiguous measures, as `_C` takes them."""
    (batch, n, d), rows = m.x.shape, m.y.shape[1]
    return {
        "f64": m.x.dtype == torch.float64, "batch": batch, "n": n, "m": rows, "d": d, "a": m.a.data_ptr(),
        "x": m.x.data_ptr(), "b": m.b.data_ptr(), "y": m.y.data_ptr(),
    }  # fmt: skip


def contiguous(m: Measures) -> Measures:
    """Detached, as the kernels read them."""
    a, x, b, y = (z.detach().contiguous() for z in m.tensors)
    return m._replace(a=a, x=x, b=b, y=y)


def look(m: Measures) -> float:
    """The diagonal of the box around all points of all batches; refuses values that have no loss."""
    if m.native:
        flat = contiguous(m)
        diagonal, weights = _C.samples_look(**addresses(flat))
        if weights and math.isfinite(diagonal):
            return diagonal
    found: float = _Look.apply(*(z.detach() for z in m.tensors)).item()
    return found


class _Look(torch.autograd.Function):
    """`look` by torch, under transforms too."""

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
