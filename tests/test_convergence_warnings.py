"""`ConvergenceWarning`: a loss that has not converged says so, on every way to it."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from cuda_harness import build, model

import ucmkd_fast as uk
from ucmkd_fast.data.warm_start import WarmStart
from ucmkd_fast.ops import _devices, not_converged

pytestmark = pytest.mark.usefixtures("one_thread")

STOPPED = {"tol": 1e-6, "max_iter": 2}
OFFSETS = torch.tensor([0, 5, 5, 20]), torch.tensor([0, 7, 7, 15])
LABELS = torch.arange(20) % 3, torch.arange(15) % 3


def features(dtype=torch.float32):
    return torch.randn(20, 8, dtype=dtype).requires_grad_(), torch.randn(15, 8, dtype=dtype)


def masses(*sizes: int) -> torch.Tensor:
    return torch.cat([(torch.rand(n) + 0.1).softmax(0) for n in sizes])


def loss(**given):
    x, y = features()
    return lambda **options: uk.sinkhorn_loss(x, y, **given, **options)


def cost(*shape: int):
    C = torch.rand(*shape)
    return lambda metric=None, **options: uk.sinkhorn(C, **options)


def batch(**given):
    x, y = torch.randn(2, 10, 8), torch.randn(2, 7, 8)
    return lambda **options: uk.sinkhorn_loss(x, y, **given, **options)


def by_class(beta):
    x, y = features()
    return lambda **options: uk.class_conditional_loss(x, y, *LABELS, classes=3, beta=beta, **options)


def transformed(**options):
    x, y = features()
    return torch.func.grad(lambda z: uk.sinkhorn_loss(z, y, **options))(x.detach())


def without_gradient(**options):
    x, y = features()
    return uk.sinkhorn_loss(x.detach(), y, **options)


def module(**options):
    return uk.FeatureAlignmentLoss(**options)(*features())


WAYS = {
    "small": loss(),
    "no gradient": without_gradient,
    "large": lambda **options: uk.sinkhorn_loss(
        torch.randn(260, 520).requires_grad_(), torch.randn(260, 520), **options
    ),
    "masses": loss(a=masses(20), b=masses(15)),
    "masses with gradient": loss(a=masses(20).requires_grad_()),
    "regularized": loss(objective="regularized"),
    "divergence": loss(objective="divergence"),
    "implicit": loss(grad="implicit"),
    "envelope": loss(grad="envelope"),
    "panels": loss(memory_budget=6000),
    "batch": batch(),
    "batch divergence": batch(objective="divergence"),
    "list": loss(offsets=OFFSETS),
    "list with masses": loss(offsets=OFFSETS, a=masses(5, 15), b=masses(7, 8)),
    "result": loss(return_result=True),
    "result of a batch": batch(return_result=True),
    "class cost": loss(class_cost=torch.rand(20, 3), y_labels=LABELS[1]),
    "class by class": by_class(float("inf")),
    "classes at a price": by_class(0.5),
    "relative reg": loss(reg_scale="mean"),
    "relative reg, batch": batch(reg_scale="mean"),
    "module": module,
    "functorch": transformed,
    "sinkhorn": cost(12, 9),
    "sinkhorn of a batch": cost(3, 12, 9),
}


def warned(call, *args, **options) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call(*args, **options)
    return [w for w in told if issubclass(w.category, uk.ConvergenceWarning)]


@pytest.mark.parametrize("way", WAYS)
def test_a_tolerance_that_was_not_reached_warns_once_at_the_callers_line(way):
    told = warned(WAYS[way], **STOPPED)
    assert len(told) == 1 and told[0].filename == __file__
    said = str(told[0].message)
    for part in (
        "after max_iter=2 iterations the marginal error is ",
        "above tol=1e-06",
        "raise max_iter or reg",
    ):
        assert part in said
    assert "accelerate='relax'" in said and "init=" in said


@pytest.mark.parametrize("way", WAYS)
def test_without_a_tolerance_or_with_one_that_was_reached_nothing_is_said(way):
    assert not warned(WAYS[way], max_iter=2)
    assert not warned(WAYS[way], tol=1e-3, max_iter=3000, reg=1.0)


@pytest.mark.parametrize("way", [way for way in WAYS if "relative" not in way])
def test_a_reg_below_the_rounding_of_the_cost_warns(way):
    options = {"metric": "sqeuclidean", "reg": 1e-7, "max_iter": 3}
    told = warned(WAYS[way], **({**options, "reg": 1e-9} if way.startswith("sinkhorn") else options))
    said = [str(w.message) for w in told if "below the rounding" in str(w.message)]
    assert len(said) == 1 and "reg_scale='mean'" in said[0] and "float64" in said[0]


def test_the_error_that_is_told_is_that_of_the_call():
    x, y = features()
    for max_iter in (2, 20):
        (told,) = warned(uk.sinkhorn_loss, x, y, tol=1e-6, max_iter=max_iter)
        error = uk.sinkhorn_loss(x, y, max_iter=max_iter, return_result=True).marginal_error
        assert f"max_iter={max_iter} iterations the marginal error is {error.item():.2g}," in str(
            told.message
        )


def test_the_worst_problem_of_a_batch_is_told():
    C = torch.stack([torch.rand(8, 8), 10 * torch.rand(8, 8)])
    (told,) = warned(uk.sinkhorn, C, tol=1e-5, max_iter=40)
    error = uk.sinkhorn(C, max_iter=40).marginal_error
    assert error[0] < 1e-5 and f"error is {error[1].item():.2g}," in str(told.message)


def test_what_helps_is_what_the_call_does_not_do_yet():
    x, y = features()
    (told,) = warned(
        uk.sinkhorn_loss, x, y, tol=1e-9, max_iter=2, grad="implicit", accelerate="relax", reg=0.5
    )
    assert "accelerate" not in str(told.message) and "tol, which float32 hardly resolves" in str(told.message)


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("sinkhorn") and way != "module"])
def test_whoever_asks_for_the_convergence_looks_for_himself(way):
    told = uk.Convergence()
    assert not warned(WAYS[way], convergence=told, **STOPPED)
    if way != "functorch":  # its tensors live inside the transform
        assert bool((told.n_iter.max() == 2) & (told.marginal_error.max() > 1e-6))


def test_large_finite_costs_that_forbid_pairs_do_not_count_as_rounding():
    C = torch.rand(6, 6).fill_diagonal_(1e9)
    assert not warned(uk.sinkhorn, C, reg=0.1)


def test_the_mass_does_not_count():
    C = torch.rand(6, 6)
    for mass in (1e-6, 1e6):
        a = torch.full((6,), mass / 6)
        assert not warned(uk.sinkhorn, C, a, a, reg=1e-3)
        assert len(warned(uk.sinkhorn, C, a, a, reg=1e-9)) == 1


def test_a_constant_in_the_cost_that_swallows_reg_warns_in_float32_only():
    C = torch.rand(6, 6, dtype=torch.float64) + 1e7
    assert not warned(uk.sinkhorn, C, reg=0.1)
    (told,) = warned(uk.sinkhorn, C.float(), reg=0.1)
    assert "known to 1 in float32" in str(told.message)


def test_collapsed_features_under_a_relative_reg_warn():
    x = torch.randn(1, 16).expand(9, 16) * (1 + 1e-3 * torch.rand(9, 1))
    assert len(warned(uk.sinkhorn_loss, x, x[:7], reg_scale="mean", max_iter=5)) == 1


LOOP = """
import torch, ucmkd_fast as uk
x, y = torch.randn(20, 8), torch.randn(15, 8)
for k in range(30):
    uk.sinkhorn_loss(x + k, y, metric="l2", tol=1e-6, max_iter=2)
    uk.sinkhorn(torch.rand(9, 9), tol=1e-6, max_iter=2)
"""


def test_pythons_filter_shows_it_once_per_line_though_each_error_is_another():
    run = subprocess.run([sys.executable, "-c", LOOP], capture_output=True, text=True, check=True)
    assert run.stderr.count("ConvergenceWarning") == 2
    silent = "import warnings, ucmkd_fast as uk; warnings.simplefilter('ignore', uk.ConvergenceWarning)\n"
    run = subprocess.run([sys.executable, "-c", silent + LOOP], capture_output=True, text=True, check=True)
    assert "ConvergenceWarning" not in run.stderr


def test_it_can_be_made_an_error():
    x, y = features()
    with warnings.catch_warnings():
        warnings.simplefilter("error", uk.ConvergenceWarning)
        for _ in range(2):
            with pytest.raises(uk.ConvergenceWarning, match="did not converge"):
                uk.sinkhorn_loss(x, y, **STOPPED)


def test_filters_that_change_show_it_again_with_its_own_error():
    x, y = features()

    def call(max_iter):
        uk.sinkhorn_loss(x, y, tol=1e-6, max_iter=max_iter)

    for max_iter in (2, 3, 4):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            call(max_iter)
            call(max_iter + 10)
        assert [f"max_iter={max_iter} " in str(w.message) for w in told] == [True]


def test_compiled_calls_warn_when_they_run():
    x, y = features()
    call = torch.compile(lambda z: uk.sinkhorn_loss(z, y, **STOPPED), backend="aot_eager", fullgraph=True)
    assert len(warned(call, x)) == 1 == len(warned(call, x))


def test_devices_without_kernels_warn(monkeypatch):
    monkeypatch.setattr(_devices, "_cpu", _devices._reference)
    for way in ("small", "batch", "list", "sinkhorn of a batch", "class cost", "divergence"):
        assert len(warned(WAYS[way], **STOPPED)) == 1, way


def test_a_small_call_pays_nothing_where_there_is_nothing_to_look_at(monkeypatch):
    def no_look(*_):
        raise AssertionError("looked at")

    x, y = features()
    monkeypatch.setattr(not_converged, "_report", no_look)
    monkeypatch.setattr(not_converged, "remark", no_look)
    uk.sinkhorn_loss(x, y)
    uk.sinkhorn_loss(x, y, metric="l1", reg=1.0)
    uk.sinkhorn_loss(x, y, tol=1e-3, reg=1.0)
    uk.sinkhorn(torch.rand(9, 9))


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler for the model of a GPU")
@pytest.mark.parametrize(
    "way", ["small", "divergence", "panels", "list", "class cost", "sinkhorn of a batch"]
)
def test_the_kernels_of_a_gpu_warn(way):
    with model():
        assert len(warned(WAYS[way], **STOPPED)) == 1
        assert not warned(WAYS[way], tol=1e-3, max_iter=300, reg=1.0)
        assert not warned(WAYS[way], max_iter=2)


class _Device:
    """Stands for a copy from a GPU that arrives later."""

    def __init__(self):
        self.arrived = False

    def query(self):
        return self.arrived


def test_on_a_gpu_a_warning_comes_with_a_later_call_at_the_line_of_the_first(monkeypatch):
    device = _Device()
    x, y = features()
    numbers = []

    def later(found, judge, kind):
        numbers.append(found)
        report = not_converged._Report(device, found, judge, not_converged.call_site(), kind)
        not_converged._on_their_way.append(report)

    monkeypatch.setattr(not_converged, "_report", later)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert not warned(lambda: uk.sinkhorn(torch.rand(3, 9, 9), **STOPPED))
    assert not warned(not_converged.flush_warnings)  # not there yet: nothing waits
    device.arrived = True
    (told,) = warned(not_converged.flush_warnings)
    assert told.filename == __file__ and numbers[0].shape == (2,)
    assert not not_converged._on_their_way


def test_a_warm_start_keeps_the_figures_and_is_quiet():
    bank, student = torch.randn(30, 8), torch.randn(20, 8)
    warm = WarmStart(30, 20, tol=1e-9, max_iter=2, grad="implicit")
    assert not warned(warm, student, torch.arange(20), bank, torch.arange(30))
    assert warm.last_n_iter == 2 and warm.last_marginal_error > 1e-9


def test_pots_functions_speak_with_pots_voice_alone():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        uk.compat.pot.solve(torch.rand(5, 6) * 1e8, reg=0.01, max_iter=30)
        uk.compat.pot.solve(torch.rand(5, 6).requires_grad_(), reg=0.01, max_iter=30)
        uk.compat.pot.sinkhorn2([], [], torch.rand(5, 6), reg=0.01, numItermax=3, warn=False)
    assert [str(w.message)[:26] for w in told] == ["Sinkhorn did not converge:"] * 2
