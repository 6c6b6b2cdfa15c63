"""The methods' formulas against independent short computations, their options, and the registry."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from bilevel_models import CLASSES, INPUTS, WIDTH, mlp
from host_reads import NoHostRead, forbid_python_reads
from method_formulas import EXPECTED, cross_entropy
from torch import nn

from ucmkd_fast.data.batch import Batch
from ucmkd_fast.methods import FrozenTeacher, LossMethod, Step, available_methods, build_method, register
from ucmkd_fast.methods import base as registry
from ucmkd_fast.models import Classifier
from ucmkd_fast.reference import sinkhorn as reference

METHODS = {
    "ce": {"label_smoothing": 0.1},
    "kd": {"alpha": 0.7, "temperature": 3.0},
    "feature": {"fa_weight": 0.6, "metric": "l2", "reg": 0.5},
    "joint": {"fa_weight": 0.6, "la_weight": 0.4, "metric": "l2", "reg": 0.5},
    "ucmkd": {"n1": 1, "n2": 1},
    "dkd": {"alpha": 0.7, "beta": 2.0, "temperature": 3.0},
    "rld": {"alpha": 0.7, "beta": 2.0, "temperature": 3.0, "confidence_temperature": 1.5},
    "rkd": {"distance_weight": 2.0, "angle_weight": 3.0},
}
BY_INDEX = {
    "kd": r"\(7, 4\).*\(9, 4\)",
    "dkd": r"\(7, 4\).*\(9, 4\)",
    "rld": r"\(7, 4\).*\(9, 4\)",
    "rkd": "expected 7.*got 9",
}
N = 7


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_batch(dtype: torch.dtype = torch.float64) -> Batch:
    y = torch.randint(CLASSES, (N,))
    return Batch(
        torch.randn(N, INPUTS, dtype=dtype),
        y,
        teacher_feature=torch.randn(N, WIDTH, dtype=dtype),
        teacher_y=y,
    )


def make_step(dtype: torch.dtype = torch.float64, **options) -> Step:
    return Step(mlp(nn.BatchNorm1d(8)).to(dtype), FrozenTeacher(mlp().to(dtype)), **options)


@pytest.mark.parametrize("name", EXPECTED)
def test_loss_and_gradient_are_the_formula(name):
    step, batch = make_step(), make_batch()
    teacher_logits = step.teacher.head(batch.teacher_feature)
    batch.y[0], batch.y[1] = teacher_logits[0].argmin(), teacher_logits[1].argmax()
    twin = copy.deepcopy(step.student)
    parts = build_method(name, **METHODS[name]).backward(step, batch)
    expected = EXPECTED[name](twin, step.teacher, batch, **METHODS[name])
    expected.setdefault("loss", expected["ce"])
    expected["loss"].backward()
    assert set(parts) == set(expected)
    for key, value in expected.items():
        assert parts[key].shape == () and not parts[key].requires_grad
        torch.testing.assert_close(
            parts[key], value.detach(), rtol=1e-9, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}"
        )
    for p, q in zip(step.student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-10)


def test_rkd_does_not_mind_samples_that_coincide():
    step, batch = make_step(), make_batch()
    batch.x = batch.x[:1].repeat(N, 1)
    parts = build_method("rkd").backward(step, batch)
    assert all(value.isfinite() for value in parts.values())
    assert all(p.grad.isfinite().all() for p in step.student.parameters())


def test_dkd_with_weights_one_and_the_rest_is_kd():
    """KD's divergence is TCKD + (1 - p_T(y)) NCKD; here every 1 - p_T(y) is the same."""
    step, batch = make_step(), make_batch()
    with torch.no_grad():
        logits = torch.full((N, CLASSES), 0.0, dtype=torch.float64).scatter(1, batch.y[:, None], 2.0)
    step.teacher = FrozenTeacher(Classifier(nn.Identity(), nn.Identity()))
    batch.teacher_feature = logits
    rest = 1 - float((logits / 4).softmax(1)[0, batch.y[0]])
    dkd = build_method("dkd", alpha=1.0, beta=rest, temperature=4.0).backward(step, batch)
    kd = build_method("kd", alpha=0.5, temperature=4.0).backward(step, batch)
    torch.testing.assert_close(dkd["loss"] - dkd["ce"], 16 * kd["kl"])


def test_joint_with_live_kappa_pulls_towards_one_over_e():
    """Its LA term on the teacher's head is kappa log kappa, least at kappa = 1/e."""
    step, batch = make_step(), make_batch()
    twin = copy.deepcopy(step.student)
    build_method("joint", fa_weight=0.0, kappa="live").backward(step, batch)
    z = twin.encode(batch.x)
    kappa = step.teacher.head(z).softmax(1)[torch.arange(N), batch.y]
    (2 * cross_entropy(twin.head(z), batch.y).mean() + (kappa * kappa.log()).mean()).backward()
    for p, q in zip(step.student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_teachers_sample_count_may_differ_unless_compared_by_index(name):
    step, batch = make_step(), make_batch()
    batch.teacher_feature = torch.randn(N + 2, WIDTH, dtype=torch.float64)
    if name in BY_INDEX:
        with pytest.raises(ValueError, match=BY_INDEX[name]):
            build_method(name).backward(step, batch)
    else:
        assert build_method(name).backward(step, batch)["loss"].isfinite()


@pytest.mark.parametrize("name", METHODS)
def test_ten_steps_lower_the_loss(name):
    step, batch = make_step(torch.float32), make_batch(torch.float32)
    method = build_method(name, **METHODS[name])
    optimizer = torch.optim.SGD(step.student.parameters(), lr=0.1, momentum=0.9)
    values = []
    for _ in range(11):
        values.append(float(method.backward(step, batch)["loss"]))
        optimizer.step()
    assert values[-1] < values[0] - 0.05


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_replaced_and_reduced(name):
    step, batch = make_step(), make_batch()
    method, calls = build_method(name, **METHODS[name]), []
    method.backward(step, batch)
    once = [p.grad.clone() for p in step.student.parameters()]
    step.student.load_state_dict(step.student.state_dict())
    step.reduce_gradients = lambda gradients: (
        calls.append(len(gradients)),
        torch._foreach_mul_(gradients, 1.0),
    )
    method.backward(step, batch)
    assert calls[-1] == len(once)
    for p, g in zip(step.student.parameters(), once, strict=True):
        assert torch.equal(p.grad, g)


@pytest.mark.parametrize("name", METHODS)
def test_no_host_read(name, monkeypatch):
    step, batch = make_step(torch.float32), make_batch(torch.float32)
    method = build_method(name, **METHODS[name])
    with NoHostRead():
        method.backward(step, batch)
    forbid_python_reads(monkeypatch)
    method.backward(step, batch)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_under_autocast(name):
    step = make_step(torch.float32, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    batch = make_batch(torch.float32)
    exact = build_method(name, **METHODS[name]).backward(make_like(step), batch)
    parts = build_method(name, **METHODS[name]).backward(step, batch)
    assert all(value.isfinite() for value in parts.values())
    assert parts["loss"].dtype == torch.float32
    torch.testing.assert_close(parts["loss"], exact["loss"], rtol=0.05, atol=0.02)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in step.student.parameters())


def make_like(step: Step) -> Step:
    """The same step without autocast, on a copy of the student."""
    return Step(copy.deepcopy(step.student), step.teacher)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "ce"])
def test_a_missing_teacher_is_named(name):
    step, batch = make_step(), make_batch()
    step.teacher = None
    with pytest.raises(ValueError, match="needs a teacher"):
        build_method(name).backward(step, batch)


def test_ce_needs_no_teacher():
    step, batch = make_step(), make_batch()
    step.teacher, batch.teacher_feature = None, None
    assert not build_method("ce").uses_teacher
    assert build_method("ce").backward(step, batch)["loss"].isfinite()


def test_a_batch_without_teacher_samples_is_named():
    step, batch = make_step(), make_batch()
    batch.teacher_feature = None
    for name in ("kd", "feature", "joint", "ucmkd"):
        with pytest.raises(ValueError, match="neither teacher_x nor teacher_feature"):
            build_method(name).backward(step, batch)


@pytest.mark.parametrize("name", ["feature", "joint", "ucmkd"])
def test_feature_widths_that_differ_are_refused(name):
    step, batch = make_step(), make_batch()
    batch.teacher_feature = torch.randn(N, WIDTH + 1, dtype=torch.float64)
    before = copy.deepcopy(step.student.state_dict())
    with pytest.raises(ValueError, match=r"6.*7|7.*6"):
        build_method(name).backward(step, batch)
    assert all(torch.equal(p, before[k]) for k, p in step.student.named_parameters())


@pytest.mark.parametrize("name", ["joint", "ucmkd"])
def test_class_counts_that_differ_are_refused(name):
    step, batch = make_step(), make_batch()
    step.teacher = FrozenTeacher(mlp(head=nn.Linear(WIDTH, CLASSES + 1)).double())
    with pytest.raises(ValueError, match=r"4.*5|5.*4"):
        build_method(name).backward(step, batch)


def test_draws():
    for name in METHODS:
        build_method(name).check_draw("class-matched")
        build_method(name).check_draw("paired")
    build_method("ucmkd").check_draw("independent")
    with pytest.raises(ValueError, match="'kd' compares .* 'class-matched' or 'paired'; got 'independent'"):
        build_method("kd").check_draw("independent")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "option", ["label_smoothing", "alpha", "fa_weight", "la_weight", "lambda1", "reg", "inner_lr"]
)
@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf"), "1", True, torch.tensor(0.5)])
def test_bad_numbers_are_refused(name, option, value):
    error = ValueError if isinstance(value, float) else TypeError
    if option not in registry.method_class(name).__init__.__kwdefaults__:
        error, value = ValueError, 0.1  # no such option
    with pytest.raises(error, match=option):
        build_method(name, **{option: value})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ce", {"label_smoothing": 1.5}, r"label_smoothing .*\[0, 1\], got 1.5"),
        ("kd", {"alpha": 1.01}, r"alpha .*\[0, 1\]"),
        ("kd", {"temperature": 0}, "temperature .*> 0, got 0"),
        ("kd", {"temprature": 2}, "no option 'temprature'; its options are .*'temperature'"),
        ("feature", {"metric": "angular"}, "metric .*'cosine'.*got 'angular'"),
        ("feature", {"reg": 0}, "reg .*> 0, got 0"),
        ("feature", {"max_iter": 0}, "max_iter .*>= 1, got 0"),
        ("joint", {"kappa": "alive"}, "kappa .*'live'.*got 'alive'"),
        ("ucmkd", {"preset": "publishedcode"}, "preset .*'paper'.*did you mean 'published-code'"),
        ("ucmkd", {"n1": -1}, "n1 .*>= 0, got -1"),
        ("ucmkd", {"order": 3}, "order must be 1 or 2, got 3"),
        ("ucmkd", {"order": True}, "order must be 1 or 2, got True"),
        ("ucmkd", {"order": 2, "preset": "published-code"}, "order=2 needs preset 'paper'"),
        ("ucmkd", {"encoder_passes": "one"}, "encoder_passes .*'auto'"),
        ("ucmkd", {"inner_clip": 0}, "inner_clip .*> 0, got 0"),
        ("ucmkd", {"inner_wd": 0.1}, "'paper' has no inner_wd .*weight decay"),
        ("ucmkd", {"preset": "published-code", "lambda1": 1.0}, "'published-code' has no lambda1"),
        ("ucmkd", {"preset": "published-code", "inner_clip": 1.0}, "'published-code' has no inner_clip"),
        ("ucmkd", {"preset": "published-code", "kappa": "live"}, "'published-code' has no kappa"),
        ("sumall", {}, "'sumall' is called 'joint' here"),
        ("bilevel", {}, "'bilevel' is called 'ucmkd' here"),
        ("mixup", {}, r"method must be one of \['c2kd', 'ce', .*, 'ucmkd-plus'\], got 'mixup'"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_method(name, **options)


@pytest.mark.parametrize(
    "options",
    [{"n1": 1.0}, {"n2": True}, {"max_iter": 2.5}, {"preset": "published-code", "inner_lr": "outer"}],
)
def test_options_of_a_wrong_type_are_refused(options):
    with pytest.raises(TypeError, match=list(options)[-1]):
        build_method("ucmkd", **options)


def test_defaults_are_those_of_the_presets():
    paper = build_method("ucmkd").options
    assert (paper.preset, paper.transport.metric, paper.inner_lr, paper.inner_clip) == (
        "paper",
        "l2",
        0.005,
        1.0,
    )
    published = build_method("ucmkd", preset="published-code").options
    assert (published.transport.metric, published.inner_lr, published.inner_wd) == ("cosine", 5e-5, 0.05)
    assert paper.transport[1:] == published.transport[1:] == (0.1, 100, None)


UNBALANCED = {
    "feature": {"metric": "l2", "reg": 0.5},
    "joint": {"metric": "l2", "reg": 0.5},
    "ucmkd": {"reg": 0.5},
    "ucmkd, published code": {"preset": "published-code", "inner_lr": 1e-3},
    "ucmkd, second order": {"reg": 0.5, "order": 2},
}


@pytest.mark.parametrize("pair", [(0.7, 0.7), (0.7, None), (None, 0.7)])
@pytest.mark.parametrize("name", UNBALANCED)
def test_unbalanced_alignment_is_the_references(name, pair):
    options, built = UNBALANCED[name], name.partition(",")[0]
    step, batch = make_step(), make_batch()
    z = copy.deepcopy(step.student).encode(batch.x)
    rho = tuple(math.inf if one is None else one for one in pair)
    metric, reg = options.get("metric", "cosine" if "preset" in options else "l2"), options.get("reg", 0.1)
    want = reference.sinkhorn_loss(
        z, batch.teacher_feature, metric=metric, reg=reg, max_iter=100, unbalanced=rho
    )
    parts = build_method(built, unbalanced=list(pair), **options).backward(step, batch)
    torch.testing.assert_close(parts["fa"], want.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", UNBALANCED)
def test_unbalanced_alignment_moves_the_student_otherwise(name):
    options, built = UNBALANCED[name], name.partition(",")[0]

    def gradient(**more):
        step, batch = make_like(start), copy.copy(sample)
        build_method(built, **options, **more).backward(step, batch)
        return torch.cat([p.grad.flatten() for p in step.student.parameters()])

    start, sample = make_step(), make_batch()
    exact = gradient()
    for same in (None, math.inf, [math.inf, None]):
        assert torch.equal(gradient(unbalanced=same), exact)
    assert (gradient(unbalanced=0.3) - exact).abs().max() > 1e-9


def test_unbalanced_feature_gradient_is_the_formula():
    step, batch = make_step(), make_batch()
    twin = copy.deepcopy(step.student)
    build_method("feature", reg=0.3, unbalanced=0.5, fa_weight=2.0).backward(step, batch)
    z = twin.encode(batch.x)
    fa = reference.sinkhorn_loss(z, batch.teacher_feature, reg=0.3, max_iter=100, unbalanced=(0.5, 0.5))
    (F.cross_entropy(twin.head(z), batch.y) + 2.0 * fa).backward()
    for p, q in zip(step.student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["feature", "joint", "ucmkd", "label-aware-fa", "ucmkd-plus"])
@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0, ValueError, "unbalanced must be a number above 0 .* got 0"),
        (-0.5, ValueError, "above 0 .* got -0.5"),
        ([0.5, float("nan")], ValueError, "above 0 .* got nan"),
        ("0.5", TypeError, r"unbalanced must be rho > 0 or a pair \(rho_a, rho_b\).* got str"),
        (True, TypeError, "got bool"),
        ([0.1, 0.2, 0.3], TypeError, r"a pair \(rho_a, rho_b\), got 3 values"),
    ],
)
def test_an_unbalanced_that_is_none_is_refused(name, value, error, said):
    with pytest.raises(error, match=said):
        build_method(name, unbalanced=value)


@pytest.mark.parametrize("name", ["ce", "kd", "rkd", "fitnet", "prototype-kd"])
def test_methods_without_alignment_have_no_unbalanced(name):
    with pytest.raises(ValueError, match=f"method '{name}' has no option 'unbalanced'; its options are"):
        build_method(name, unbalanced=0.5)


def test_registry_refuses_a_name_twice():
    assert set(METHODS) < set(available_methods()) and available_methods() == sorted(available_methods())
    with pytest.raises(ValueError, match="'ce' is empty or taken"):
        register(type("Again", (LossMethod,), {"name": "ce"}))
    with pytest.raises(ValueError, match="'' is empty or taken"):
        register(type("Nameless", (LossMethod,), {}))


class Projected(LossMethod):
    """A method with a module and an optimiser of its own, as later ones will have."""

    def setup(self, student, teacher, example):
        self.project = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self._optimizer = torch.optim.Adam(self.project.parameters())

    def own_optimizers(self):
        return (self._optimizer,)

    def loss(self, step, batch):
        z = step.student.encode(batch.x)
        return {"loss": F.mse_loss(self.project(z), step.required_teacher.features(batch))}


def test_a_method_may_own_modules():
    step, batch = make_step(), make_batch()
    reduced = []
    step.reduce_gradients = reduced.extend
    method = Projected()
    method.setup(step.student, step.teacher, batch)
    method.project.weight.grad = torch.full_like(method.project.weight, 1e3)
    method.backward(step, batch)
    assert any(g is method.project.weight.grad for g in reduced)
    assert method.project.weight.grad.abs().max() < 1e2
    before = method.project.weight.clone()
    for optimizer in method.own_optimizers():
        optimizer.step()
    assert not torch.equal(method.project.weight, before)
    assert set(method.state_dict()) == {"project.weight", "project.bias"}


def test_frozen_teacher():
    model = mlp(nn.BatchNorm1d(8), head=nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, CLASSES)))
    teacher = FrozenTeacher(model.train())
    batch = Batch(torch.randn(3, INPUTS), torch.zeros(3, dtype=torch.long), teacher_x=torch.randn(4, INPUTS))
    features = teacher.features(batch)
    assert features is teacher.features(batch) is batch.teacher_feature and not features.requires_grad
    model.train()
    z = torch.randn(2, WIDTH, requires_grad=True)
    first = teacher.head(z)
    assert torch.equal(first, teacher.head(z)), "dropout must be off"
    first.sum().backward()
    assert z.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
