"""The loop with methods that own modules or train the teacher: interrupted runs, what is returned."""

from __future__ import annotations

import copy

import pytest
import torch
from map_models import image_teacher, samples, series_student
from torch import nn

from ucmkd_fast.data import TensorData
from ucmkd_fast.distiller import Distiller

METHODS = ("norm", "reviewkd", "c2kd", "fitnet")


class Stop(Exception):
    pass


class StopAt(nn.Module):
    """Passes its input on, and raises at one of the calls in train mode."""

    def __init__(self, call: int | None):
        super().__init__()
        self.left = call

    def forward(self, x):
        if self.training and self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise Stop
        return x


STUDENT_TRAIN, TEACHER_TRAIN = samples(48, 1, 12, seed=3), samples(40, 1, 6, 6, seed=4)


def fitted(name, folder, stop_at=None, **how):
    """A run of four epochs of three steps, or the start of one."""
    torch.manual_seed(5)
    student, teacher = series_student(dropout=0.2), image_teacher()
    student.encoder[2] = nn.Sequential(student.encoder[2], StopAt(stop_at))
    distiller = Distiller(
        student, teacher, name, output_dir=folder, epochs=4, steps_per_epoch=3, batch_size=16, lr=0.05
    )
    result = distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN, samples(16, 1, 12, seed=6), **how)
    learned = {"student": student, "teacher": teacher, "method": distiller.method}
    weights = {f"{k}.{n}": t.clone() for k, m in learned.items() for n, t in m.state_dict().items()}
    return result, weights


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(name, tmp_path):
    """Student, teacher where it learns, and the method's own modules, bit for bit."""
    expected, weights = fitted(name, tmp_path / "whole")
    with pytest.raises(Stop):
        fitted(name, tmp_path / "cut", stop_at=8)
    result, again = fitted(name, tmp_path / "cut", resume=True)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    assert [e["loss"] for e in result.history] == [e["loss"] for e in expected.history]
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_the_same_objects_go_on_although_the_teacher_has_learned(tmp_path):
    torch.manual_seed(5)
    student, teacher = series_student(), image_teacher()
    student.encoder[2] = StopAt(5)
    distiller = Distiller(student, teacher, "c2kd", output_dir=tmp_path, epochs=3, steps_per_epoch=3)
    with pytest.raises(Stop):
        distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN)
    student.encoder[2].left = None
    assert len(distiller.fit(STUDENT_TRAIN, TEACHER_TRAIN, resume=True).history) == 3
    other = Distiller(
        series_student(), image_teacher(), "c2kd", output_dir=tmp_path, epochs=3, steps_per_epoch=3
    )
    with pytest.raises(ValueError, match="another one: teacher_head"):
        other.fit(STUDENT_TRAIN, TEACHER_TRAIN, resume=True)


def test_a_bank_of_features_is_refused_where_the_teacher_learns():
    bank = TensorData(torch.randn(40, 8), TEACHER_TRAIN[1])
    bank.holds_features = True
    with pytest.raises(ValueError, match="cached features"):
        Distiller(series_student(), image_teacher(), "c2kd", epochs=1).fit(STUDENT_TRAIN, bank)


def test_the_loop_trains_and_returns_the_teacher():
    torch.manual_seed(5)
    student, teacher = series_student(), image_teacher()
    before = copy.deepcopy(teacher.state_dict())
    result = Distiller(student, teacher, "c2kd", epochs=2, steps_per_epoch=2, lr=0.02).fit(
        STUDENT_TRAIN, TEACHER_TRAIN
    )
    assert all(not torch.equal(p, before[name]) for name, p in teacher.named_parameters() if p.dim() > 1)
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    assert [epoch["lr"] for epoch in result.history] == pytest.approx([0.01, 1e-4 + 0.0099 * 0.99**0.9])
