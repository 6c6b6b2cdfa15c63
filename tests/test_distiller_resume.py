"""An interrupted run ends with the weights of an uninterrupted one, bit for bit; no run is overwritten."""

import json
import random
import re

import numpy as np
import pytest
import torch
import yaml
from distiller_problem import (
    STUDENT_TRAIN,
    STUDENT_VAL,
    TEACHER_TRAIN,
    blobs,
    student,
    teacher,
    unlabelled_for,
    weights,
)
from distiller_worker import run_workers
from safetensors import safe_open
from safetensors.torch import load_file

from ucmkd_fast.distiller import Distiller
from ucmkd_fast.methods import LossMethod, base

EPOCHS, STEPS = 5, 4


class Stop(Exception):
    pass


class RandomInputs(torch.nn.Module):
    """Noise from NumPy and Python on every training input, as a user's transforms draw it."""

    def __init__(self, encoder, stop_at=None):
        super().__init__()
        self.encoder, self.stop_at, self.calls = encoder, stop_at, 0

    def forward(self, x):
        if self.training:
            self.calls += 1
            if self.calls == self.stop_at:
                raise Stop
            x = x + 0.1 * float(np.random.randn()) + 0.1 * random.gauss(0, 1)
        return self.encoder(x)


def distiller(folder, method="ucmkd", preset="paper", stop_at=None, **options):
    trained = student(dropout=0.2, norm=True)
    trained.encoder = RandomInputs(trained.encoder, stop_at)
    settings = {"epochs": EPOCHS, "steps_per_epoch": STEPS, "batch_size": 16, "warmup_epochs": 1, "lr": 0.05}
    return Distiller(trained, teacher(), method, preset, output_dir=folder, **{**settings, **options})


def fit(one, **how):
    result = one.fit(STUDENT_TRAIN, TEACHER_TRAIN, STUDENT_VAL, **unlabelled_for(one), **how)
    return result, weights(one.student)


def without_time(history):
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in history]


@pytest.mark.parametrize(
    ("method", "preset", "options"),
    [
        ("ce", "paper", {"optimizer": "adamw", "weight_decay": 0.01}),
        ("kd", "paper", {"checkpoint_every": 2}),
        ("feature", "paper", {"momentum": 0.0}),
        ("ucmkd", "paper", {}),
        ("ucmkd", "published-code", {"optimizer": "adamw", "restore_best": False}),
        ("self-training", "paper", {"unlabelled_batch_size": 24}),
        ("ucmkd-plus", "paper", {"method_options": {"bank_size": 20, "ramp": 0.7}}),
    ],
)
def test_resuming_gives_the_uninterrupted_runs_weights(tmp_path, method, preset, options):
    whole, expected = fit(distiller(None, method, preset, **options))
    for stop_at in (1, 6, 13, 25):
        folder = tmp_path / str(stop_at)
        try:
            fit(distiller(folder, method, preset, stop_at, **options))
        except Stop:
            pass
        torch.manual_seed(stop_at), np.random.seed(stop_at), random.seed(stop_at)
        resumed, got = fit(distiller(folder, method, preset, **options), resume=True)
        assert torch.equal(got, expected), stop_at
        assert without_time(resumed.history) == without_time(whole.history)
        assert (resumed.best_epoch, resumed.best_accuracy) == (whole.best_epoch, whole.best_accuracy)
        saved = student(dropout=0.2, norm=True)
        saved.encoder = RandomInputs(saved.encoder)
        saved.load_state_dict(load_file(resumed.student_path))
        assert torch.equal(weights(saved), expected)


class Centred(LossMethod):
    """Owns a module, its optimiser and a buffer, as methods with a projector do."""

    name = "test-centred"
    uses_teacher = False

    def setup(self, student, teacher, example):
        self.shift = torch.nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.optimizer = torch.optim.Adam(self.shift.parameters(), lr=0.05)

    def own_optimizers(self):
        return [self.optimizer]

    def loss(self, step, batch):
        logits = step.student.head(step.student.encode(batch.x))
        self.mean.lerp_(logits.detach().mean(0), 0.1)
        return {"loss": torch.nn.functional.cross_entropy(logits + self.shift(logits - self.mean), batch.y)}


@pytest.fixture
def centred(monkeypatch):
    monkeypatch.setitem(base._REGISTRY, Centred.name, Centred)
    return Centred.name


def test_a_methods_own_modules_and_optimisers_go_on_as_well(tmp_path, centred):
    one = distiller(None, centred)
    _, expected = fit(one)
    with pytest.raises(Stop):
        fit(distiller(tmp_path, centred, stop_at=15))
    other = distiller(tmp_path, centred)
    _, got = fit(other, resume=True)
    assert torch.equal(got, expected)
    assert torch.equal(weights(other.method), weights(one.method)) and one.method.mean.abs().sum() > 0


@pytest.mark.parametrize("best", [1, EPOCHS])
def test_a_checkpoint_holds_the_best_weights_once(tmp_path, monkeypatch, best):
    one = distiller(tmp_path)
    accuracies = iter([float(epoch == best) for epoch in range(1, EPOCHS + 1)])
    monkeypatch.setattr(one, "evaluate", lambda data: {"accuracy": next(accuracies), "loss": 1.0})
    result, _ = fit(one)
    names = load_file(result.checkpoint_path / "tensors.safetensors")
    assert any(name.startswith("standing/best_weights") for name in names) == (best != EPOCHS)
    assert torch.equal(fit(distiller(tmp_path), resume=True)[1], weights(one.student))


def test_a_finished_run_resumes_to_its_result_without_training(tmp_path):
    first, expected = fit(distiller(tmp_path / "run"))
    again, got = fit(distiller(tmp_path / "run", stop_at=1), resume=True)
    assert torch.equal(got, expected) and again.history == first.history


def test_a_damaged_checkpoint_is_reported_and_the_one_before_gives_the_same_weights(tmp_path):
    _, expected = fit(distiller(None))
    with pytest.raises(Stop):
        fit(distiller(tmp_path / "run", stop_at=3 * 3 * STEPS + 2))
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    (newest / "tensors.safetensors").write_bytes((newest / "tensors.safetensors").read_bytes()[:-3])
    with pytest.warns(UserWarning, match=f"{newest} is damaged.*going on from the one before"):
        result, got = fit(distiller(tmp_path / "run"), resume=True)
    assert torch.equal(got, expected) and len(result.history) == EPOCHS


def test_resuming_from_a_path_leaves_its_folder_alone(tmp_path):
    _, expected = fit(distiller(None))
    with pytest.raises(Stop):
        fit(distiller(tmp_path / "first", stop_at=3 * 3 * STEPS + 2))
    before = {p: p.read_bytes() for p in sorted((tmp_path / "first").rglob("*")) if p.is_file()}
    for source in (tmp_path / "first", sorted((tmp_path / "first" / "checkpoints").iterdir())[0]):
        target = tmp_path / f"from-{source.name}"
        _, got = fit(distiller(target), resume=source)
        assert torch.equal(got, expected) and (target / "best.safetensors").exists()
    assert {p: p.read_bytes() for p in sorted((tmp_path / "first").rglob("*")) if p.is_file()} == before


def test_what_the_folder_says(tmp_path):
    result, _ = fit(distiller(tmp_path / "run", method_options={"n1": 2}, trackers="tensorboard"))
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["method"] == {"name": "ucmkd", "options": {"preset": "paper", "n1": 2}}
    assert settings["train"]["draw"] == "independent" and settings["train"]["mixed_precision"] == "no"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["versions"]["torch"] == torch.__version__ and record["processes"] == 1
    with safe_open(tmp_path / "run" / "best.safetensors", "pt") as file:
        about = file.metadata()
    assert int(about["epoch"]) == result.best_epoch and float(about["val_accuracy"]) == result.best_accuracy
    assert result.checkpoint_path.name == f"step-{EPOCHS * STEPS:08d}"
    suffixes = {
        path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file() and "logs" not in path.parts
    }
    assert suffixes == {".yaml", ".json", ".safetensors", ""}


def test_tensorboard_has_the_curves_once_also_after_a_resume(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {"trackers": "tensorboard", "checkpoint_every": 2}
    with pytest.raises(Stop):
        fit(distiller(tmp_path, stop_at=3 * 3 * STEPS + 2, **options))
    result, _ = fit(distiller(tmp_path, **options), resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "logs" / "ucmkd"))
    events.Reload()
    losses = events.Scalars("epoch/loss")
    assert [event.step for event in losses] == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    assert [event.value for event in losses] == pytest.approx([epoch["loss"] for epoch in result.history])
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, STEPS * EPOCHS + 1))


def test_no_run_is_overwritten_unasked(tmp_path):
    folder = tmp_path / "run"
    fit(distiller(folder))
    (folder / "notes.txt").write_text("mine")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    refused = [
        (distiller(folder), {}, ValueError, "holds a run already"),
        (
            distiller(folder, lr=0.06),
            {"resume": True},
            ValueError,
            r"train\.lr is 0\.05 there and 0\.06 here",
        ),
        (distiller(folder, "kd"), {"resume": True}, ValueError, "method.name is 'ucmkd' there and 'kd' here"),
        (distiller(folder), {"resume": True, "overwrite": True}, ValueError, "exclude each other"),
        (distiller(None), {"resume": True}, ValueError, "needs an output_dir"),
        (distiller(None), {"resume": tmp_path / "none"}, FileNotFoundError, "found nothing"),
        (distiller(None), {"resume": tmp_path}, FileNotFoundError, "expected a run at"),
        (
            distiller(folder),
            {"resume": folder / "checkpoints" / "step-00000001"},
            FileNotFoundError,
            "nothing",
        ),
        (distiller(folder / "notes.txt"), {}, FileNotFoundError, "expected a readable folder"),
    ]
    for one, how, error, said in refused:
        with pytest.raises(error, match=said):
            fit(one, **how)
    other = Distiller(student(), teacher(), "ucmkd", output_dir=folder, **distiller(None).config.to_dict())
    with pytest.raises(ValueError, match="data.student_train.samples is 64 there and 60 here"):
        other.fit(blobs(60, 6, seed=3), TEACHER_TRAIN, STUDENT_VAL, resume=True)
    third = Distiller(student(), teacher(), "ucmkd", output_dir=folder, **distiller(None).config.to_dict())
    with pytest.raises(ValueError, match="of another student or method"):
        third.fit(STUDENT_TRAIN, TEACHER_TRAIN, STUDENT_VAL, resume=True)  # its layers have other names
    with torch.no_grad():
        deranged = teacher()
        deranged.head.weight.copy_(deranged.head.weight.roll(1, 0))
    one = distiller(folder)
    one = Distiller(one.student, deranged, "ucmkd", output_dir=folder, config=one.config)
    with pytest.raises(ValueError, match="teacher_head"):
        fit(one, resume=True)
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {p: b for p, b in after.items() if p.name != "run.json"} == {
        p: b for p, b in before.items() if p.name != "run.json"
    }


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path):
    fit(distiller(tmp_path, epochs=2, trackers="tensorboard"))
    (tmp_path / "notes.txt").write_text("mine")
    result, _ = fit(distiller(tmp_path, epochs=3), overwrite=True)
    assert len(result.history) == 3 and (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "logs").exists()
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == ["step-00000008", "step-00000012"]


def test_bookkeeping_may_change_on_resume(tmp_path):
    with pytest.raises(Stop):
        fit(distiller(tmp_path, stop_at=30))
    result, _ = fit(
        distiller(tmp_path, checkpoint_every=3, progress=False, trackers="tensorboard"), resume=True
    )
    assert len(result.history) == EPOCHS


def test_a_damaged_run_record_is_said(tmp_path):
    fit(distiller(tmp_path, epochs=2))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'run.json'} is damaged")):
        fit(distiller(tmp_path, epochs=2), resume=True)


def test_kill_9_at_random_moments_does_not_change_the_weights(tmp_path):
    """A worker is started, killed and resumed until it ends; its weights are those of a run in peace."""
    [report] = run_workers("killed", tmp_path)
    assert json.loads(report)["kills"] >= 3 and json.loads(report)["equal"], report


@pytest.mark.long
def test_fifty_kills_do_not_change_the_weights(tmp_path, monkeypatch, record_property):
    """As above, with other moments, until fifty have been survived."""
    kills = survived = 0
    for seed in range(100):
        if kills >= 50:
            break
        monkeypatch.setenv("UCMKD_TEST_SEED", str(seed))
        [report] = run_workers("killed", tmp_path / str(seed))
        told = json.loads(report)
        kills += told["kills"]
        survived += told["kills"] * told["equal"]
    record_property("kills", kills)
    record_property("survived", survived)
    assert kills >= 50 and survived == kills
