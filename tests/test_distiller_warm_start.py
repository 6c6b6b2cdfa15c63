"""FA from kept potentials in the training loop: fewer iterations, the same student, bit-equal after a resume."""

import shutil

import pytest
import torch
from distiller_problem import STUDENT_TRAIN, STUDENT_VAL, TEACHER_TRAIN, student, teacher, weights

from ucmkd_fast.data import UnpairedLoader
from ucmkd_fast.data.labelled import TensorData
from ucmkd_fast.distiller import Distiller
from ucmkd_fast.training.checkpoint import list_checkpoints, read_checkpoint

#: Every sample of both sides in every step.
SETTINGS = {"epochs": 4, "steps_per_epoch": 6, "batch_size": 64, "teacher_batch_size": 48, "lr": 0.02}
OPTIONS = {"reg": 0.05, "max_iter": 500}


def run(method="joint", folder=None, resume=False, options=OPTIONS, **settings):
    trained = student()
    one = Distiller(
        trained, teacher(), method, method_options=options, output_dir=folder, **{**SETTINGS, **settings}
    )
    result = one.fit(STUDENT_TRAIN, TEACHER_TRAIN, STUDENT_VAL, resume=resume)
    return one, result, weights(trained)


@pytest.mark.parametrize("method", ["feature", "joint", "ucmkd"])
def test_few_iterations_lead_to_the_same_student(method):
    one, warm, got = run(method, warm_start=1e-4)
    _, cold, want = run(method)
    assert (got - want).norm() <= 2e-2 * want.norm()
    assert warm.history[-1]["fa"] == pytest.approx(cold.history[-1]["fa"], rel=2e-2)
    first, last = warm.history[0]["fa_iterations"], warm.history[-1]["fa_iterations"]
    assert last < first < 100 and cold.history[0]["fa_iterations"] == 500
    kept = one._step.warm_start
    assert kept.bank.ne(0).all() and kept.student.ne(0).all() and kept.last_bank.sum() == 48


def test_unbalanced_alignment_starts_warm_as_well():
    """The bank comes first in the warm problem: a pair must hold the sides that it holds in the cold one."""
    for pair in (0.4, [0.4, None]):
        options = {**OPTIONS, "unbalanced": pair}
        _, warm, got = run("feature", warm_start=1e-5, options=options)
        _, cold, want = run("feature", options=options)
        assert (got - want).norm() <= 2e-2 * want.norm()
        assert warm.history[-1]["fa"] == pytest.approx(cold.history[-1]["fa"], rel=2e-2)
        assert warm.history[-1]["fa_iterations"] < 100


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    settings = {"warm_start": 1e-4, "checkpoint_every": 2, "batch_size": 24, "teacher_batch_size": 16}
    _, whole, want = run(folder=tmp_path, **settings)
    newest, _ = list_checkpoints(tmp_path / "checkpoints")
    assert read_checkpoint(newest)["potentials"]["bank"].shape == (48,)
    shutil.rmtree(newest)
    _, again, got = run(folder=tmp_path, resume=True, **settings)
    assert torch.equal(got, want)
    assert [e["fa_iterations"] for e in again.history] == [e["fa_iterations"] for e in whole.history]


def test_batches_say_which_samples_they_hold():
    data = TensorData(*STUDENT_TRAIN), TensorData(*TEACHER_TRAIN)
    for draw in ("independent", "class-matched"):
        parts = [
            UnpairedLoader(*data, batch_size=16, draw=draw, rank=k, world_size=2).batch_at(1, 3)
            for k in (0, 1)
        ]
        for batch in parts:
            assert torch.equal(batch.x, data[0].x[batch.rows])
            assert torch.equal(batch.teacher_x, data[1].x[batch.teacher_rows])
        assert len(torch.cat([batch.rows for batch in parts]).unique()) == 16


@pytest.mark.parametrize(
    ("method", "options"), [("ce", {}), ("kd", {}), ("label-aware-fa", {}), ("ucmkd", {"order": 2})]
)
def test_methods_that_keep_no_potentials_refuse(method, options):
    with pytest.raises(ValueError, match=f"warm_start keeps the potentials .* method '{method}'"):
        Distiller(student(), teacher(), method, method_options=options, warm_start=1e-3)


def test_settings_that_cannot_be():
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="warm_start must be a finite number > 0"):
            Distiller(student(), teacher(), "joint", warm_start=wrong)
