"""Rows of plans, block by block, against the plan that is formed."""

from __future__ import annotations

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.ops import _plan_rows
from ucmkd_fast.ops._plan_rows import GivenCosts, MadeCosts, Plans, log_column_sums, log_row_sums, of_list
from ucmkd_fast.ops._problem import Options, Problem


def problem(batch=3, n=7, m=5):
    """Costs with forbidden pairs, and potentials with samples that have no mass."""
    rand = torch.Generator().manual_seed(1)
    cost = torch.rand(batch, n, m, generator=rand, dtype=torch.float64)
    cost[:, 1, 2] = torch.inf
    a, b = (torch.rand(batch, k, generator=rand, dtype=torch.float64) for k in (n, m))
    a[:, 2], b[1, 3] = 0, 0
    result = uk.sinkhorn(cost, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True), reg=0.2)
    return cost, *result.potentials, result.plan()


@pytest.mark.parametrize("block", [1, 12, 36, 80, 1 << 20])
def test_blocks_are_the_plan(monkeypatch, block):
    monkeypatch.setattr(_plan_rows, "BLOCK", block)
    cost, f, g, plan = problem()
    for reg in (0.2, torch.tensor(0.2, dtype=torch.float64), torch.full((3,), 0.2, dtype=torch.float64)):
        plans = Plans(GivenCosts(cost), f, g, reg)
        formed, times = torch.zeros_like(plan), torch.zeros_like(plan)
        for at in plans.blocks():
            logs = plans.log_block(at)
            assert logs.numel() <= max(block, 5)
            formed[at] = logs.exp()
            times[at] += 1
        assert torch.equal(formed, plan) and (times == 1).all()
        at = torch.tensor([2, 0, 0, 1]), torch.tensor([6, 1, 1, 2])
        assert torch.equal(plans.log_rows(*at).exp(), plan[at])
        assert torch.allclose(log_row_sums(plans).exp(), plan.sum(-1), rtol=1e-12, atol=0)
        assert torch.allclose(log_column_sums(plans).exp(), plan.sum(-2), rtol=1e-12, atol=0)
    assert (log_row_sums(plans)[:, 2] == -torch.inf).all() and log_column_sums(plans)[1, 3] == -torch.inf


@pytest.mark.parametrize("block", [1, 80, 1 << 20])
def test_a_list_goes_together_where_sizes_are_equal(monkeypatch, block):
    monkeypatch.setattr(_plan_rows, "BLOCK", block)
    cost, f, g, plan = problem()
    costs, fs, gs = [*cost, cost[0, :4]], [*f, f[0, :4]], [*g, g[0]]
    regs = torch.full((4,), 0.2, dtype=torch.float64)
    found = list(of_list(costs, fs, gs, regs))
    assert [len(plans.f) for plans in found] == {1: [1, 1, 1, 1], 80: [2, 1, 1], 1 << 20: [3, 1]}[block]
    rows = torch.cat([log_row_sums(plans).flatten() for plans in found]).exp()
    assert torch.allclose(rows, torch.cat([*plan.sum(-1), plan[0, :4].sum(-1)]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", ["cosine", "l1", "sqeuclidean"])
def test_rows_of_a_cost_are_made_where_they_are_asked_for(metric):
    rand = torch.Generator().manual_seed(2)
    x, y = (torch.randn(k, 6, generator=rand) for k in (9, 8))
    W, labels = torch.rand(9, 3, generator=rand), torch.arange(8) % 3
    result = uk.sinkhorn_loss(x, y, metric=metric, reg=2.0, class_cost=W, y_labels=labels, return_result=True)
    p = Problem(x, y, class_cost=W, labels=labels)
    costs = MadeCosts(p, Options(2.0, 1, 0.0, "unrolled", None, torch.float32, metric), 4)
    plans = Plans(costs, *(z[None] for z in result.potentials), 2.0)
    blocks = [plans.log_block(at) for at in plans.blocks()]
    assert [len(one[0]) for one in blocks] == [4, 4, 1]
    assert torch.allclose(torch.cat(blocks, 1)[0].exp(), result.plan(), rtol=1e-5)
    rows = torch.tensor([8, 2, 2])
    assert torch.allclose(
        plans.log_rows(torch.zeros(3, dtype=torch.int64), rows).exp(), result.plan()[rows], rtol=1e-5
    )
