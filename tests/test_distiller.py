"""The loop: what it computes, what it refuses, what it leaves behind."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from distiller_problem import STUDENT_TRAIN, STUDENT_VAL, TEACHER_TRAIN, blobs, student, teacher, weights
from safetensors.torch import load_file

from ucmkd_fast import distiller as loop
from ucmkd_fast.config import TrainConfig
from ucmkd_fast.data import FeatureBank, TensorData, UnpairedLoader
from ucmkd_fast.distiller import Distiller
from ucmkd_fast.training.data_sets import DataSets
from ucmkd_fast.training.metrics import Meter
from ucmkd_fast.training.schedule import learning_rate

METHODS = [("ce", "paper"), ("kd", "paper"), ("feature", "paper"), ("joint", "paper"), ("ucmkd", "paper")]
METHODS += [("ucmkd", "published-code")]


@pytest.mark.parametrize(("method", "preset"), METHODS)
def test_ten_steps_lower_the_loss(method, preset):
    distiller = Distiller(student(), teacher(), method, preset, epochs=10, steps_per_epoch=1, lr=0.05)
    result = distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN, STUDENT_VAL)
    losses = [epoch["loss"] for epoch in result.history]
    assert losses[-1] < 0.95 * losses[0]
    assert len(losses) == 10 and all(math.isfinite(v) for epoch in result.history for v in epoch.values())


def test_the_loop_is_the_plain_loop_bit_for_bit():
    config = TrainConfig(
        epochs=3, warmup_epochs=1, batch_size=16, lr=0.1, clip_norm=0.5, weight_decay=0.01, seed=4
    )
    ours, plain = student(), student()
    result = Distiller(ours, method="ce", config=config).fit(STUDENT_TRAIN)

    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    loader = UnpairedLoader(TensorData(*STUDENT_TRAIN), None, batch_size=16, seed=4)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = learning_rate(config, epoch)
        loader.set_epoch(epoch)
        losses = []
        for batch in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(plain(batch.x), batch.y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
        assert result.history[epoch]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert torch.equal(weights(ours), weights(plain))


def test_seeds_decide_everything():
    def run(seed):
        trained = student(dropout=0.3)
        Distiller(trained, teacher(), "feature", epochs=2, batch_size=16, seed=seed).fit(
            STUDENT_TRAIN, TEACHER_TRAIN
        )
        return weights(trained)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_nothing_is_read_from_the_device_inside_a_step(monkeypatch):
    """The number of reads does not grow with the number of steps."""
    reads = 0

    def counting(real):
        def read(*args, **kwargs):
            nonlocal reads
            reads += 1
            return real(*args, **kwargs)

        return read

    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))

    def count(method, steps):
        nonlocal reads
        distiller = Distiller(student(), teacher(), method, epochs=1, steps_per_epoch=steps, batch_size=16)
        loader = distiller._loader(DataSets.of(STUDENT_TRAIN, TEACHER_TRAIN, None, None))
        batches = list(loader)

        class Drawn:
            __iter__ = lambda self: iter(batches)  # noqa: E731
            __len__ = lambda self: len(batches)  # noqa: E731
            set_epoch = lambda self, epoch: None  # noqa: E731

        monkeypatch.setattr(distiller, "_loader", lambda *data: Drawn())
        reads = 0
        distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN)
        return reads

    for method in ("ce", "ucmkd"):
        assert count(method, 3) == count(method, 9) > 0, method


def test_best_on_validation_is_kept_and_given_back(tmp_path, monkeypatch):
    """Accuracies are dictated: the second epoch is the best, the fourth only equals it."""
    seen, dictated = [], iter([0.2, 0.6, 0.5, 0.6])
    trained = student()
    distiller = Distiller(trained, method="ce", epochs=4, batch_size=16, output_dir=tmp_path / "run")

    def evaluated(data):
        seen.append(weights(trained))
        return {"accuracy": next(dictated), "loss": 1.0}

    monkeypatch.setattr(distiller, "evaluate", evaluated)
    result = distiller.fit(STUDENT_TRAIN, student_val=STUDENT_VAL)
    assert (result.best_epoch, result.best_accuracy) == (2, 0.6)
    assert [epoch["val_accuracy"] for epoch in result.history] == [0.2, 0.6, 0.5, 0.6]
    assert torch.equal(weights(trained), seen[1]) and not trained.training

    saved = student()
    saved.load_state_dict(load_file(result.student_path))
    assert result.student_path.name == "best.safetensors" and torch.equal(weights(saved), seen[1])
    saved.load_state_dict(load_file(tmp_path / "run" / "last.safetensors"))
    assert torch.equal(weights(saved), seen[3])


def test_the_last_weights_stay_where_that_is_asked_for_or_there_is_no_validation(tmp_path):
    def run(name, val, **options):
        trained = student()
        options = {"epochs": 3, "batch_size": 16, "output_dir": tmp_path / name, **options}
        return Distiller(trained, method="ce", **options).fit(STUDENT_TRAIN, student_val=val), weights(
            trained
        )

    asked, first = run("asked", STUDENT_VAL, restore_best=False)
    without, second = run("without", None)
    assert torch.equal(first, second)
    assert asked.student_path.name == without.student_path.name == "last.safetensors"
    assert asked.best_epoch is not None and without.best_epoch is None and without.best_accuracy is None


def test_evaluate_counts_and_leaves_every_modules_mode():
    model = student(dropout=0.5, norm=True)
    model.train()
    model.encoder[1].eval()  # a frozen normalisation inside a training student
    modes = [module.training for module in model.modules()]
    before = weights(model)
    x, y = blobs(37, 6, seed=9)
    kept = y != 2  # one class without samples
    found = Distiller(model, method="ce", batch_size=8).evaluate((x[kept], y[kept]))
    assert [module.training for module in model.modules()] == modes and torch.equal(before, weights(model))

    model.eval()
    logits = model(x[kept])
    right = logits.argmax(1) == y[kept]
    assert found["samples"] == int(kept.sum()) and found["accuracy"] == pytest.approx(
        right.float().mean().item()
    )
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, y[kept]).item(), rel=1e-5)
    assert found["per_class_accuracy"][2] is None
    assert found["per_class_accuracy"][1] == pytest.approx(right[y[kept] == 1].float().mean().item())
    assert sum(map(sum, found["confusion"])) == found["samples"] and sum(found["confusion"][2]) == 0


def test_a_bank_of_the_teachers_features_trains_the_same_student():
    def run(data):
        trained = student()
        Distiller(trained, teacher(), "ucmkd", epochs=2, batch_size=16).fit(STUDENT_TRAIN, data)
        return weights(trained)

    bank = FeatureBank.from_model(teacher(), TensorData(*TEACHER_TRAIN))
    torch.testing.assert_close(run(bank), run(TEACHER_TRAIN), rtol=1e-4, atol=1e-6)


def test_meter_means_and_a_change_of_names():
    meter = Meter()
    assert meter.means() == {}
    for value in (1.0, 2.0, 6.0):
        meter.add({"loss": torch.tensor(value), "half": torch.tensor(value, dtype=torch.bfloat16)})
    assert meter.means() == {"loss": 3.0, "half": 3.0}
    with pytest.raises(ValueError, match="every step must have the figures"):
        meter.add({"loss": torch.tensor(1.0)})


def test_a_diverging_run_ends_with_a_sentence_and_keeps_its_checkpoints(tmp_path, monkeypatch):
    distiller = Distiller(student(), method="ce", epochs=5, batch_size=16, output_dir=tmp_path / "run")
    monkeypatch.setattr(loop, "learning_rate", lambda config, epoch: 1e30 if epoch == 2 else 1e-2)
    with pytest.raises(FloatingPointError, match="diverged at learning rate"):
        distiller.fit(STUDENT_TRAIN)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000008",
    ]


def test_the_pages_example_runs(capsys):
    page = Path(__file__).parents[1] / "docs" / "distiller.md"
    [example] = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(compile(example, str(page), "exec"), {"__name__": "example"})
    assert "best.safetensors" in capsys.readouterr().out


def test_silence_where_there_is_no_terminal(capfd):
    Distiller(student(), method="ce", epochs=2, batch_size=16).fit(STUDENT_TRAIN)
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch):
    from rich.console import Console

    from ucmkd_fast import terminal

    console = Console(force_terminal=True, width=120, record=True, file=open("/dev/null", "w"))
    monkeypatch.setattr(terminal, "Console", lambda **options: console)
    Distiller(student(), method="ce", epochs=2, batch_size=16).fit(STUDENT_TRAIN, student_val=STUDENT_VAL)
    shown = console.export_text()
    assert "8/8" in shown and "steps/s" in shown and "val accuracy" in shown
