"""Several processes: two gloo ranks train as one process does on the samples of both."""

import shutil

import pytest
import torch
import torch.distributed as dist
from distiller_problem import STUDENT_TRAIN, STUDENT_VAL, TEACHER_TRAIN, student, teacher
from distiller_worker import RANK_CASES, RANK_SETTINGS, SHARED_CASES, run_case, run_workers

from ucmkd_fast.distiller import Distiller
from ucmkd_fast.training.checkpoint import list_checkpoints


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    alone = Distiller(
        student(), teacher(), "joint", output_dir=folder / "alone", warm_start=1e-4, **RANK_SETTINGS
    )
    alone.fit(STUDENT_TRAIN, TEACHER_TRAIN)
    shutil.rmtree(list_checkpoints(folder / "alone" / "checkpoints")[0])
    run_workers("ranks", folder, processes=2)
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", RANK_CASES | SHARED_CASES)
def test_two_ranks_equal_one_process(two_ranks, name):
    (first, history), (second, other_history) = (rank[name] for rank in two_ranks[1])
    alone, expected = run_case((RANK_CASES | SHARED_CASES)[name])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-5)
    assert (first - alone).norm() <= 1e-5 * alone.norm()
    for left, right, one in zip(history, other_history, expected, strict=True):
        for figure, value in one.items():
            if figure != "seconds":
                assert left[figure] == right[figure] == pytest.approx(value, rel=1e-4, abs=1e-5), figure


@pytest.mark.parametrize("name", ["in step", "resumed"])
def test_ranks_stay_in_step_with_normalisation_and_dropout(two_ranks, name):
    (first, history), (second, _) = (rank[name] for rank in two_ranks[1])
    assert torch.equal(first, second)
    whole, _ = two_ranks[1][0]["in step"]
    assert torch.equal(first, whole)  # and a resumed run of two ranks is the uninterrupted one
    assert len(history) == RANK_SETTINGS["epochs"]


def test_ranks_stay_in_step_where_the_teacher_learns(two_ranks):
    (first, history), (second, other_history) = (rank["c2kd"] for rank in two_ranks[1])
    assert torch.equal(first, second)
    assert [e["loss"] for e in history] == [e["loss"] for e in other_history]
    assert history[-1]["loss"] < history[0]["loss"]


def test_another_number_of_processes_goes_on_and_says_what_is_lost(two_ranks, tmp_path):
    one = Distiller(student(dropout=0.3, norm=True), teacher(), "ucmkd", output_dir=tmp_path, **RANK_SETTINGS)
    with pytest.warns(UserWarning, match="the checkpoint is of 2 processes and goes on with 1"):
        result = one.fit(STUDENT_TRAIN, TEACHER_TRAIN, STUDENT_VAL, resume=two_ranks[0] / "run")
    assert len(result.history) == RANK_SETTINGS["epochs"]


def test_two_processes_go_on_with_the_run_of_one(two_ranks):
    """Their own dropout aside, the student is that of the uninterrupted run; potentials come along."""
    (first, history), (second, _) = (rank["from one process"] for rank in two_ranks[1])
    want, expected = run_case({"method": "joint", "warm_start": 1e-4})
    assert torch.equal(first, second)
    torch.testing.assert_close(first, want, rtol=0, atol=1e-5)
    assert [e["fa_iterations"] for e in history] == [e["fa_iterations"] for e in expected]


def test_a_full_disk_on_one_rank_ends_all(two_ranks, tmp_path):
    first, second = run_workers("full", tmp_path, processes=2)  # which gives up on a rank that waits for ever
    assert first.startswith("rank 0:") and "No space left" in first
    assert (
        second == "rank 1: rank 0 could not write the run's files, see its message; this rank stops with it"
    )


def test_bf16(tmp_path):
    assert run_workers("bf16", tmp_path) == [f"all {len(RANK_CASES)}"]
