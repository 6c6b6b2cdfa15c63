"""`assign` over ranks: one, two and four gloo processes compute what one call does, by one sum an iteration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from assign_worker import CASES, HARD, ROWS, K, case
from gloo_ranks import outcomes

import ucmkd_fast as uk

WORKER = Path(__file__).with_name("assign_worker.py")


@pytest.fixture(scope="module", params=ROWS)
def ranks(request, tmp_path_factory):
    return outcomes(WORKER, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_equals_one_call(ranks, name):
    scores, options = case(name)
    want = uk.assign(scores, **options)
    got = torch.cat([rank[name][0] for rank in ranks])
    assert got.shape == want.shape and got.dtype == want.dtype
    assert (got.double() - want.double()).abs().max() <= (1e-3 if name == "half" else 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_one_sum_an_iteration(ranks, name):
    """K numbers and a few. Two more where the first leaves the range; one number where a prototype takes no part."""
    n_iter = CASES[name][1].get("n_iter", 3)
    for rank in ranks:
        sizes = rank[name][1]
        takes_no_part = name == "forbidden" or "masses" in name
        assert len(sizes) == n_iter + 2 * (name in HARD) + takes_no_part
        assert all(K <= size <= K + 5 or (takes_no_part and size == 1) for size in sizes)


def test_refusals_reach_every_rank(ranks):
    another = "another process of the group refused"
    many = len(ranks) > 1
    for k, rank in enumerate(ranks):
        assert ("NaN in row 0, prototype 3" if k == 0 else another) in rank["NaN"]
        assert ("call assign alike" in rank["alike"]) == many
        assert ("call assign alike" in rank["alike in b"]) == many
        assert "at least one row in some process" in rank["no rows"]
        assert "a must not be all 0" in rank["weights"]
        assert ("got -1 at a[0]" if k == 0 else another) in rank["negative"]
        for name in ("lost, at the end", "lost, on the way"):
            assert ("got row 0 with none" if k == 0 else another) in rank[name]


def test_a_group_is_needed():
    with pytest.raises(ValueError, match="not initialised"):
        uk.assign(torch.ones(2, 2), 1.0, group=1)
