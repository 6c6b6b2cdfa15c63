"""Rows over processes: two and four gloo ranks compute what one process does on the rows of all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cuda_harness import build
from gloo_ranks import outcomes, start
from sharded_worker import CASES, ROWS, by_class_of, gradients, has_masses, whole

import ucmkd_fast as uk

WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    return outcomes(WORKER, request.param, tmp_path_factory.mktemp("shards"), "work")


def agrees_with_one_process(ranks, name):
    options = {k: v for k, v in CASES[name].items() if k != "memory_budget"}
    wants = gradients(whole(has_masses(name)), by_class_of(name), **options)
    assert sum(c[0] for c in ROWS[len(ranks)]) == 41 and sum(c[1] for c in ROWS[len(ranks)]) == 29
    for rank in ranks:
        assert torch.equal(rank[name][0], ranks[0][name][0])
        assert abs(rank[name][0] - wants[0]) <= 1e-5 * abs(wants[0])
    for k, want in enumerate(wants[1:], 1):
        got = torch.cat([rank[name][k] for rank in ranks])
        assert got.shape == want.shape
        assert (got - want).abs().max() <= (1e-3 if name.endswith("log domain") else 2e-5) * want.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(ranks, name):
    agrees_with_one_process(ranks, name)


@pytest.mark.long
@pytest.mark.parametrize("size", ROWS)
@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with")
def test_the_kernels_of_a_gpu_equal_one_process(size, tmp_path):
    """On their execution model: what so many GPUs would compute, with gloo in the place of NCCL."""
    build.load()  # once, not in every process
    ranks = outcomes(WORKER, size, tmp_path, "model")
    for name in CASES:
        agrees_with_one_process(ranks, name)
    for outcome in ranks:
        cold, warm, error = outcome["warm"]
        value, n_iter = outcome["NaN"]
        assert warm == 1 < cold and error <= 1e-5
        assert value.isnan() and -int(n_iter) & 64 and "call sinkhorn_loss alike" in outcome["alike"]


def test_warm_starts_and_refusals(ranks):
    for rank, outcome in enumerate(ranks):
        cold, warm, error = outcome["warm"]
        assert warm == 1 < cold and error <= 1e-5
        assert ("x must be finite" if rank == 0 else "another process") in outcome["NaN"]
        assert "call sinkhorn_loss alike" in outcome["alike"]
        assert "equal sums" in outcome["masses"]
        assert "call sinkhorn_loss alike" in outcome["alike in scale"]
        assert ("x must be finite" if rank == 0 else "another process") in outcome["NaN in a mean"]
        assert "mean over its finite entries is a number above 0" in outcome["no mean"]


def test_a_process_that_dies_ends_the_others(tmp_path):
    survivor, dead = start(WORKER, 2, tmp_path, "die")
    survivor.communicate(timeout=60)
    dead.communicate(timeout=60)
    assert (survivor.returncode, dead.returncode) == (3, 9)
    assert (tmp_path / "told").read_text()


def test_a_group_is_needed():
    with pytest.raises(ValueError, match="not initialised"):
        uk.sinkhorn_loss(torch.ones(2, 2), torch.ones(2, 2), group=1)
