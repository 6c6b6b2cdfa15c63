"""Methods that know classes or unlabelled data: their formulas, their switches, and what the loop hands them."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from bilevel_models import CLASSES, INPUTS, WIDTH, mlp
from distiller_problem import STUDENT_TRAIN, STUDENT_UNLABELLED, TEACHER_TRAIN, student, teacher, weights
from host_reads import NoHostRead, forbid_python_reads

from ucmkd_fast.alignment import TeacherBank, labelling_plan
from ucmkd_fast.data import UNLABELLED, FeatureBank, TensorData, balanced_rows
from ucmkd_fast.data.batch import Batch
from ucmkd_fast.distiller import Distiller
from ucmkd_fast.methods import FrozenTeacher, Step, build_method
from ucmkd_fast.ops.class_conditional import class_masses
from ucmkd_fast.reference import sinkhorn as reference

N, U, M = 7, 9, 15


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def problem(dtype=torch.float64, progress=0.1):
    y = torch.tensor([0, 1, 2, 3, 0, 1, 0])[:N]
    batch = Batch(
        torch.randn(N, INPUTS, dtype=dtype),
        y,
        teacher_feature=torch.randn(N, WIDTH, dtype=dtype),
        teacher_y=y,
        unlabelled_x=torch.randn(U, INPUTS, dtype=dtype),
    )
    step = Step(mlp().to(dtype), FrozenTeacher(mlp().to(dtype)), progress=progress)
    bank = torch.randn(M, WIDTH, dtype=dtype), torch.arange(M) % 5 % CLASSES
    return step, batch, bank


def built(name, step, batch, bank, **options):
    method = build_method(name, **options)
    method.setup(step.student, step.teacher, batch)
    if method.bank_size:
        method.receive_bank(*bank)
    return method


def per_class_fa(z, batch, reg, max_iter):
    """Transport class by class, weighted by the class's share of the batch."""
    return sum(
        (batch.y == k).double().mean()
        * reference.sinkhorn_loss(
            z[batch.y == k], batch.teacher_feature[batch.teacher_y == k], reg=reg, max_iter=max_iter
        )
        for k in batch.y.unique()
    )


def one_problem_fa(z, batch, reg, max_iter, rho):
    """The same with masses held by rho KL: one problem, whose cost is +inf between classes."""
    between = torch.full((N, CLASSES), torch.inf, dtype=z.dtype).scatter(1, batch.y[:, None], 0)
    a, b, *_ = class_masses(batch.y, batch.teacher_y, CLASSES, z.dtype)
    return reference.sinkhorn_loss(
        z, batch.teacher_feature, a, b, reg=reg, max_iter=max_iter, unbalanced=rho, class_cost=between,
        y_labels=batch.teacher_y,
    )  # fmt: skip


def held_plan(cost, b, reg, max_iter, rho=None):
    """<P, C> whose gradient holds P constant."""
    solution = reference.sinkhorn(
        cost.detach(), None, b, reg=reg, max_iter=max_iter, unbalanced=rho, grad="envelope"
    )
    return (reference.plan(cost.detach(), solution.f, solution.g, reg) * cost).sum()


def expected_label_aware(student, step, batch, bank, rho=None):
    z = student.encode(batch.x)
    ce = F.cross_entropy(student.head(z), batch.y)
    fa = per_class_fa(z, batch, 0.2, 15) if rho is None else one_problem_fa(z, batch, 0.2, 15, rho)
    return {"loss": ce + 0.6 * fa, "ce": ce, "fa": fa}


def expected_self_training(student, step, batch, bank, alpha=0.0, rho=None):
    logits, logits_u = student(batch.x), student(batch.unlabelled_x)
    ce = F.cross_entropy(logits, batch.y, label_smoothing=0.2)
    cost = -F.log_softmax(logits_u, -1)
    pseudo, labelled = held_plan(cost, None, 0.5, 6, rho), ce
    if alpha:
        found = reference.sinkhorn(
            cost.detach(), None, None, reg=0.5, max_iter=6, unbalanced=rho, grad="envelope"
        )
        q = U * reference.plan(cost.detach(), found.f, found.g, 0.5)
        even = torch.full((CLASSES, CLASSES), 0.4 / (CLASSES - 1), dtype=torch.float64).fill_diagonal_(0.6)
        kl, kl_u = (
            F.kl_div(F.log_softmax(s / 3, -1), targets, reduction="batchmean")
            for s, targets in ((logits, even[batch.y]), (logits_u, q @ even))
        )
        labelled = (1 - alpha) * ce + alpha * 9 * kl
        pseudo = (1 - alpha) * pseudo + alpha * 9 * kl_u
    return {"loss": labelled + 2.0 * (0.1 / 0.4) * pseudo, "ce": ce, "pseudo": pseudo}


def expected_plus(student, step, batch, bank, unlabelled_alpha=0.0, rho=None, by_class=None):
    z, zu = student.encode(batch.x), student.encode(batch.unlabelled_x)
    logits, log_p = student.head(z), F.log_softmax(student.head(zu), -1)
    ce = F.cross_entropy(logits, batch.y)
    fa = per_class_fa(z, batch, 0.2, 15) if rho is None else one_problem_fa(z, batch, 0.2, 15, rho)
    soft = F.softmax(step.teacher.head(batch.teacher_feature) / 3, -1)
    kl = F.kl_div(F.log_softmax(logits / 3, -1), soft, reduction="batchmean")
    feature, labels = bank
    mass = (1 / torch.bincount(labels).double())[labels] / CLASSES
    cost = reference.cost(zu, feature, "cosine") - log_p[:, labels]
    labelling = held_plan(cost, mass, 0.4, 7, by_class)
    if unlabelled_alpha:
        found = reference.sinkhorn(
            cost.detach(), None, mass, reg=0.4, max_iter=7, unbalanced=by_class, grad="envelope"
        )
        plan = U * reference.plan(cost.detach(), found.f, found.g, 0.4)
        soft = F.softmax(step.teacher.head(feature) / 3, -1)
        by_class = torch.stack([soft[labels == k].mean(0) for k in range(CLASSES)])
        q = torch.stack([plan[:, labels == k].sum(1) for k in range(CLASSES)], 1)
        kl_u = F.kl_div(F.log_softmax(student.head(zu) / 3, -1), q @ by_class, reduction="batchmean")
        labelling = labelling + unlabelled_alpha * (9 * kl_u + (q * log_p).sum() / U)
    loss = 0.3 * ce + 0.7 * 9 * kl + 0.6 * fa + 2.0 * (0.1 / 0.4) * labelling
    return {"loss": loss, "ce": ce, "kl": kl, "fa": fa, "labelling": labelling}


def expected_prototypes(student, step, batch, bank):
    z = student.encode(batch.x)
    logits, (feature, labels) = student.head(z), bank
    soft, unit = F.softmax(step.teacher.head(feature) / 3, -1), F.normalize(feature)
    q, c = (torch.stack([m[labels == k].mean(0) for k in batch.y.tolist()]) for m in (soft, unit))
    ce = F.cross_entropy(logits, batch.y)
    kl = F.kl_div(F.log_softmax(logits / 3, -1), q, reduction="batchmean")
    distance = (1 - F.cosine_similarity(z, c)).mean()
    return {"loss": 0.3 * ce + 0.7 * 9 * kl + 0.5 * distance, "ce": ce, "kl": kl, "distance": distance}


FA = {"fa_weight": 0.6, "reg": 0.2, "max_iter": 15}
KD = {"alpha": 0.7, "temperature": 3.0}
SELF = {"unlabelled_weight": 2.0, "reg": 0.5, "max_iter": 6, "label_smoothing": 0.2}
PLUS = {
    **FA, **KD, "label_smoothing": 0.0, "unlabelled_weight": 2.0, "unlabelled_reg": 0.4, "unlabelled_iter": 7,
}  # fmt: skip
CASES = {
    "label-aware-fa": (expected_label_aware, FA),
    "self-training": (expected_self_training, {**SELF, "alpha": 0.0}),
    "self-training, softened": (
        partial(expected_self_training, alpha=0.7),
        {**SELF, **KD, "softness": 0.4},
    ),
    "ucmkd-plus": (expected_plus, {**PLUS, "unlabelled_alpha": 0.0}),
    "ucmkd-plus, taught without labels": (
        partial(expected_plus, unlabelled_alpha=0.6),
        {**PLUS, "unlabelled_alpha": 0.6},
    ),
    "label-aware-fa, unbalanced": (
        partial(expected_label_aware, rho=(0.5, 0.5)),
        {**FA, "unbalanced": 0.5},
    ),
    "label-aware-fa, unbalanced on the teacher's side": (
        partial(expected_label_aware, rho=(torch.inf, 0.3)),
        {**FA, "unbalanced": [None, 0.3]},
    ),
    "self-training, classes held by rho": (
        partial(expected_self_training, alpha=0.7, rho=(torch.inf, 0.6)),
        {**SELF, **KD, "softness": 0.4, "unbalanced": 0.6},
    ),
    "ucmkd-plus, unbalanced": (
        partial(expected_plus, unlabelled_alpha=0.6, rho=(0.5, 0.5), by_class=(torch.inf, 0.8)),
        {**PLUS, "unlabelled_alpha": 0.6, "unbalanced": 0.5, "unlabelled_unbalanced": 0.8},
    ),
    "ucmkd-plus, unbalanced labels alone": (
        partial(expected_plus, by_class=(torch.inf, 0.8)),
        {**PLUS, "unlabelled_alpha": 0.0, "unlabelled_unbalanced": 0.8},
    ),
    "prototype-kd": (expected_prototypes, {**KD, "feature_weight": 0.5}),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_the_formula(name):
    expected, options = CASES[name]
    step, batch, bank = problem()
    twin = copy.deepcopy(step.student)
    parts = built(name.split(",")[0], step, batch, bank, **options).backward(step, batch)
    wanted = expected(twin, step, batch, bank)
    wanted["loss"].backward()
    for key, value in wanted.items():
        torch.testing.assert_close(parts[key], value.detach(), rtol=1e-6, atol=1e-9)
    for p, q in zip(step.student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_no_host_read_beyond_the_losses_own(name, monkeypatch):
    step, batch, bank = problem(torch.float32)
    method = built(name.split(",")[0], step, batch, bank, **CASES[name][1])
    method.backward(step, batch)
    if name.startswith(("self-training", "prototype-kd")):  # class labels are checked on the CPU, by a read
        forbid_python_reads(monkeypatch)
        with NoHostRead():
            method.backward(step, batch)


def test_every_part_of_plus_can_be_switched_off():
    step, batch, bank = problem()

    def gradient(**options):
        built("ucmkd-plus", step, batch, bank, **options).backward(step, batch)
        return torch.cat([p.grad.flatten() for p in step.student.parameters()])

    ce = F.cross_entropy(step.student(batch.x), batch.y)
    plain = torch.cat([g.flatten() for g in torch.autograd.grad(ce, list(step.student.parameters()))])
    off = {"alpha": 0.0, "fa_weight": 0.0, "unlabelled_weight": 0.0}
    smooth = {"label_smoothing": 0.0}
    torch.testing.assert_close(gradient(**off, **smooth), plain, rtol=1e-9, atol=1e-12)
    for name in off:
        rest = {key: 0.0 for key in off if key != name}
        assert (gradient(**rest, **smooth) - plain).abs().max() > 1e-4, name
    held, moved = (gradient(**{**off, "unlabelled_weight": 1.0, "move_weight": w}) for w in (0.0, 1.0))
    assert (held - moved).abs().max() > 1e-5
    assert not build_method("ucmkd-plus", unlabelled_weight=0.0).uses_unlabelled
    assert build_method("ucmkd-plus", unlabelled_weight=0.0).bank_size == 0


def test_the_ramp_starts_at_nothing():
    step, batch, bank = problem(progress=0.0)
    parts = built("self-training", step, batch, bank, alpha=0.0).backward(step, batch)
    assert parts["loss"] == parts["ce"] and parts["pseudo"] > 0
    step.progress = 0.7
    parts = built("self-training", step, batch, bank, alpha=0.0, ramp=0.0).backward(step, batch)
    assert torch.allclose(parts["loss"], parts["ce"] + parts["pseudo"])


def test_labels_keep_their_samples_mass_whatever_holds_the_classes():
    """And a large rho is the balanced labelling, a small one the student's own opinion of class shares."""
    step, batch, bank = problem()
    log_p = (4 * torch.randn(U, CLASSES, dtype=torch.float64)).log_softmax(-1)
    z = torch.randn(U, WIDTH, dtype=torch.float64)
    held = TeacherBank.balanced(*bank)

    def shares(rho):
        method = build_method("ucmkd-plus", unlabelled_iter=300, unlabelled_unbalanced=rho)
        _, soft = labelling_plan(step, z, log_p, held, method.labelling)
        torch.testing.assert_close(soft.sum(1), torch.ones(U, dtype=torch.float64))
        return soft.mean(0)

    even = torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64)
    apart = [(shares(rho) - even).abs().sum().item() for rho in (None, 1e4, 1.0, 1e-2)]
    assert apart[0] < apart[1] < 1e-2 < apart[2] < apart[3]


def test_what_a_method_lacks_is_named():
    step, batch, bank = problem()
    for name in ("ucmkd-plus", "prototype-kd"):
        with pytest.raises(ValueError, match="bank"):
            build_method(name).backward(step, batch)
    batch.unlabelled_x = None
    with pytest.raises(ValueError, match="unlabelled_x"):
        built("self-training", step, batch, bank).backward(step, batch)
    batch.teacher_y = None
    with pytest.raises(ValueError, match="teacher_y"):
        built("label-aware-fa", step, batch, bank).backward(step, batch)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ucmkd-plus", {"ramp": 1.5}, "ramp"),
        ("ucmkd-plus", {"unlabelled_alpha": 1.5}, "unlabelled_alpha"),
        ("ucmkd-plus", {"bank_size": 0}, "bank_size"),
        ("ucmkd-plus", {"unlabelled_reg": 0}, "reg"),
        ("ucmkd-plus", {"unlabelled_unbalanced": 0}, "unlabelled_unbalanced must be .* > 0, got 0"),
        ("self-training", {"unbalanced": -1}, "unbalanced must be .* > 0, got -1"),
        ("ucmkd-plus", {"move_weight": -1}, "move_weight"),
        ("self-training", {"reg": 0}, "reg"),
        ("self-training", {"softness": 1.1}, "softness"),
        ("label-aware-fa", {"metric": "cosin"}, "'cosine'"),
        ("prototype-kd", {"alpha": 2}, "alpha"),
    ],
)
def test_bad_options_are_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        build_method(name, **options)


def fit(method, unlabelled=None, bank=None, **settings):
    trained = student()
    one = Distiller(trained, teacher(), method, epochs=2, steps_per_epoch=2, batch_size=16, **settings)
    one.fit(STUDENT_TRAIN, TEACHER_TRAIN if bank is None else bank, student_unlabelled=unlabelled)
    return one, weights(trained)


def test_the_loop_takes_unlabelled_samples_and_never_their_labels():
    labelled_wrongly = TensorData(STUDENT_UNLABELLED, torch.arange(len(STUDENT_UNLABELLED)) % 3)
    _, first = fit("ucmkd-plus", STUDENT_UNLABELLED)
    assert torch.equal(first, fit("ucmkd-plus", labelled_wrongly)[1])
    assert not torch.equal(first, fit("ucmkd-plus", STUDENT_UNLABELLED.flip(0))[1])
    assert not torch.equal(first, fit("ucmkd-plus", STUDENT_UNLABELLED, unlabelled_batch_size=4)[1])


def test_a_bank_of_cached_features_gives_the_same_student():
    cached = FeatureBank.from_model(teacher(), TensorData(*TEACHER_TRAIN))
    torch.testing.assert_close(
        fit("ucmkd-plus", STUDENT_UNLABELLED, cached)[1], fit("ucmkd-plus", STUDENT_UNLABELLED)[1]
    )


def test_what_the_loop_cannot_honour_is_refused():
    with pytest.raises(ValueError, match="'self-training' needs student_unlabelled"):
        fit("self-training")
    with pytest.raises(ValueError, match="'kd' does not use student_unlabelled"):
        fit("kd", STUDENT_UNLABELLED)
    with pytest.raises(ValueError, match="unlabelled_batch_size=4 needs student_unlabelled"):
        fit("kd", unlabelled_batch_size=4)
    with pytest.raises(ValueError, match="does not take a sample"):
        fit("self-training", torch.randn(8, 3))
    with pytest.raises(ValueError, match="needs student_unlabelled"):
        fit("ucmkd-plus")


def test_balanced_rows():
    labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 30 + [UNLABELLED] * 10)
    rows = balanced_rows(labels, 35, seed=1)
    assert labels[rows].bincount().tolist() == [15, 5, 15] and len(rows.unique()) == 35
    assert torch.equal(rows, balanced_rows(labels, 35, seed=1))
    assert not torch.equal(rows, balanced_rows(labels, 35, seed=2))
    assert len(balanced_rows(labels, 1000, seed=1)) == 85


def test_ucmkd_at_an_inner_rate_of_zero_is_cross_entropy_bit_for_bit():
    def trained(method, **options):
        one = student(norm=True)
        settings = {
            "epochs": 3,
            "steps_per_epoch": 4,
            "batch_size": 16,
            "lr": 0.05,
            "method_options": options,
        }
        Distiller(one, teacher(), method, **settings).fit(STUDENT_TRAIN, TEACHER_TRAIN)
        return torch.cat([p.detach().flatten() for p in one.parameters()])

    ce = trained("ce")
    assert torch.equal(trained("ucmkd", inner_lr=0.0), ce)
    assert not torch.equal(trained("ucmkd", inner_lr=1e-3), ce)
