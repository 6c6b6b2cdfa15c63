"""order=2: the exact bi-level gradient against finite differences in float64, and its edges."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from bilevel_models import BATCH_NORM, CLASSES, INPUTS, STUDENTS, WIDTH, mlp
from torch import nn

from ucmkd_fast.data.batch import Batch
from ucmkd_fast.methods import FrozenTeacher, Step, build_method
from ucmkd_fast.models import Classifier
from ucmkd_fast.reference.sinkhorn import sinkhorn_loss

N, M = 7, 5
OPTIONS = {"n1": 2, "n2": 1, "inner_lr": 0.3, "reg": 0.5, "max_iter": 6, "lambda1": 0.8, "lambda2": 1.3}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(student: Classifier | None = None) -> tuple[Step, Batch]:
    student = (student or mlp(nn.LayerNorm(8))).double()
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(2.0)  # gradients that the clip meets
    teacher = FrozenTeacher(mlp().double())
    y = torch.randint(CLASSES, (N,))
    x, feature = torch.randn(N, INPUTS).double(), torch.randn(M, WIDTH).double()
    return Step(student, teacher), Batch(x, y, teacher_feature=feature)


def loss_after_inner_steps(student, teacher, batch, options, clip, constant=None):
    """CE at the temporary point by plain first-order steps on a copy; and kappa of the (one) LA step.

    ``constant`` is used as kappa instead of the one that the student's features would give.
    """
    student = copy.deepcopy(student)

    def move(loss, rate):
        gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
        reached = [g for g in gradients if g is not None]
        norm = math.sqrt(sum(float((g**2).sum()) for g in reached))
        with torch.no_grad():
            for p, g in zip(student.parameters(), gradients, strict=True):
                if g is not None:
                    p -= rate * min(1.0, clip / (norm + 1e-6)) * g

    for _ in range(options["n1"]):
        z = student.encode(batch.x)
        fa = sinkhorn_loss(
            z, batch.teacher_feature, metric="l2", reg=options["reg"], max_iter=options["max_iter"]
        )
        move(fa, options["inner_lr"] * options["lambda1"])
    used = None
    for _ in range(options["n2"]):
        z = student.encode(batch.x)
        q = teacher.head(z)
        live = q.softmax(1).gather(1, batch.y[:, None])[:, 0]
        used = live if options.get("kappa") == "live" else live.detach() if constant is None else constant
        la = (
            F.cross_entropy(student.head(z), batch.y)
            - (used * F.cross_entropy(q, batch.y, reduction="none")).mean()
        )
        move(la, options["inner_lr"] * options["lambda2"])
    ce = F.cross_entropy(student(batch.x), batch.y)
    return ce.item(), None if used is None else used.detach()


def finite_differences(student, value, step=1e-5):
    """Central differences of ``value(student)`` in every weight."""
    found = []
    for p in student.parameters():
        gradient = torch.zeros_like(p)
        flat, out = p.detach().view(-1), gradient.view(-1)
        for i in range(flat.numel()):
            start = float(flat[i])
            flat[i] = start + step
            up = value(student)
            flat[i] = start - step
            out[i] = (up - value(student)) / (2 * step)
            flat[i] = start
        found.append(gradient)
    return found


CASES = {
    "FA alone": {"n2": 0},
    "LA alone, live": {"n1": 0, "kappa": "live"},
    "both, live": {"kappa": "live"},
    "both, detached": {"kappa": "detached"},
    "both, clipped": {"kappa": "live", "inner_clip": 0.05},
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_finite_differences(case):
    options = {**OPTIONS, **CASES[case]}
    clip = options.setdefault("inner_clip", math.inf)
    step, batch = make()
    parts = build_method("ucmkd", order=2, **options).backward(step, batch)

    def value(student, constant=None):
        return loss_after_inner_steps(student, step.teacher, batch, options, clip, constant)

    twin = copy.deepcopy(step.student)
    ce, kappa = value(twin)
    assert float(parts["loss"]) == pytest.approx(ce, rel=1e-9)
    frozen = kappa if options.get("kappa") == "detached" else None
    expected = finite_differences(twin, lambda student: value(student, frozen)[0])
    ours = [p.grad for p in step.student.parameters()]
    for p, q in zip(ours, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)

    build_method("ucmkd", order=1, **options).backward(step, batch)
    gap = max(float((p.grad - q).abs().max()) for p, q in zip(step.student.parameters(), ours, strict=True))
    assert gap > 1e-3, "the first-order gradient must be another one, or the test shows nothing"


def test_no_inner_rate_is_cross_entropys_gradient():
    step, batch = make()
    build_method("ucmkd", order=2, inner_lr=0).backward(step, batch)
    ours = [p.grad.clone() for p in step.student.parameters()]
    step.student.zero_grad()
    F.cross_entropy(step.student(batch.x), batch.y).backward()
    for p, g in zip(step.student.parameters(), ours, strict=True):
        torch.testing.assert_close(g, p.grad)


def test_same_point_figures_and_buffers_as_the_first_order():
    """BatchNorm's statistics end as after the same passes; the weights stay."""
    first, batch = make(mlp(nn.BatchNorm1d(8), last=nn.BatchNorm1d(WIDTH, momentum=None)))
    second = Step(copy.deepcopy(first.student), first.teacher)
    before = [p.clone() for p in second.student.parameters()]
    options = {**OPTIONS, "inner_lr": 0.05, "n2": 2}
    one = build_method("ucmkd", **options).backward(first, batch)
    two = build_method("ucmkd", order=2, **options).backward(second, batch)
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(two[name], one[name])
        assert two[name].shape == () and not two[name].requires_grad
    for name, buffer in first.student.named_buffers():
        torch.testing.assert_close(dict(second.student.named_buffers())[name], buffer)
    assert all(torch.equal(p, b) for p, b in zip(second.student.parameters(), before, strict=True))
    assert all(p.grad.isfinite().all() and not p.grad.requires_grad for p in second.student.parameters())


@pytest.mark.parametrize("name", [s for s in STUDENTS if "recomputed" not in s])
def test_students_of_all_kinds(name):
    step, batch = make(STUDENTS[name][0]())
    before = [p.clone() for p in step.student.parameters()]
    method = build_method("ucmkd", order=2, n1=2, n2=2)
    for _ in range(2):
        parts = method.backward(step, batch)
    assert all(value.isfinite() for value in parts.values())
    assert all(torch.equal(p, b) for p, b in zip(step.student.parameters(), before, strict=True))
    for p in step.student.parameters():
        assert p.requires_grad or p.grad is None
        assert p.grad is None or p.grad.isfinite().all()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in step.student.parameters())


@pytest.mark.parametrize("name", [s for s in STUDENTS if "recomputed" in s])
def test_activation_checkpointing_is_refused(name):
    """Recomputed at the student's own weights, it would give a wrong gradient without an error."""
    step, batch = make(STUDENTS[name][0]())
    with pytest.raises(ValueError, match="activation checkpointing off"):
        build_method("ucmkd", order=2).backward(step, batch)
    assert all(p.grad is None for p in step.student.parameters())
    assert not any(m._forward_pre_hooks for m in step.student.modules())


def test_gradients_are_replaced_and_reduced():
    step, batch = make()
    method, calls = build_method("ucmkd", order=2), []
    method.backward(step, batch)
    once = [p.grad.clone() for p in step.student.parameters()]
    step.reduce_gradients = lambda gradients: calls.append(len(gradients))
    method.backward(step, batch)
    assert calls == [len(once)]

    def fail(gradients):
        raise ConnectionError("planted")

    assert all(torch.equal(p.grad, g) for p, g in zip(step.student.parameters(), once, strict=True))
    step.reduce_gradients = fail
    with pytest.raises(ConnectionError):
        method.backward(step, batch)
    assert all(p.grad is None for p in step.student.parameters())


def test_half_precision_under_autocast():
    step, batch = make(STUDENTS[BATCH_NORM][0]())
    step.student.float(), step.teacher.model.float()
    batch = Batch(batch.x.float(), batch.y, teacher_feature=batch.teacher_feature.float())
    exact = build_method("ucmkd", order=2).backward(Step(copy.deepcopy(step.student), step.teacher), batch)
    step.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    parts = build_method("ucmkd", order=2).backward(step, batch)
    torch.testing.assert_close(parts["loss"], exact["loss"], rtol=0.05, atol=0.05)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in step.student.parameters())


def test_several_processes_are_refused(monkeypatch):
    step, batch = make()
    monkeypatch.setattr("ucmkd_fast.bilevel.step.world", lambda: type("World", (), {"size": 2}))
    with pytest.raises(ValueError, match="order=2 needs one process"):
        build_method("ucmkd", order=2).backward(step, batch)


def test_ten_steps_lower_the_loss():
    step, batch = make()
    method = build_method("ucmkd", order=2, max_iter=10)
    optimizer = torch.optim.SGD(step.student.parameters(), lr=0.1, momentum=0.9)
    values = []
    for _ in range(11):
        values.append(float(method.backward(step, batch)["loss"]))
        optimizer.step()
    assert values[-1] < values[0] - 0.05
