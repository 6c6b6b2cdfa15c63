"""What trackers are told: figures of every step, of every epoch; the same weights with them and without."""

from __future__ import annotations

import pytest
import torch
from distiller_problem import CLASSES, STUDENT_TRAIN, TEACHER_TRAIN, student, teacher, unlabelled_for, weights
from host_reads import NoHostRead, forbid_python_reads
from torch import nn

from ucmkd_fast.alignment import KAPPA_BINS
from ucmkd_fast.bilevel.temporary_point import joint_norm
from ucmkd_fast.data.batch import Batch
from ucmkd_fast.distiller import Distiller
from ucmkd_fast.methods import FrozenTeacher, Step, build_method
from ucmkd_fast.training import tracking

STEPS, EPOCHS = 3, 2


class Recorder:
    """A tracker that keeps what it is told."""

    main_process_only = True

    def __init__(self, name="mlflow"):
        self.name, self.told = name, []

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self):
        pass


@pytest.fixture
def recorder(monkeypatch):
    """Stands in for MLflow: what accelerate would open is this."""
    one = Recorder()
    monkeypatch.setattr(tracking, "check_trackers", lambda *_, **__: None)
    monkeypatch.setattr("ucmkd_fast.distiller.check_trackers", lambda *_, **__: None)
    monkeypatch.setattr(
        "accelerate.Accelerator.init_trackers", lambda self, *_, **__: self.trackers.append(one)
    )
    return one


def fit(method, trackers=(), output_dir=None, **train):
    settings = {"epochs": EPOCHS, "steps_per_epoch": STEPS, "batch_size": 16, "lr": 0.05} | train
    one = Distiller(student(), teacher(), method, output_dir=output_dir, trackers=trackers, **settings)
    extra = unlabelled_for(one)
    return one.fit(STUDENT_TRAIN, TEACHER_TRAIN, **extra), weights(one.student)


def by_step(told, prefix):
    return {
        step: {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
        for step, values in told
        if any(k.startswith(prefix) for k in values)
    }


FA = {"marginal_error", "fa_iterations", "fa", "kappa"}
EXPECTED = {
    "ucmkd": FA | {"la", "inner_fa_grad_norm", "inner_la_grad_norm"},
    "joint": FA | {"la"},
    "feature": FA,
    "label-aware-fa": FA,
    "ucmkd-plus": {"labelling_marginal_error", "marginal_error"},
    "kd": {"kl"},
}


@pytest.mark.parametrize("method", EXPECTED)
def test_every_step_is_told_once_in_order(recorder, method):
    result, _ = fit(method, "mlflow", log_every=2)
    steps, epochs = by_step(recorder.told, "step/"), by_step(recorder.told, "epoch/")
    assert list(steps) == list(range(1, STEPS * EPOCHS + 1))
    assert [step for step, _ in recorder.told] == sorted(step for step, _ in recorder.told)
    for figures in steps.values():
        assert figures.keys() >= EXPECTED[method] | {"loss", "ce", "grad_norm"}
        shares = [v for name, v in figures.items() if name.startswith("kappa_histogram/")]
        assert len(shares) == (KAPPA_BINS if "kappa" in EXPECTED[method] else 0)
        assert not shares or sum(shares) == pytest.approx(1)
    # Read after every second step, and at the end of an epoch.
    assert [step for step, f in steps.items() if "samples_per_second" in f] == [2, 3, 5, 6]
    assert list(epochs) == [STEPS, 2 * STEPS] and epochs[STEPS]["epoch"] == 1
    for k, history in enumerate(result.history):
        mean = sum(steps[STEPS * k + i + 1]["loss"] for i in range(STEPS)) / STEPS
        assert mean == pytest.approx(history["loss"], rel=1e-5)


@pytest.mark.parametrize("method", ["ucmkd", "joint", "ucmkd-plus"])
def test_the_weights_are_the_same_with_trackers_and_without(recorder, method):
    assert torch.equal(fit(method, "mlflow")[1], fit(method)[1])


def test_without_a_clip_the_outer_norm_is_told_all_the_same(recorder):
    fit("ucmkd", "mlflow", clip_norm=None)
    assert all(f["grad_norm"] > 0 for f in by_step(recorder.told, "step/").values())


def test_tensorboard_has_scalars_and_the_histogram(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit("ucmkd", "tensorboard", tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "logs" / "ucmkd"), {"histograms": 0})
    events.Reload()
    histograms = events.Histograms("step/kappa_histogram")
    assert [event.step for event in histograms] == list(range(1, STEPS * EPOCHS + 1))
    mean = events.Scalars("step/kappa")[0].value
    told = histograms[0].histogram_value
    assert told.num == pytest.approx(1) and len(told.bucket) == KAPPA_BINS
    assert told.sum == pytest.approx(mean, abs=0.5 / KAPPA_BINS)
    for name in ("fa", "la", "marginal_error", "fa_iterations", "inner_fa_grad_norm", "grad_norm"):
        assert len(events.Scalars(f"step/{name}")) == STEPS * EPOCHS


def test_wandb_is_given_its_own_histogram(monkeypatch):
    made = []

    class Wandb:
        @staticmethod
        def Histogram(np_histogram):  # noqa: N802  (its name there)
            made.append(np_histogram)
            return "a histogram"

    monkeypatch.setitem(__import__("sys").modules, "wandb", Wandb)
    one = Recorder("wandb")
    tracking._log_wandb(one, {"step/fa": 0.5, "step/kappa_histogram": [0.25, 0.75]}, 7)
    assert one.told == [(7, {"step/fa": 0.5, "step/kappa_histogram": "a histogram"})]
    assert made[0][0].tolist() == [0.25, 0.75] and made[0][1].tolist() == [0, 0.5, 1]


def watched(method, **options):
    torch.manual_seed(0)
    step = Step(student(), FrozenTeacher(teacher()), watched=True)
    y = torch.arange(16) % CLASSES
    batch = Batch(torch.randn(16, 6), y, teacher_feature=torch.randn(12, 8))
    method = build_method(method, **options)
    return step, batch, method, method.backward(step, batch)


@pytest.mark.parametrize("order", [1, 2])
def test_figures_are_what_they_say(order):
    step, batch, _, parts = watched("ucmkd", order=order, max_iter=5)
    twin = student()
    z = twin.encode(batch.x)
    q = step.teacher.head(z.detach())
    kappa = q.softmax(1)[torch.arange(16), batch.y]
    import ucmkd_fast as uk

    told = uk.sinkhorn_loss(z, batch.teacher_feature, metric="l2", max_iter=5, return_result=True)
    torch.testing.assert_close(step.notes["marginal_error"], told.marginal_error, rtol=1e-4, atol=1e-6)
    assert step.notes["fa_iterations"] == told.n_iter
    norm = joint_norm(list(torch.autograd.grad(told.value, list(twin.encoder.parameters()))))
    torch.testing.assert_close(step.notes["inner_fa_grad_norm"], norm, rtol=1e-4, atol=1e-6)
    # LA sees the student after the FA step; at its own point kappa is another one, but as many samples.
    histogram = step.notes["kappa_histogram"]
    assert histogram.shape == (KAPPA_BINS,) and float(histogram.sum()) == pytest.approx(1)
    assert float(parts["kappa"]) == pytest.approx(float(kappa.mean()), abs=0.1)


def test_the_histogram_of_feature_is_that_of_its_kappa():
    step, batch, _, _ = watched("feature")
    twin = student()
    kappa = step.teacher.head(twin.encode(batch.x)).softmax(1)[torch.arange(16), batch.y].detach()
    expected = torch.histc(kappa, KAPPA_BINS, 0, 1) / 16
    torch.testing.assert_close(step.notes["kappa_histogram"], expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [("ucmkd", {}), ("ucmkd", {"preset": "published-code", "n2": 2}), ("joint", {}), ("feature", {})],
)
def test_a_watched_step_reads_nothing_on_the_host(monkeypatch, name, options):
    step, batch, method, _ = watched(name, **options)
    step.notes.clear()
    forbid_python_reads(monkeypatch)
    with NoHostRead():
        method.backward(step, batch)
    assert {"marginal_error", "fa_iterations", "kappa_histogram"} <= step.notes.keys()


def test_no_pass_over_the_weights_unless_watched():
    step, batch, method, _ = watched("ucmkd")
    step.watched = False
    step.notes.clear()
    method.backward(step, batch)
    assert step.notes.keys() == {"marginal_error", "fa_iterations"}


def test_frozen_encoders_have_no_norm(recorder):
    frozen = student()
    for parameter in frozen.encoder.parameters():
        parameter.requires_grad_(False)
    one = Distiller(frozen, teacher(), "ucmkd", epochs=1, steps_per_epoch=2, batch_size=16, trackers="mlflow")
    one.fit(STUDENT_TRAIN, TEACHER_TRAIN)
    figures = by_step(recorder.told, "step/")[1]
    assert "inner_la_grad_norm" in figures and "inner_fa_grad_norm" not in figures
    assert isinstance(frozen.head, nn.Linear)
