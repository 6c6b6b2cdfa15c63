"""What is looked at once an epoch: its numbers, and when it says something."""

from __future__ import annotations

import copy
import warnings
from functools import cache

import pytest
import torch
from distiller_problem import CLASSES, STUDENT_TRAIN, TEACHER_TRAIN, WIDTH, student, teacher, weights
from torch import nn

import ucmkd_fast as uk
from ucmkd_fast.alignment import Transport
from ucmkd_fast.data.batch import Batch
from ucmkd_fast.distiller import Distiller
from ucmkd_fast.methods import FrozenTeacher, Step, build_method
from ucmkd_fast.models import Classifier
from ucmkd_fast.training.diagnosis import CannotHelp, Diagnosis, diagnose


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


def test_pull_and_partners_are_what_they_say():
    torch.manual_seed(0)
    batch = Batch(torch.randn(9, 6), torch.arange(9) % 4, teacher_feature=torch.randn(7, 8))
    step = Step(student(), FrozenTeacher(teacher()))
    found = diagnose(step, batch, Transport("l2", 0.3, 50))
    z = step.student.encode(batch.x).detach().requires_grad_()
    result = uk.sinkhorn_loss(z, batch.teacher_feature, metric="l2", reg=0.3, max_iter=50, return_result=True)
    ce = torch.nn.functional.cross_entropy(step.student.head(z), batch.y)
    fa, ours = (torch.autograd.grad(loss, z)[0].norm() for loss in (result.value, ce))
    torch.testing.assert_close(found["probe_fa_pull"], fa / ours)
    rows = [torch.distributions.Categorical(probs=row).entropy() for row in result.plan().detach()]
    torch.testing.assert_close(found["probe_partners"], torch.stack(rows).mean().exp())
    assert all(parameter.grad is None for parameter in step.student.parameters())


def test_partners_of_an_unbalanced_plan_are_counted_in_what_a_row_still_sends():
    torch.manual_seed(0)
    batch = Batch(torch.randn(9, 6), torch.arange(9) % 4, teacher_feature=torch.randn(7, 8))
    step = Step(student(), FrozenTeacher(teacher()))
    found = diagnose(step, batch, Transport("l2", 0.3, 50, (0.4, 0.4)))
    z = step.student.encode(batch.x).detach()
    options = {"metric": "l2", "reg": 0.3, "max_iter": 50, "unbalanced": 0.4}
    plan = uk.sinkhorn_loss(z, batch.teacher_feature, **options, return_result=True).plan()
    assert plan.sum() < 0.8
    rows = [torch.distributions.Categorical(probs=row).entropy() for row in plan]
    torch.testing.assert_close(found["probe_partners"], torch.stack(rows).mean().exp())
    assert 1 <= found["probe_partners"] <= 7


@cache
def _taught(width):
    model = teacher(width=width)
    Distiller(model, method="ce", epochs=30, lr=0.1, batch_size=48, diagnose=False).fit(TEACHER_TRAIN)
    return model


def taught(width=WIDTH):
    """A teacher that has learned its own modality."""
    return copy.deepcopy(_taught(width))


def warnings_of(method, model=None, trained=None, data=STUDENT_TRAIN, options=None, **train):
    """What the loop says while it trains, and how often it looked."""
    settings = {"epochs": 8, "lr": 0.1, "batch_size": 32} | train
    one = Distiller(trained or student(), model or taught(), method, method_options=options, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one.fit(data, TEACHER_TRAIN)
    return [str(w.message) for w in caught if issubclass(w.category, CannotHelp)]


def said(caught, words):
    """Whether the sentence was said, once."""
    return [words in sentence for sentence in caught].count(True) == 1


MIXED_UP, AT_CHANCE = "clusters are matched to the wrong classes", "and FA has not fallen"
NO_KAPPA, NO_MARGINS, NO_PULL = "kappa is below", "misses the teacher's marginals", "it moves nothing"
FEW_PARTNERS = "the batch is too small"


def test_nothing_is_said_where_alignment_does_what_it_should():
    assert warnings_of("label-aware-fa", options={"fa_weight": 5.0}, epochs=12) == []


def test_nothing_is_said_of_methods_that_compare_no_features():
    assert warnings_of("kd", lr=1e-4, min_lr=0) == []  # its head stays at chance, as it may


def test_classes_mixed_up():
    # A student whose labels are all renamed against the teacher's: FA can only match the wrong classes.
    renamed = STUDENT_TRAIN[0], (STUDENT_TRAIN[1] + 1) % CLASSES
    assert said(warnings_of("joint", data=renamed, options={"fa_weight": 5.0}, epochs=12), MIXED_UP)


def test_a_head_at_chance():
    assert said(warnings_of("joint", lr=1e-5, min_lr=0), AT_CHANCE)


def test_kappa_near_zero_everywhere():
    sure = taught()
    with torch.no_grad():
        sure.head.bias[:2] -= 50  # never the student's two classes
    two = STUDENT_TRAIN[0], STUDENT_TRAIN[1] % 2
    caught = warnings_of("joint", sure, data=two)
    assert said(caught, NO_KAPPA)
    assert not said(warnings_of("feature", sure, data=two), NO_KAPPA)  # it has no LA


@pytest.mark.parametrize("method", ["feature", "ucmkd"])
def test_marginals_that_are_not_met(method):
    assert said(warnings_of(method, options={"metric": "l2", "reg": 0.02, "max_iter": 2}), NO_MARGINS)
    assert not said(warnings_of(method, options={"metric": "l2", "reg": 1.0}), NO_MARGINS)


def test_a_gradient_that_moves_nothing():
    large = student()
    with torch.no_grad():
        large.encoder[-1].weight.mul_(1e6)
    assert said(warnings_of("feature", trained=large, lr=1e-9, min_lr=0), NO_PULL)
    assert not said(warnings_of("feature", lr=1e-9, min_lr=0), NO_PULL)


def test_a_batch_that_is_too_small_for_reg():
    assert said(warnings_of("feature", options={"reg": 0.002}, batch_size=8), FEW_PARTNERS)
    assert not said(warnings_of("feature", options={"reg": 0.1}, batch_size=8), FEW_PARTNERS)


def test_widths_that_differ_are_refused_with_advice_where_features_meet():
    with pytest.raises(ValueError, match=r"the student's is 8, the teacher's 5 .*with_width\(student, 5\)"):
        warnings_of("ucmkd", taught(width=5))
    assert warnings_of("kd", taught(width=5), epochs=1) == []


def history(fa, read):
    return [{"probe_fa": f, "probe_head_accuracy": r} for f, r in zip(fa, read, strict=True)]


def test_what_counts_as_chance():
    def found(fa, read, *, samples=64, epochs=8):
        diagnosis = Diagnosis(build_method("feature"), 10, samples, epochs)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            diagnosis.look(history(fa, read))
            diagnosis.look(history(fa, read))  # once
        return [str(w.message) for w in caught]

    [sentence] = found([0.91, 0.6, 0.3], [0.1, 0.1, 0.08])
    assert "0.91 to 0.30" in sentence and "8 %" in sentence and "chance: 10 %" in sentence
    assert "'label-aware-fa'" in sentence
    assert AT_CHANCE in found([0.91, 0.9, 0.9], [0.1, 0.1, 0.1])[0]
    assert found([0.91, 0.6, 0.3], [0.1, 0.3, 0.6]) == []  # it reads
    assert found([0.91, 0.6, 0.3], [0.1, 0.1, 0.25]) == []  # two standard errors of 64 samples: 17.5 %
    assert found([0.91, 0.6, 0.3], [0.1, 0.1, 0.25], samples=16) != []
    assert found([0.91, 0.3], [0.1, 0.1]) == []  # too early
    assert found([0.91, 0.6, 0.3], [0.1, 0.1, 0.1], epochs=20) == []
    assert found([], []) == []
