"""One process of a gloo group: the assignments of its rows, what it was refused, and how often it added up."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from gloo_ranks import joined, refused

import ucmkd_fast as uk

N, K = 61, 17
ROWS = {1: [61], 2: [40, 21], 4: [17, 0, 43, 1]}  # of every rank


def unit(*size: int, seed: int) -> torch.Tensor:
    z = torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(z, dim=1)


def plain() -> torch.Tensor:
    return (unit(N, 8, seed=1) @ unit(K, 8, seed=2).T).float()


def forbidden() -> torch.Tensor:
    s = plain()
    s[torch.rand(N, K, generator=torch.Generator().manual_seed(3)) < 0.3] = -torch.inf
    s[:, 3] = -torch.inf  # of every sample
    return s


def one_prototype() -> torch.Tensor:
    """Clusters of samples that all score one prototype, by far."""
    s = plain()
    s[:40, 0] += 500
    s[40:, 1] += 500
    return s


#: Scores and options; "weights" and "shares" are made in `case`.
CASES = {
    "plain": (plain, {"temperature": 0.05}),
    "many": (plain, {"temperature": 0.05, "n_iter": 20}),
    "one": (plain, {"temperature": 0.05, "n_iter": 1}),
    "masses": (plain, {"temperature": 0.05, "a": True, "b": True}),
    "half": (lambda: plain().half(), {"temperature": 0.05}),
    "double": (lambda: plain().double(), {"temperature": 0.05}),
    "hard": (lambda: plain() * 1e4, {"temperature": 1.0, "n_iter": 10}),
    "hard, masses": (lambda: plain() * 1e4, {"temperature": 1.0, "a": True, "b": True}),
    "one prototype": (one_prototype, {"temperature": 0.05, "n_iter": 10}),
    "forbidden": (forbidden, {"temperature": 0.05, "n_iter": 30}),
    "overflow": (lambda: plain() * 3e38, {"temperature": 1e-3}),
}
#: Sums over processes where exp(score / temperature) leaves the range.
HARD = ("hard", "hard, masses", "one prototype", "forbidden", "overflow")


def case(name: str) -> tuple[torch.Tensor, dict]:
    scores, options = CASES[name]
    options = dict(options)
    generator = torch.Generator().manual_seed(4)
    if options.pop("a", None):
        options["a"] = torch.rand(N, generator=generator)
        options["a"][[0, 20, 50]] = 0
    if options.pop("b", None):
        options["b"] = torch.rand(K, generator=generator) + 0.1
        options["b"][2] = 0
    return scores(), options


def work(rank: int, size: int, folder: Path) -> None:
    group, start = dist.group.WORLD, sum(ROWS[size][:rank])
    mine = slice(start, start + ROWS[size][rank])
    added, outcome = [], {}
    original = dist.all_reduce
    dist.all_reduce = lambda *args, **kwargs: (added.append(args[0].numel()), original(*args, **kwargs))[1]
    for name in CASES:
        scores, options = case(name)
        if "a" in options:
            options["a"] = options["a"][mine]
        added.clear()
        outcome[name] = uk.assign(scores[mine].clone(), group=group, **options), list(added)
    s = plain()[mine]
    bad = s.clone()
    bad[:1, 3] = torch.nan
    stuck = torch.full((len(s), K), -torch.inf)
    stuck[:, 0] = 0
    weights = torch.ones(len(s))
    if rank == 0:  # may only use a prototype that no other sample uses, and weighs nothing
        stuck[0], weights[0] = -torch.inf, 0
        stuck[0, 1] = 0
    refusals = {
        "NaN": lambda: uk.assign(bad if rank == 0 else s, 0.05, group=group),
        "alike": lambda: uk.assign(s, 0.05 + 0.01 * rank, group=group),
        "alike in b": lambda: uk.assign(s, 0.05, b=torch.ones(K) + rank, group=group),
        "no rows": lambda: uk.assign(s[:0], 0.05, group=group),
        "weights": lambda: uk.assign(s, 0.05, a=torch.zeros(len(s)), group=group),
        "negative": lambda: uk.assign(s, 0.05, a=torch.ones(len(s)) - 2 * (rank == 0), group=group),
        "lost, at the end": lambda: uk.assign(stuck, 0.05, 1, a=weights, group=group),
        "lost, on the way": lambda: uk.assign(stuck, 0.05, 3, a=weights, group=group),
    }
    outcome |= refused(refusals)
    torch.save(outcome, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    with joined(rank, size, folder, seconds=60):
        work(rank, size, folder)
