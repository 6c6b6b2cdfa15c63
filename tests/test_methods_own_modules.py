"""Methods that own modules, read feature maps or train the teacher: formulas, refusals, the loop."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from host_reads import NoHostRead, forbid_python_reads
from map_models import CLASSES, image_teacher, samples, series_student
from scipy.stats import kendalltau
from torch import nn

from ucmkd_fast.data.batch import Batch
from ucmkd_fast.methods import FrozenTeacher, Step, TrainedTeacher, build_method, method_class
from ucmkd_fast.methods.c2kd import kendall_tau
from ucmkd_fast.models import Classifier, MappedClassifier, encode_with_maps

N = 9
METHODS = ("norm", "reviewkd", "c2kd", "fitnet")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(name: str, dtype: torch.dtype = torch.float64, **options):
    """A method that is set up, its step, and a class-matched batch."""
    (x, y), (teacher_x, _) = samples(N, 1, 12, seed=1), samples(N, 1, 6, 6, seed=2)
    batch = Batch(x.to(dtype), y, teacher_x.to(dtype), teacher_y=y)
    student, model = series_student().to(dtype), image_teacher().to(dtype)
    teacher = TrainedTeacher(model) if method_class(name).trains_teacher else FrozenTeacher(model)
    method = build_method(name, **options)
    method.setup(student, teacher, Batch(batch.x[:1], y[:1], batch.teacher_x[:1]))
    return method, Step(student, teacher, learning_rate=0.05), batch


def cross_entropy(logits, y):
    return -logits.log_softmax(1)[torch.arange(len(y)), y].mean()


def pyramid(x, t):
    """The hierarchical context loss, written out for maps of 3 x 3."""
    parts = [((x - t) ** 2).mean()]
    for level in (2, 1):  # 4 is not below 3
        parts.append(((F.adaptive_avg_pool2d(x, level) - F.adaptive_avg_pool2d(t, level)) ** 2).mean())
    return (parts[0] + parts[1] / 2 + parts[2] / 4) / 1.75


def expected_norm(method, student, teacher, batch):
    z, target = student.encode(batch.x), teacher.model.encode(batch.teacher_x).detach()
    parts = (z @ method.expand.weight.T).view(N, method.copies, -1)
    distance = sum(((parts[:, i] - target) ** 2).mean() for i in range(method.copies))
    ce = cross_entropy(student.head(z), batch.y)
    return {"loss": ce + method.weight * distance, "ce": ce, "norm": distance}


def expected_reviewkd(method, student, teacher, batch):
    z, ours = encode_with_maps(student, batch.x, "")
    theirs = [m.detach() for m in encode_with_maps(teacher.model, batch.teacher_x, "")[1]]
    bilinear = {"size": (3, 3), "mode": "bilinear"}
    deep, shallow = method.fusions[1], method.fusions[0]
    x1 = deep.reduce(ours[1][..., None])
    review = pyramid(F.interpolate(deep.expand(x1), **bilinear), theirs[1])
    x0 = shallow.reduce(ours[0][..., None])
    y = F.interpolate(F.interpolate(x1, **bilinear), (12, 1))
    gates = torch.sigmoid(shallow.attend(torch.cat([x0, y], 1)))
    fused = shallow.expand(x0 * gates[:, 0:1] + y * gates[:, 1:2])
    review = review + pyramid(F.interpolate(fused, **bilinear), F.interpolate(theirs[0], **bilinear))
    ce = cross_entropy(student.head(z), batch.y)
    return {"loss": ce + method.weight * review / 2, "ce": ce, "review": review / 2}


def expected_c2kd(method, student, teacher, batch):
    def kl(logits, target):
        p = target.detach().softmax(1)
        return (p * (p.log() - logits.log_softmax(1))).sum(1)

    z, maps = encode_with_maps(student, batch.x, "")
    zt, maps_t = encode_with_maps(teacher.model, batch.teacher_x, "")
    s, t = student.head(z), teacher.head(zt)
    ps = method.student_proxy(maps[1].mean(2))
    pt = method.teacher_proxy(maps_t[1].mean((2, 3)))
    tau = torch.tensor([kendalltau(a, b).statistic for a, b in zip(ps.tolist(), pt.tolist(), strict=True)])
    chosen = (tau > method.threshold).double()
    keep = 1 - F.one_hot(batch.y, CLASSES).double()
    ours = cross_entropy(s, batch.y) + (kl(s, ps) + kl(ps, s) + chosen * kl(ps * keep, pt * keep)).mean()
    theirs = cross_entropy(t, batch.y) + (kl(t, pt) + kl(pt, t) + chosen * kl(pt * keep, ps * keep)).mean()
    assert 0 < chosen.mean() < 1, "the case must choose some samples and not others"
    return {
        "loss": ours + theirs,
        "ce": cross_entropy(s, batch.y),
        "ce_teacher": cross_entropy(t, batch.y),
        "loss_student": ours,
        "loss_teacher": theirs,
        "kendall_tau": tau.mean().double(),
        "selected": chosen.mean(),
    }


def expected_fitnet(method, student, teacher, batch):
    z, ours = encode_with_maps(student, batch.x, "")
    target = encode_with_maps(teacher.model, batch.teacher_x, "")[1][0].detach()
    weight, bias = method.regressor.weight[:, :, 0, 0], method.regressor.bias
    guided = torch.einsum("oc,ncl->nol", weight, ours[0]) + bias[:, None]
    hint = ((F.interpolate(guided[..., None], size=(6, 6), mode="bilinear") - target) ** 2).mean()
    ce = cross_entropy(student.head(z), batch.y)
    return {"loss": ce + method.weight * hint, "ce": ce, "hint": hint}


EXPECTED = {
    "fitnet": expected_fitnet,
    "norm": expected_norm,
    "reviewkd": expected_reviewkd,
    "c2kd": expected_c2kd,
}
OPTIONS = {
    "fitnet": {"weight": 0.7, "layer": 0},
    "norm": {"copies": 3, "weight": 0.7},
    "reviewkd": {"weight": 0.7},
    "c2kd": {"threshold": 0.1},
}


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_are_the_formula(name):
    method, step, batch = make(name, **OPTIONS[name])
    twin = copy.deepcopy((method, step.student, step.teacher))
    parts = method.backward(step, batch)
    expected = EXPECTED[name](*twin, batch)
    expected["loss"].backward()
    assert set(parts) == set(expected)
    for key, value in expected.items():
        assert parts[key].shape == () and not parts[key].requires_grad
        torch.testing.assert_close(parts[key], value.detach(), rtol=1e-9, atol=1e-12)
    for ours, theirs in ((method, twin[0]), (step.student, twin[1]), (step.teacher.model, twin[2].model)):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-10)


def test_kendall_tau_is_scipys():
    a, b = torch.randn(20, 7), torch.randn(20, 7)
    expected = [kendalltau(x, y).statistic for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(kendall_tau(a, b), torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(kendall_tau(a, 2 * a + 1), torch.ones(20))
    torch.testing.assert_close(kendall_tau(a, -a), -torch.ones(20))


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_is_trained_only_where_the_method_says_so(name):
    method, step, batch = make(name)
    method.backward(step, batch)
    trains = name == "c2kd"
    assert step.teacher.model.training == trains
    assert all((p.grad is not None) == trains for p in step.teacher.model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_every_gradient_is_reduced(name):
    method, step, batch = make(name)
    reduced: list = []
    step.reduce_gradients = reduced.extend
    method.backward(step, batch)
    with_gradient = [
        p
        for model in (step.student, step.teacher.model, method)
        for p in model.parameters()
        if p.grad is not None
    ]
    assert {id(g) for g in reduced} == {id(p.grad) for p in with_gradient}
    assert len(with_gradient) > len(list(step.student.parameters()))


@pytest.mark.parametrize("name", METHODS)
def test_ten_steps_lower_the_loss(name):
    method, step, batch = make(name, torch.float32)
    optimizers = [torch.optim.SGD(step.student.parameters(), lr=0.05, momentum=0.9), *method.own_optimizers()]
    values = []
    for _ in range(11):
        batch.teacher_feature = None
        values.append(float(method.backward(step, batch)["loss"]))
        for optimizer in optimizers:
            optimizer.step()
    assert values[-1] < values[0] - 0.05


@pytest.mark.parametrize("name", METHODS)
def test_no_host_read(name, monkeypatch):
    method, step, batch = make(name, torch.float32)
    with NoHostRead():
        method.backward(step, batch)
    forbid_python_reads(monkeypatch)
    method.backward(step, batch)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_under_autocast(name):
    method, step, batch = make(name, torch.float32)
    exact = method.backward(Step(copy.deepcopy(step.student), step.teacher, learning_rate=0.05), batch)
    batch.teacher_feature = None
    step.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    parts = method.backward(step, batch)
    assert parts["loss"].dtype == torch.float32
    torch.testing.assert_close(parts["loss"], exact["loss"], rtol=0.05, atol=0.03)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in step.student.parameters())


def test_the_polynomial_learning_rate_is_that_of_the_step_before():
    method = build_method("c2kd", poly_lr=0.01, poly_epochs=10)

    def poly(epoch):
        return 1e-4 + (0.01 - 1e-4) * (1 - epoch / 10) ** 0.9

    assert method.learning_rate(0.3, 0, 0) == 0.3
    assert method.learning_rate(0.3, 0, 1) == method.learning_rate(0.3, 1, 0) == pytest.approx(0.01)
    assert method.learning_rate(0.3, 4, 2) == pytest.approx(poly(4))
    assert method.learning_rate(0.3, 12, 1) == pytest.approx(1e-4)
    assert build_method("norm").learning_rate(0.3, 4, 2) == 0.3


def test_teacher_and_proxies_are_stepped_at_the_students_learning_rate():
    method, step, batch = make("c2kd")
    step.learning_rate = 0.037
    method.backward(step, batch)
    (optimizer,) = method.own_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [0.037]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for m in (step.teacher.model, method) for p in m.parameters()}


@pytest.mark.parametrize("name", ["reviewkd", "c2kd"])
def test_models_without_maps_are_named(name):
    plain = Classifier(series_student().encoder, nn.Linear(6, CLASSES))
    example = Batch(torch.randn(1, 1, 12), torch.zeros(1, dtype=torch.long), torch.randn(1, 1, 6, 6))
    teacher = TrainedTeacher if name == "c2kd" else FrozenTeacher
    with pytest.raises(TypeError, match="the student must have encode_with_maps.*Classifier has none"):
        build_method(name).setup(plain, teacher(image_teacher()), example)
    plain = Classifier(image_teacher().encoder, nn.Linear(8, CLASSES))
    with pytest.raises(TypeError, match="the teacher must have encode_with_maps.*Classifier has none"):
        build_method(name).setup(series_student(), teacher(plain), example)


@pytest.mark.parametrize("name", ["reviewkd", "c2kd"])
def test_cached_features_are_refused_where_the_teacher_must_run(name):
    example = Batch(
        torch.randn(1, 1, 12), torch.zeros(1, dtype=torch.long), teacher_feature=torch.randn(1, 8)
    )
    teacher = (TrainedTeacher if name == "c2kd" else FrozenTeacher)(image_teacher())
    with pytest.raises(ValueError, match="cached features"):
        build_method(name).setup(series_student(), teacher, example)


@pytest.mark.parametrize(("name", "part"), [("norm", "norm"), ("fitnet", "hint")])
def test_cached_features_serve_where_only_features_meet(name, part):
    method, step, batch = make(name)
    expected = method.backward(step, batch)[part]
    cached = Batch(batch.x, batch.y, teacher_feature=step.teacher.features(batch))
    torch.testing.assert_close(method.backward(step, cached)[part], expected)


def test_fitnet_on_features_is_the_formula():
    method, step, batch = make("fitnet", weight=0.7)
    z, target = step.student.encode(batch.x), step.teacher.features(batch)
    expected = ((z @ method.regressor.weight.T + method.regressor.bias - target) ** 2).mean()
    parts = method.backward(step, batch)
    torch.testing.assert_close(parts["hint"], expected.detach())
    torch.testing.assert_close(parts["loss"], parts["ce"] + 0.7 * expected.detach())


def test_fitnet_refuses_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match="layer must be below 2, the number of the student's maps, got 2"):
        make("fitnet", layer=2)


@pytest.mark.parametrize("name", METHODS)
def test_sample_counts_that_differ_are_refused(name):
    method, step, batch = make(name)
    batch.teacher_x = batch.teacher_x[:-2]
    with pytest.raises(ValueError, match=f"{name} compares samples by index: expected 9 .* got 7"):
        method.backward(step, batch)


def test_maps_that_cannot_be_paired_are_refused():
    shallow = MappedClassifier(series_student().encoder, nn.Linear(6, CLASSES), ["1"])
    example = Batch(torch.randn(1, 1, 12), torch.zeros(1, dtype=torch.long), torch.randn(1, 1, 6, 6))
    with pytest.raises(ValueError, match="expected 2 maps of the student.* got 1"):
        build_method("reviewkd").setup(shallow, FrozenTeacher(image_teacher()), example)


def test_a_teacher_of_the_wrong_kind_is_refused():
    method, step, batch = make("c2kd")
    with pytest.raises(ValueError, match="must be a TrainedTeacher, got a FrozenTeacher"):
        method.backward(Step(step.student, FrozenTeacher(image_teacher()), learning_rate=0.1), batch)
    with pytest.raises(ValueError, match="none of its parameters requires a gradient"):
        TrainedTeacher(image_teacher().requires_grad_(False))
    method, step, batch = make("norm")
    with pytest.raises(ValueError, match="must be a FrozenTeacher, got a TrainedTeacher"):
        method.backward(Step(step.student, TrainedTeacher(image_teacher())), batch)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("norm", {"copies": 0}, ValueError, "copies .*>= 1, got 0"),
        ("norm", {"weight": -1.0}, ValueError, "weight .*>= 0, got -1"),
        ("fitnet", {"layer": -1}, ValueError, "layer .*>= 0, got -1"),
        ("reviewkd", {"weight": float("nan")}, ValueError, "weight"),
        ("c2kd", {"threshold": 1.5}, ValueError, r"threshold .*\[-1, 1\], got 1.5"),
        ("c2kd", {"threshold": "0"}, TypeError, r"threshold .*\[-1, 1\], got '0'"),
        ("c2kd", {"poly_lr": 0}, ValueError, "poly_lr .*> 0"),
        ("c2kd", {"poly_epochs": 1.5}, TypeError, "poly_epochs"),
    ],
)
def test_bad_options_are_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        build_method(name, **options)


@pytest.mark.parametrize("name", METHODS)
def test_independent_draws_are_refused(name):
    with pytest.raises(ValueError, match="'class-matched' or 'paired'; got 'independent'"):
        build_method(name).check_draw("independent")


def test_mapped_classifier():
    model = series_student()
    x = torch.randn(3, 1, 12)
    feature, maps = model.eval().encode_with_maps(x)
    assert torch.equal(feature, model.encode(x))
    assert torch.equal(maps[0], model.encoder[0](x)) and torch.equal(maps[1], model.encoder[1](maps[0]))
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="layers must name modules of the encoder.*got 'last'"):
        MappedClassifier(model.encoder, model.head, ["last"])
    with pytest.raises(ValueError, match="at least one module"):
        MappedClassifier(model.encoder, model.head, [])
    flat = MappedClassifier(model.encoder, model.head, ["4"])
    with pytest.raises(ValueError, match=r"a model must give maps .*gave \[\(3, 6\)\]"):
        encode_with_maps(flat, x, "a model")
