"""The bi-level step against the reference by deepcopy, and what it must leave alone."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from bilevel_models import BATCH_NORM, CLASSES, INPUTS, STUDENTS, WIDTH, mlp
from host_reads import NoHostRead, forbid_python_reads
from torch import nn

from ucmkd_fast.bilevel.temporary_point import FreshAdamW, TemporaryPoint
from ucmkd_fast.data.batch import Batch
from ucmkd_fast.methods import FrozenTeacher, Step, build_method
from ucmkd_fast.models import Classifier
from ucmkd_fast.reference.bilevel import bilevel_backward

# Large inner steps, so that a wrong one shows.
PRESETS = {
    "paper": {"lambda1": 0.7, "lambda2": 1.3, "inner_lr": 0.2, "inner_clip": 0.5},
    "published-code": {"inner_lr": 0.02, "inner_wd": 0.3},
}
METRICS = ("cosine", "chordal", "l2", "l1", "sqeuclidean")
COUNTS = ((1, 1), (2, 3), (0, 1), (1, 0), (3, 0), (0, 0))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_batches(steps: int, dtype: torch.dtype = torch.float64, n: int = 7, m: int = 5) -> list[Batch]:
    return [
        Batch(
            torch.randn(n, INPUTS, dtype=dtype),
            torch.randint(CLASSES, (n,)),
            teacher_feature=torch.randn(m, WIDTH, dtype=dtype),
        )
        for _ in range(steps)
    ]


def make_teacher(dtype: torch.dtype = torch.float64) -> FrozenTeacher:
    return FrozenTeacher(mlp().to(dtype))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def train(student: Classifier, backward, batches, optimizer: str) -> list[dict[str, torch.Tensor]]:
    """Steps of an outer optimiser on the gradients that ``backward(batch)`` writes."""
    outer = OPTIMIZERS[optimizer](student.parameters())
    torch.manual_seed(1)
    logs = []
    for batch in batches:
        logs.append(backward(batch))
        outer.step()
        outer.zero_grad()
    return logs


def assert_like_reference(student, options, *, optimizer="sgd", steps=3, rtol=1e-8):
    teacher, batches = make_teacher(), make_batches(steps)
    student = student.double()
    expected = copy.deepcopy(student)
    method = build_method("ucmkd", max_iter=20, **options)
    step = Step(student, teacher)
    slow_options = {key: value for key, value in options.items() if key not in ("encoder_passes",)}
    slow_options.setdefault("metric", "l2" if options["preset"] == "paper" else "cosine")

    logs = train(student, lambda batch: method.backward(step, batch), batches, optimizer)
    slow = train(
        expected,
        lambda batch: bilevel_backward(
            expected, teacher.head, batch.x, batch.y, batch.teacher_feature, max_iter=20, **slow_options
        ),
        batches,
        optimizer,
    )
    ours, theirs = student.state_dict(), expected.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=rtol, atol=rtol, msg=lambda m, n=name: f"{n}: {m}")
    for log, slow_log in zip(logs, slow, strict=True):
        for key, value in slow_log.items():
            torch.testing.assert_close(log[key], value, rtol=rtol, atol=rtol)
            assert log[key].shape == () and not log[key].requires_grad


@pytest.mark.parametrize(("preset", "metric", "counts"), list(itertools.product(PRESETS, METRICS, COUNTS)))
def test_equals_reference_for_metrics_and_counts(preset, metric, counts):
    n1, n2 = counts
    options = {"preset": preset, "metric": metric, "n1": n1, "n2": n2, **PRESETS[preset]}
    assert_like_reference(STUDENTS[BATCH_NORM][0](), options)


@pytest.mark.parametrize(("preset", "counts"), list(itertools.product(PRESETS, [(1, 1), (2, 3), (0, 2)])))
@pytest.mark.parametrize("name", STUDENTS)
def test_equals_reference_for_students(name, preset, counts):
    n1, n2 = counts
    assert_like_reference(STUDENTS[name][0](), {"preset": preset, "n1": n1, "n2": n2, **PRESETS[preset]})


@pytest.mark.parametrize(("preset", "optimizer"), list(itertools.product(PRESETS, OPTIMIZERS)))
def test_equals_reference_for_optimisers_and_options(preset, optimizer):
    options = {"preset": preset, "n1": 1, "n2": 2, "label_smoothing": 0.1, "reg": 0.3, **PRESETS[preset]}
    if preset == "paper":
        options["kappa"] = "live"
    assert_like_reference(STUDENTS[BATCH_NORM][0](), options, optimizer=optimizer, steps=5)


def test_separate_passes_equal_the_reference():
    options = {"preset": "published-code", "n1": 1, "n2": 2, "encoder_passes": "separate"}
    assert_like_reference(STUDENTS[BATCH_NORM][0](), options | PRESETS["published-code"])


class Counting:
    """Counts the calls of a function."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


@pytest.mark.parametrize(("name", "preset"), list(itertools.product(STUDENTS, PRESETS)))
def test_number_of_encoder_passes(name, preset):
    """One pass for all of LA and CE where that is exact, and only there."""
    student, shares = STUDENTS[name][0](), STUDENTS[name][1]
    student.encode = Counting(student.encode)
    n1, n2 = 1, 3
    method = build_method("ucmkd", preset=preset, n1=n1, n2=n2)
    batches = make_batches(2, torch.float32)
    for batch in batches:
        method.backward(Step(student, make_teacher(torch.float32)), batch)
    expected = n1 + 1 if shares and preset == "published-code" else n1 + n2 + 1
    assert student.encode.calls == expected * len(batches)


def test_dropout_in_eval_mode_shares_the_pass():
    student = STUDENTS["dropout"][0]().eval()
    student.encode = Counting(student.encode)
    method = build_method("ucmkd", preset="published-code", n2=2)
    method.backward(Step(student, make_teacher(torch.float32)), make_batches(1, torch.float32)[0])
    assert student.encode.calls == 2


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_stay_and_stale_gradients_are_replaced(preset):
    student, teacher = STUDENTS[BATCH_NORM][0](), make_teacher(torch.float32)
    before = [p.clone() for p in student.parameters()]
    method = build_method("ucmkd", preset=preset, **PRESETS[preset])
    twin = copy.deepcopy(student)
    batch = make_batches(1, torch.float32)[0]
    method.backward(Step(student, teacher), batch)
    assert all(torch.equal(p, b) for p, b in zip(student.parameters(), before, strict=True))
    for p in twin.parameters():
        p.grad = torch.full_like(p, 7.0)
    build_method("ucmkd", preset=preset, **PRESETS[preset]).backward(Step(twin, teacher), batch)
    for p, q in zip(student.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


class Failing(nn.Module):
    """A teacher's head that fails at its n-th call."""

    def __init__(self, calls: int, error: type[BaseException]):
        super().__init__()
        self.linear, self.calls, self.error = nn.Linear(WIDTH, CLASSES), calls, error

    def forward(self, x):
        self.calls -= 1
        if self.calls == 0:
            raise self.error("planted")
        return self.linear(x)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_put_back_after_an_exception(preset, error):
    student = STUDENTS["dropout"][0]()  # separate passes: the teacher's head runs at every LA step
    before = [p.clone() for p in student.parameters()]
    teacher = FrozenTeacher(Classifier(nn.Identity(), Failing(2, error)))
    method = build_method("ucmkd", preset=preset, n1=1, n2=3, **PRESETS[preset])
    moved = []
    student.head.register_forward_pre_hook(
        lambda *_: moved.append(
            any(not torch.equal(p, b) for p, b in zip(student.parameters(), before, strict=True))
        )
    )
    with pytest.raises(error, match="planted"):
        method.backward(Step(student, teacher), make_batches(1, torch.float32)[0])
    assert moved and moved[-1], "the failure was to come at the temporary point"
    assert all(torch.equal(p, b) for p, b in zip(student.parameters(), before, strict=True))
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_no_gradient_is_left_when_the_processes_fail_to_agree(preset):
    student, calls = mlp(), []

    def fail_at_the_last(gradients):
        calls.append(gradients)
        if len(calls) == 3:
            raise ConnectionError("planted")

    before = [p.clone() for p in student.parameters()]
    step = Step(student, make_teacher(torch.float32), reduce_gradients=fail_at_the_last)
    with pytest.raises(ConnectionError):
        build_method("ucmkd", preset=preset).backward(step, make_batches(1, torch.float32)[0])
    assert all(p.grad is None for p in student.parameters())
    assert all(torch.equal(p, b) for p, b in zip(student.parameters(), before, strict=True))


@pytest.mark.parametrize(("name", "preset"), list(itertools.product(["layer norm", BATCH_NORM], PRESETS)))
def test_no_inner_rate_is_cross_entropy_bit_for_bit(name, preset):
    student = STUDENTS[name][0]()
    twin = copy.deepcopy(student)
    batch = make_batches(1, torch.float32)[0]
    parts = build_method("ucmkd", preset=preset, inner_lr=0).backward(
        Step(student, make_teacher(torch.float32)), batch
    )
    loss = F.cross_entropy(twin(batch.x), batch.y)
    loss.backward()
    assert torch.equal(parts["loss"], loss.detach())
    for p, q in zip(student.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_no_inner_steps_need_no_teacher_signal():
    student = mlp()
    parts = build_method("ucmkd", n1=0, n2=0).backward(
        Step(student, make_teacher(torch.float32)), make_batches(1, torch.float32)[0]
    )
    assert set(parts) == {"loss", "ce"}


# Torch's own cumulative BatchNorm reads its count.
WITHOUT_OWN_READS = [s for s in STUDENTS if "cumulative" not in s]


@pytest.mark.parametrize(("name", "preset"), list(itertools.product(WITHOUT_OWN_READS, PRESETS)))
def test_no_host_read_in_the_step(name, preset):
    student, batch = STUDENTS[name][0](), make_batches(1, torch.float32)[0]
    method = build_method("ucmkd", preset=preset, n1=2, n2=2)
    step = Step(student, make_teacher(torch.float32))
    with NoHostRead():
        method.backward(step, batch)
        method.backward(step, batch)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_host_read_by_our_python(preset, monkeypatch):
    """As before where the ops take their direct path, which a dispatch mode switches off."""
    forbid_python_reads(monkeypatch)
    step = Step(STUDENTS[BATCH_NORM][0](), make_teacher(torch.float32))
    build_method("ucmkd", preset=preset, n1=2, n2=2).backward(step, make_batches(1, torch.float32)[0])


def test_the_watch_for_host_reads_sees_one():
    student = mlp()
    encode = student.encode
    student.encode = lambda x: encode(x) * x.abs().sum().item()
    with NoHostRead(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        build_method("ucmkd").backward(
            Step(student, make_teacher(torch.float32)), make_batches(1, torch.float32)[0]
        )


@pytest.mark.parametrize(("preset", "counts"), list(itertools.product(PRESETS, [(1, 1), (2, 3)])))
def test_every_gradient_is_reduced_in_place(preset, counts):
    """What reduce_gradients leaves is what the inner step and ``.grad`` use."""
    n1, n2 = counts
    student = mlp(nn.LayerNorm(8))
    twin = copy.deepcopy(student)
    calls = []

    def forget_inner(gradients):
        calls.append(len(gradients))
        if len(calls) <= n1 + n2:
            torch._foreach_zero_(gradients)
        else:
            torch._foreach_mul_(gradients, 2.0)

    options = {**PRESETS[preset], **({"inner_wd": 0} if preset == "published-code" else {})}
    batch, teacher = make_batches(1, torch.float32)[0], make_teacher(torch.float32)
    build_method("ucmkd", preset=preset, n1=n1, n2=n2, **options).backward(
        Step(student, teacher, reduce_gradients=forget_inner), batch
    )
    head, every = len(list(student.head.parameters())), len(list(student.parameters()))
    la = every if preset == "paper" else head
    assert calls == [every - head] * n1 + [la] * n2 + [every]
    F.cross_entropy(twin(batch.x), batch.y).backward()
    for p, q in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 2 * q.grad)


@pytest.mark.parametrize("preset", PRESETS)
def test_feature_alignment_sees_gathered_rows(preset):
    student, teacher, batch = mlp(), make_teacher(torch.float32), make_batches(1, torch.float32)[0]
    shapes = []

    def gather(rows):
        shapes.append(tuple(rows.shape))
        return torch.cat([rows, rows.detach() + 1])

    build_method("ucmkd", preset=preset).backward(Step(student, teacher, gather_rows=gather), batch)
    assert shapes == [(7, WIDTH), (5, WIDTH)]


@pytest.mark.parametrize("preset", PRESETS)
def test_teacher_is_untouched_and_runs_once(preset):
    model = mlp(nn.BatchNorm1d(8))
    before = copy.deepcopy(model.state_dict())
    model.encode = Counting(model.encode)
    teacher = FrozenTeacher(model)
    model.train()  # somebody may
    batch = Batch(torch.randn(7, INPUTS), torch.randint(CLASSES, (7,)), teacher_x=torch.randn(5, INPUTS))
    build_method("ucmkd", preset=preset, n1=2, n2=2).backward(Step(mlp(), teacher), batch)
    assert model.encode.calls == 1 and not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("name", "preset"), list(itertools.product([BATCH_NORM, "dropout"], PRESETS)))
def test_callers_own_autocast_does_not_serve_stale_weights(name, preset):
    """autocast caches a weight's half-precision copy; the inner steps change the weight."""
    first = STUDENTS[name][0]()
    second = copy.deepcopy(first)
    batch, teacher = make_batches(1, torch.float32)[0], make_teacher(torch.float32)
    options = {"preset": preset, "n1": 2, "n2": 2, **PRESETS[preset]}

    def half():
        return torch.autocast("cpu", torch.bfloat16)

    torch.manual_seed(3)
    parts = build_method("ucmkd", **options).backward(Step(first, teacher, autocast=half), batch)
    torch.manual_seed(3)
    with half():
        build_method("ucmkd", **options).backward(Step(second, teacher), batch)
    assert parts["loss"].dtype == torch.float32
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    still = copy.deepcopy(first)
    build_method("ucmkd", **options | {"inner_lr": 0}).backward(Step(still, teacher, autocast=half), batch)
    assert any(
        not torch.equal(p.grad, q.grad) for p, q in zip(first.parameters(), still.parameters(), strict=True)
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_fresh_adamw_is_torchs(steps):
    parameters = [torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    theirs = [p.clone().requires_grad_() for p in parameters]
    optimizer = torch.optim.AdamW(theirs, lr=0.03, weight_decay=0.2)
    ours = FreshAdamW()
    for _ in range(2):  # the second start forgets the first
        ours.start(0.03, 0.2)
        for p, q in zip(parameters, theirs, strict=True):
            q.data.copy_(p)
        optimizer.state.clear()
        for i in range(steps):
            gradients = [torch.randn_like(p) * 10.0 ** torch.randint(-10, 3, p.shape) for p in parameters]
            for q, g in zip(theirs, gradients, strict=True):
                q.grad = g.clone()
            optimizer.step()
            ours.step_(parameters, gradients, last=i + 1 == steps)
        for p, q in zip(parameters, theirs, strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-14)


def test_temporary_point_follows_a_cast_model():
    model = mlp()
    point = TemporaryPoint(list(model.parameters()))
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        before = [p.clone() for p in model.parameters()]
        with point, torch.no_grad():
            for p in model.parameters():
                p.add_(1 / 3)
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_unfreezing_between_steps_is_noticed():
    student, teacher = STUDENTS["frozen encoder"][0](), make_teacher(torch.float32)
    method, batch = build_method("ucmkd", preset="published-code"), make_batches(1, torch.float32)[0]
    method.backward(Step(student, teacher), batch)
    assert student.encoder[0].weight.grad is None
    student.encoder.requires_grad_(True)
    before = student.encoder[0].weight.clone()
    method.backward(Step(student, teacher), batch)
    assert student.encoder[0].weight.grad is not None and torch.equal(student.encoder[0].weight, before)


def test_outer_learning_rate_inside_is_algorithm_1_read_literally():
    first = mlp()
    second = copy.deepcopy(first)
    batch, teacher = make_batches(1, torch.float32)[0], make_teacher(torch.float32)
    with pytest.warns(UserWarning, match="collapsed to chance"):
        literal = build_method("ucmkd", inner_lr="outer")
    literal.backward(Step(first, teacher, learning_rate=0.04), batch)
    build_method("ucmkd", inner_lr=0.04, inner_clip=math.inf).backward(Step(second, teacher), batch)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    with pytest.raises(ValueError, match="Step.learning_rate is None"):
        literal.backward(Step(first, teacher), batch)
