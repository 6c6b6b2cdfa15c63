"""What is looked at once an epoch: its numbers, and when it says something."""

from __future__ import annotations

import warnings

import pytest
import torch
from distiller_problem import CLASSES, STUDENT_TRAIN, TEACHER_TRAIN, student, teacher, weights
from torch import nn

import ucmkd_fast as uk
from ucmkd_fast.data.batch import Batch
from ucmkd_fast.distiller import Distiller
from ucmkd_fast.methods import FrozenTeacher, Step
from ucmkd_fast.models import Classifier
from ucmkd_fast.training.diagnosis import diagnose, warn_where_classes_are_mixed_up


def aligned(shift: int):
    """Student features of class k beside the teacher's of class k + shift; the teacher's head reads them."""
    y = torch.arange(12) % CLASSES
    corners = 3 * torch.eye(CLASSES)
    head = nn.Linear(CLASSES, CLASSES, bias=False)
    head.weight.data = 4 * torch.eye(CLASSES)
    model = Classifier(nn.Identity(), head)
    batch = Batch(corners[(y + shift) % CLASSES], y, teacher_feature=corners[y], teacher_y=y)
    return Step(Classifier(nn.Identity(), nn.Linear(CLASSES, CLASSES)), FrozenTeacher(model)), batch


def test_figures_of_what_is_right_and_of_what_is_mixed_up():
    right, wrong = (diagnose(*aligned(shift)) for shift in (0, 1))
    assert right["probe_head_accuracy"] == 1 and wrong["probe_head_accuracy"] == 0
    assert right["probe_fa"] < 0.01 and wrong["probe_fa"] < 0.01  # FA alone does not tell them apart
    assert right["probe_confusion"] < 0.01 and wrong["probe_confusion"] > 0.99
    assert right["probe_kappa_10"] > 0.99 and wrong["probe_kappa_90"] < 0.01
    step, batch = aligned(0)
    batch.teacher_y = None
    assert "probe_confusion" not in diagnose(step, batch)


def test_the_plans_mass_between_classes():
    torch.manual_seed(0)
    batch = Batch(
        torch.randn(9, 6),
        torch.arange(9) % 4,
        teacher_feature=torch.randn(7, 8),
        teacher_y=torch.arange(7) % 4,
    )
    step = Step(student(), FrozenTeacher(teacher()))
    feature = step.student.encode(batch.x).detach()
    result = uk.sinkhorn_loss(feature, batch.teacher_feature, return_result=True)
    mass = sum(result.plan()[i, j] for i in range(9) for j in range(7) if batch.y[i] != batch.teacher_y[j])
    found = diagnose(step, batch)
    torch.testing.assert_close(found["probe_confusion"], mass)
    torch.testing.assert_close(found["probe_fa"], result.value)


def history(fa, read):
    return [{"probe_fa": f, "probe_head_accuracy": r} for f, r in zip(fa, read, strict=True)]


def test_one_warning_with_advice_where_fa_falls_and_the_head_stays_at_chance():
    with pytest.warns(UserWarning, match=r"0.91 to 0.30.*8 %.*chance: 10 %.*'label-aware-fa'"):
        assert warn_where_classes_are_mixed_up(history([0.91, 0.6, 0.3], [0.1, 0.1, 0.08]), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_where_classes_are_mixed_up(history([0.91, 0.6, 0.3], [0.1, 0.3, 0.6]), 10)
        assert not warn_where_classes_are_mixed_up(history([0.91, 0.9, 0.9], [0.1, 0.1, 0.1]), 10)
        assert not warn_where_classes_are_mixed_up(history([0.91, 0.3], [0.1, 0.1]), 10)
        assert not warn_where_classes_are_mixed_up([{"loss": 1.0}] * 5, 10)


def test_the_loop_reports_it_and_it_changes_no_weight():
    def fit(method, **options):
        trained = student(dropout=0.2, norm=True)
        one = Distiller(trained, teacher(), method, epochs=3, steps_per_epoch=2, batch_size=16, **options)
        result = one.fit(STUDENT_TRAIN, TEACHER_TRAIN)
        return result.history, weights(trained)

    told, first = fit("feature")
    silent, second = fit("feature", diagnose=False)
    assert torch.equal(first, second)
    assert all(0 <= epoch["probe_confusion"] <= 1 for epoch in told) and "probe_fa" not in silent[0]
    assert "probe_fa" not in fit("ce")[0][0]


def test_the_loop_warns_once():
    def shifted(x, y):
        return x, (y + 1) % CLASSES

    # A student whose labels are all renamed against the teacher's: FA can only match the wrong classes.
    trained, taught = student(), teacher()
    Distiller(taught, method="ce", epochs=30, lr=0.1, batch_size=48).fit(TEACHER_TRAIN)
    with pytest.warns(UserWarning) as caught:
        options = {"fa_weight": 10.0}
        one = Distiller(
            trained, taught, "label-aware-fa", epochs=12, lr=0.1, batch_size=32, method_options=options
        )
        one.fit(STUDENT_TRAIN, shifted(*TEACHER_TRAIN))
    assert sum("clusters are matched to the wrong classes" in str(w.message) for w in caught) == 1
