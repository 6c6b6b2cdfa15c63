"""Maps that a transport plan defines: the greatest entry of each row or column, and the barycentric projection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks, transforms
from ._plan_rows import Block, Plans, exp_, log_column_sums, shifted_exp_


@transforms.not_compiled
def largest_of_rows(plans: Plans) -> Tensor:
    """For each row (B, N) the first column of its largest entry; -1 for a row without mass."""
    found = torch.full(plans.f.shape, -1, device=plans.f.device)
    if plans.g.shape[1]:
        for block in plans.blocks():
            found[block] = largest(plans.log_block(block), -1)
    return found


@transforms.not_compiled
def largest_of_columns(plans: Plans) -> Tensor:
    """For each column (B, M) the first row of its largest entry; -1 for a column without mass.

    Where processes share the problem: of this process's columns, among the rows of all in the order of ranks.
    """
    best, found = (
        torch.full_like(plans.g, -torch.inf),
        torch.full(plans.g.shape, -1, device=plans.g.device),
    )
    for block in plans.blocks():
        of_block, row = plans.log_block(block).max(-2)
        better = of_block > best[block.problems]
        best[block.problems] = torch.where(better, of_block, best[block.problems])
        found[block.problems] = torch.where(better, row + block.rows.start, found[block.problems])
    over = plans.over
    if over.alone:
        return found
    before = over.each(torch.tensor([plans.f.shape[1]], device=found.device))[: over.rank].sum()
    none = torch.iinfo(found.dtype).max
    first = torch.where((best == over.greatest(best.clone())) & (found >= 0), found + before, none)
    first = -over.greatest(-first)
    return over.mine(torch.where(first == none, -1, first)[0])[None]


def largest(logs: Tensor, dim: int) -> Tensor:
    """Of log P (..., N, M) that is formed: for each row (dim -1) or column (-2) where its largest entry is, or -1."""
    value, place = logs.max(dim)
    return torch.where(value > -torch.inf, place, -1)


def projected(logs: Tensor, points: Tensor, side: str) -> Tensor:
    """The barycentric projection by log P (..., N, M) that is formed; differentiable."""
    logs = logs if side == "x" else logs.mT
    empty = logs.detach().amax(-1, keepdim=True) == -torch.inf
    return torch.where(empty, 0, torch.where(empty, 0, logs).softmax(-1) @ points)


class _Normalised(NamedTuple):
    """Plans with rows (side "x") or columns ("y") divided by their sums, block by block; 0 where a sum is 0."""

    plans: Plans
    column_sums: Tensor | None  # log (B, M), of side "y"

    def block(self, at: Block) -> Tensor:
        """(B', R, M)."""
        logs = self.plans.log_block(at)
        if self.column_sums is not None:
            sums = self.column_sums[at.problems, None]
            return exp_(logs.sub_(torch.where(sums == -torch.inf, 0, sums)))
        if not logs.shape[-1]:
            return logs
        shares, _ = shifted_exp_(logs, -1)
        sums = shares.sum(-1, keepdim=True)
        return shares.div_(torch.where(sums == 0, 1, sums))

    def to_rows(self, z: Tensor) -> Tensor:
        """W z (B, N, D) of z (B, M, D), where processes share the problem of their rows of it."""
        plans = self.plans
        z = z if plans.over.alone else plans.over.gather(z[0])[None]
        out = z.new_empty((*plans.f.shape, z.shape[-1]))
        for at in plans.blocks():
            out[at] = self.block(at) @ z[at.problems]
        return out

    def to_columns(self, z: Tensor) -> Tensor:
        """W' z (B, M, D) of z (B, N, D); where processes share the problem this one's rows of it."""
        plans = self.plans
        out = z.new_zeros((*plans.g.shape, z.shape[-1]))
        for at in plans.blocks():
            out[at.problems] += self.block(at).mT @ z[at]
        return out if plans.over.alone else plans.over.mine(plans.over.add(out)[0])[None]


class Projection(torch.autograd.Function):
    """W z or W' z of a constant W: linear in z, with the other one as its gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weights: _Normalised, to_rows: bool) -> Tensor:
        """Of z (B, M, D), or (B, N, D)."""
        ctx.weights, ctx.to_rows = weights, to_rows
        return weights.to_rows(z) if to_rows else weights.to_columns(z)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        """Of z."""
        return transforms.applied(Projection)(upstream[0], ctx.weights, not ctx.to_rows), None, None


@transforms.not_compiled
def by_blocks(parts: Iterable[Plans], points: Tensor, side: str) -> list[Tensor]:
    """The barycentric projections (B', N, D) of x, or (B', M, D) of y, of each part; differentiable in the points.

    Points are flat, (sum M_k, D) or (sum N_k, D). Where processes share the problem, points and projections are those
    of this process's rows.

    Raises:
        NotImplementedError: the call is under a transform.
    """
    if not transforms.direct(points):
        raise NotImplementedError(
            "barycentric_projection of a plan that is not one tensor is not supported under functorch transforms, "
            "forward mode and dispatch modes: call it outside of them"
        )
    found, start = [], 0
    for plans in parts:
        batch, size = (plans.g if side == "x" else plans.f).shape
        stop = start + batch * size if plans.over.alone else len(points)
        z = points[start:stop].view(batch, (stop - start) // batch, points.shape[-1])
        sums = log_column_sums(plans) if side == "y" else None
        found.append(transforms.applied(Projection)(z, _Normalised(plans, sums), side == "x"))
        start = stop
    return found


# Arguments


def of_rows(dim: Any, dims: int) -> bool:
    """Whether ``dim`` of a plan of so many dimensions is the last one, else it is the one before.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(dim, int) and not isinstance(dim, bool) and dim in (-1, -2, dims - 1, dims - 2):
        return dim in (-1, dims - 1)
    raise ValueError(
        f"dim must be -1 or {dims - 1} (for each row of the plan its column) or -2 or {dims - 2} (for each column its "
        f"row), got {dim!r}"
    )


def checked_points(points: Any, side: Any, f: Tensor, g: Tensor) -> Tensor:
    """Points (..., D) of the side that is not projected, in the dtype of potentials (..., N) and (..., M).

    Raises:
        TypeError: they are no dense tensor of floats.
        ValueError: an unknown side, or a shape or device that does not fit.
    """
    checks.choice("side", side, ("x", "y"))
    like, other = (g, "y") if side == "x" else (f, "x")
    batched = f.dim() == 2
    rows = ", ".join(map(str, like.shape))
    shape = f"({rows}, D)" + (f" or ({like.shape[-1]}, D)" if batched else "")
    checks.tensor("points", points, shape, *((2, 3) if batched else (2,)), half=True)
    if points.shape[:-1] not in (like.shape, like.shape[-1:]):
        raise ValueError(
            f"points must have shape {shape}, one for each {other} as side={side!r} projects the other side, got "
            f"{tuple(points.shape)}"
        )
    if points.device != like.device:
        raise ValueError(f"points must be on the cost's device {like.device}, got {points.device}")
    converted: Tensor = points.to(like.dtype).expand(*like.shape, points.shape[-1])
    return converted
