"""One process of a gloo group: what its share of a problem draws and maps, written to a file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from gloo_ranks import joined, refused
from sharded_worker import ROWS, classes, whole

import ucmkd_fast as uk

OPTIONS = {
    "features": {},
    "panels": {"memory_budget": 6000},
    "relative": {"reg_scale": "mean", "metric": "sqeuclidean"},
}
N = 3000


def problem(name: str):
    """X, y, a, b, W and labels of all rows; a tie of the largest entries lies in two processes."""
    x, y, a, b = whole(True)
    x[40] = x[0]
    a[40] = a[0]
    return (x, y, a / a.sum(), b, *(classes() if name == "panels" else (None, None)))


def points():
    """(41, 3) for the rows of x, and (29, 3) for those of y."""
    rand = torch.Generator().manual_seed(4)
    return torch.randn(41, 3, generator=rand), torch.randn(29, 3, generator=rand)


def solved(name: str, tensors, **options):
    x, y, a, b, W, labels = tensors
    options = {"reg": 0.2, "class_cost": W, "y_labels": labels, **OPTIONS[name], **options}
    return uk.sinkhorn_loss(x, y, a, b, return_result=True, **options)


def maps(result, of_x, of_y):
    """Both sides' projections, largest entries, and the gradients of the points."""
    of_x, of_y = of_x.clone().requires_grad_(), of_y.clone().requires_grad_()
    to_x, to_y = result.barycentric_projection(of_y), result.barycentric_projection(of_x, side="y")
    grads = torch.autograd.grad((to_x**3).sum() + (to_y**3).sum(), (of_x, of_y))
    return {
        "rows": result.argmax(), "columns": result.argmax(0), "to_x": to_x.detach(), "to_y": to_y.detach(),
        "of_x": grads[0], "of_y": grads[1],
    }  # fmt: skip


def work(rank: int, size: int, folder: Path) -> None:
    def mine(tensors):
        sides = [[c[side % 2] for c in ROWS[size]] for side in range(len(tensors))]
        return [
            t if t is None else t.split(counts)[rank].clone()
            for t, counts in zip(tensors, sides, strict=True)
        ]

    outcome = {}
    for name in OPTIONS:
        result = solved(name, mine(problem(name)), group=dist.group.WORLD)
        drawn = result.sample(N, generator=torch.Generator().manual_seed(5))
        outcome[name] = {"drawn": drawn, **maps(result, *mine(points()))}
    refusals = {
        "seed": lambda: result.sample(9, generator=torch.Generator().manual_seed(rank)),
        "n": lambda: result.sample(9 + rank, generator=torch.Generator().manual_seed(0)),
        "points": lambda: result.barycentric_projection(torch.ones(29, 3)),
    }
    outcome |= refused(refusals)
    torch.save(outcome, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    with joined(rank, size, folder, seconds=60):
        work(rank, size, folder)
