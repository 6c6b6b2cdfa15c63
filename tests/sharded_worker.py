"""One process of a gloo group: its shards' losses and gradients, written to a file.

As "model" with the kernels of a GPU, on their execution model.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from cuda_harness import model
from gloo_ranks import joined, refused

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device

CASES = {
    "cosine": {},
    "l1 regularized": {"metric": "l1", "reg": 2.0, "objective": "regularized"},
    "divergence": {"metric": "l2", "reg": 2.0, "objective": "divergence"},
    "implicit": {"grad": "implicit", "max_iter": 200, "tol": 1e-6},
    "stopped": {"max_iter": 200, "tol": 1e-6},
    "envelope": {"grad": "envelope", "objective": "regularized"},
    "envelope masses": {"grad": "envelope", "objective": "regularized"},
    "log domain": {"metric": "sqeuclidean", "reg": 0.2, "max_iter": 30},
    "panels": {"memory_budget": 6000},
    "class cost": {"metric": "l2", "reg": 2.0},
    "class cost, panels": {"memory_budget": 6000},
    "relative reg": {"reg_scale": "mean"},
    "relative reg, divergence": {"metric": "l2", "objective": "divergence", "reg_scale": "mean"},
    "relative reg, panels": {"metric": "sqeuclidean", "memory_budget": 6000, "reg_scale": "mean", "reg": 0.2},
    "class cost, relative reg": {"metric": "l1", "reg_scale": "mean"},
    "relaxed": {"grad": "implicit", "max_iter": 200, "tol": 1e-6, "accelerate": "relax"},
    "unbalanced": {"unbalanced": (0.5, 2.0)},
    "unbalanced, divergence": {
        "metric": "l2",
        "reg": 2.0,
        "objective": "divergence",
        "unbalanced": (3.0, None),
    },
    "unbalanced, implicit": {"grad": "implicit", "max_iter": 300, "tol": 1e-6, "unbalanced": 1.0},
    "unbalanced, stopped": {"max_iter": 200, "tol": 1e-6, "unbalanced": 1.0},
    "unbalanced, envelope": {"grad": "envelope", "objective": "regularized", "unbalanced": 1.0},
    "unbalanced, log domain": {"metric": "sqeuclidean", "reg": 0.2, "max_iter": 30, "unbalanced": 20.0},
}
ROWS = {
    2: [(30, 5), (11, 24)],
    4: [(17, 3), (0, 12), (23, 0), (1, 14)],
}  # (N, M) of every rank: 41, 29 in all


def whole(masses: bool):
    rand = torch.Generator().manual_seed(1)
    x, y = (torch.randn(k, 7, generator=rand) for k in (41, 29))
    a, b = (torch.rand(k, generator=rand) + 0.1 for k in (41, 29))
    a[20], b[7] = 0, 0
    return (x, y, a / a.sum(), b / b.sum()) if masses else (x, y, None, None)


def classes():
    """W (41, 3) with a forbidden class, and labels (29,)."""
    W = torch.rand(41, 3, generator=torch.Generator().manual_seed(2))
    W[5, 1] = torch.inf
    return W, torch.arange(29) % 3


def gradients(tensors, by_class=(None, None), **options):
    inputs = [t.requires_grad_() for t in (*tensors, by_class[0]) if t is not None]
    loss = uk.sinkhorn_loss(*tensors, class_cost=by_class[0], y_labels=by_class[1], **options)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def has_masses(name: str) -> bool:
    return name in ("l1 regularized", "log domain", "implicit", "envelope masses") or name.startswith(
        "unbalanced"
    )


def by_class_of(name: str):
    return classes() if name.startswith("class cost") else (None, None)


def work(rank: int, size: int, folder: Path) -> None:
    counts = ROWS[size]
    group = dist.group.WORLD
    outcome = {}

    def mine(tensors):
        return [
            t if t is None else t.split([c[side % 2] for c in counts])[rank].clone()
            for side, t in enumerate(tensors)
        ]

    for name, options in CASES.items():
        parts = mine(whole(has_masses(name)))
        outcome[name] = gradients(parts, mine(by_class_of(name)), group=group, **options)
    result = uk.sinkhorn_loss(*parts[:2], group=group, max_iter=300, tol=1e-5, return_result=True)
    again = uk.sinkhorn_loss(
        *parts[:2], group=group, max_iter=300, tol=1e-5, return_result=True, init=result.potentials
    )
    outcome["warm"] = [result.n_iter, again.n_iter, result.marginal_error]
    W, labels = mine(classes())
    bad = parts[0].detach().clone()
    bad[:1] = torch.nan  # on the ranks that have rows at all
    refusals = {
        "NaN": lambda: uk.sinkhorn_loss(bad if rank == 0 else parts[0], parts[1], group=group),
        "alike": lambda: uk.sinkhorn_loss(*parts[:2], group=group, max_iter=3 + rank),
        "alike in scale": lambda: uk.sinkhorn_loss(
            *parts[:2], group=group, reg_scale="mean" if rank else None
        ),
        "NaN in a mean": lambda: uk.sinkhorn_loss(
            bad if rank == 0 else parts[0], parts[1], group=group, reg_scale="mean"
        ),
        "no mean": lambda: uk.sinkhorn_loss(
            0 * parts[0], 0 * parts[1], group=group, reg_scale="mean", metric="l2"
        ),
        "masses": lambda: uk.sinkhorn_loss(*parts[:2], torch.ones(len(parts[0])), group=group),
        "labels": lambda: uk.sinkhorn_loss(
            *parts[:2],
            class_cost=mine(classes())[0],
            y_labels=mine(classes())[1] + (3 if rank == 0 else 0),
            group=group,
        ),
    }
    if _device.runs_on(bad):  # refused values are told when they are read, to every process
        result = uk.sinkhorn_loss(bad if rank == 0 else parts[0], parts[1], group=group, return_result=True)
        outcome["NaN"] = result.value, result.n_iter
        refusals = {"alike": refusals["alike"]}
    outcome |= refused(refusals)
    torch.save(outcome, folder / f"rank{rank}.pt")


def die(rank: int, folder: Path) -> None:
    """The last rank leaves in the middle of a run; the others must not wait for ever."""
    torch.manual_seed(rank)
    try:
        for step in range(1000):
            if rank == 1 and step == 3:
                os._exit(9)
            uk.sinkhorn_loss(torch.randn(9, 4), torch.randn(8, 4), group=dist.group.WORLD)
    except RuntimeError as error:
        (folder / "told").write_text(str(error))
        os._exit(3)


if __name__ == "__main__":
    what, rank, size, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    with joined(rank, size, folder, seconds=20):
        if what == "model":
            with model(order="random", seed=rank):
                work(rank, size, folder)
        else:
            die(rank, folder) if what == "die" else work(rank, size, folder)
