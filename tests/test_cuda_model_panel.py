"""Costs made panel by panel by the CUDA kernels, on the execution model: against the reference and the dense path."""

from __future__ import annotations

import pytest
import test_class_aware_large as by_class
import torch
from cuda_harness import ORDERS, build, model
from test_panel import BAD, METRICS, budget, close, no_equal_rows, problem, reg_of, twice

import ucmkd_fast as uk
from ucmkd_fast._native import _C
from ucmkd_fast.ops import _control
from ucmkd_fast.ops._cuda import _device, panels
from ucmkd_fast.ops._problem import Options
from ucmkd_fast.ops.result import PanelResult
from ucmkd_fast.reference import sinkhorn as reference

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with"),
]


@pytest.fixture(autouse=True, params=[False, True], ids=["panels", "streamed"])
def by_panels(request, monkeypatch):
    """Each test must have run on the panels of this way: stored, or made where they are read."""
    runs = []
    monkeypatch.setattr(_device, "streamed", request.param)
    start = panels.Sweeps.start
    monkeypatch.setattr(panels.Sweeps, "start", lambda *args: runs.append(1) or start(*args))
    yield runs
    assert runs


def is_the_dense_one(tensors, wanted, options, room, limit, grad_limit):
    """The loss of ``tensors`` with this memory, and its gradients of ``wanted``, within limits of the dense path's."""
    want = uk.sinkhorn_loss(*tensors, **options)
    wants = torch.autograd.grad(want, wanted)
    with model():
        got = uk.sinkhorn_loss(*tensors, memory_budget=room, **options)
        grads = torch.autograd.grad(got, wanted)
    close(got, want, limit)
    for g, w in zip(grads, wants, strict=True):
        close(g, w, grad_limit)


@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("metric", METRICS)
def test_agrees_with_the_reference(metric, objective):
    tensors = problem(torch.float64, "zeros")
    options = {"metric": metric, "objective": objective, "reg": reg_of(metric), "max_iter": 12}
    want = reference.sinkhorn_loss(*tensors, **options)
    wants = torch.autograd.grad(want, tensors)
    order = list(ORDERS)[METRICS.index(metric) % 3]
    with model(order=order, seed=3, threads=96):
        got = uk.sinkhorn_loss(*tensors, memory_budget=budget(torch.float64), **options)
        grads = torch.autograd.grad(got, tensors)
        close(got, want, 1e-11)
        for g, w in zip(grads, wants, strict=True):
            close(g, w, 1e-8)
        low = [t.detach().float().requires_grad_() for t in tensors]
        got = uk.sinkhorn_loss(*low, memory_budget=budget(torch.float32), **options)
        grads = torch.autograd.grad(got, low)
    close(got, want, 2e-5)
    for g, w in zip(grads, wants, strict=True):
        close(g, w, 1e-3)


@pytest.mark.parametrize("grad", ["unrolled", "implicit", "envelope"])
@pytest.mark.parametrize("objective", ["transport", "regularized"])
def test_agrees_with_the_dense_path(grad, objective):
    tensors = problem(torch.float64, "random", 20, 15, 5)
    wanted = tensors[:2] if (grad, objective) == ("envelope", "transport") else tensors
    if len(wanted) == 2:
        tensors = [*wanted, *(t.detach() for t in tensors[2:])]
    options = {"grad": grad, "objective": objective, "max_iter": 150, "tol": 1e-9, "reg": 0.3}
    is_the_dense_one(tensors, wanted, options, 4000, 1e-10, 1e-6)


UNBALANCED = {
    "unrolled": {"max_iter": 15},
    "shifted": {"max_iter": 200, "tol": 1e-8},
    "shifted, to the last": {"max_iter": 9, "tol": 1e-30},
    "implicit": {"grad": "implicit", "max_iter": 300, "tol": 1e-10},
    "envelope": {"grad": "envelope", "objective": "regularized", "max_iter": 300, "tol": 1e-10},
}


@pytest.mark.parametrize("name", UNBALANCED)
@pytest.mark.parametrize("rho", [(0.5, 2.0), (0.05, None), (None, 1.0), (300.0, 100.0)], ids=str)
@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
def test_unbalanced_agrees_with_the_dense_path(name, rho):
    """Masses of other sums, some of them 0; in float32 as well."""
    tensors = problem(torch.float64, "zeros", 20, 15, 5)
    tensors[3].data *= 1 if None in rho else 1.7
    options = {"objective": "transport", "reg": 0.3, **UNBALANCED[name], "unbalanced": rho}
    want = uk.sinkhorn_loss(*tensors, return_result=True, **options)
    value = want.value_regularized if options["objective"] == "regularized" else want.value
    wants = torch.autograd.grad(value, tensors)
    low = [t.detach().float().requires_grad_() for t in tensors]
    with model():
        got = uk.sinkhorn_loss(*tensors, memory_budget=4000, **options)
        grads = torch.autograd.grad(got, tensors)
        close(got, value, 1e-10)
        for g, w in zip(grads, wants, strict=True):
            close(g, w, 1e-7)
        told = uk.sinkhorn_loss(*low, memory_budget=4000, return_result=True, **options)
        value = told.value_regularized if options["objective"] == "regularized" else told.value
        grads = torch.autograd.grad(value, low)
    if options.get("tol", 0) < 1e-9:  # else float32 stops at another iteration
        close(value, got, 2e-5)
        for g, w in zip(grads, wants, strict=True):
            close(g, w, 2e-3)


@pytest.mark.parametrize("metric", ["cosine", "l1"])
def test_unbalanced_terms_by_class(metric):
    inputs, labels = by_class.problem(33, 26)
    options = {"metric": metric, "objective": "regularized", "reg": 0.5, "max_iter": 10}
    options |= {"unbalanced": (0.5, 1.5), "class_cost": inputs[2], "y_labels": labels}
    is_the_dense_one(inputs[:2], inputs, options, 8000, 1e-10, 1e-8)


@pytest.mark.parametrize("unbalanced", [None, 1.0])
@pytest.mark.parametrize("grad", ["unrolled", "implicit"])
def test_launches_after_the_last_iteration_do_nothing(grad, unbalanced, monkeypatch):
    """A host that never learns of the flag launches everything: the same result to the last bit."""
    x, y, *_ = problem(torch.float64, None, 15, 12, 4)
    options = {
        "grad": grad,
        "max_iter": 60,
        "tol": 1e-4,
        "reg": 0.5,
        "memory_budget": 4000,
        "return_result": True,
        "unbalanced": unbalanced,
    }
    found = []
    for blind in (False, True):
        if blind:
            monkeypatch.setattr(panels.DeviceFlag, "seen", lambda self: False)
        with model() as module:
            before = module.launches()
            result = uk.sinkhorn_loss(x, y, **options)
            grads = torch.autograd.grad(result.value, (x, y))
            found.append((result.value, *result.potentials, result.n_iter, result.marginal_error, *grads))
            launches = module.launches() - before
        assert 1 < result.n_iter < 60 and (launches > (300 if _device.streamed else 1000)) is blind
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_ranges_that_plain_sums_do_not_reach(scale):
    x, y, a, b = problem(torch.float64, "zeros", 21, 17)
    x.data *= scale
    options = {"metric": "sqeuclidean", "objective": "regularized", "reg": 1.0, "max_iter": 15}
    want = reference.sinkhorn_loss(x, y, a, b, **options)
    wants = torch.autograd.grad(want, (x, y, a, b))
    with model(order="reverse"):
        low = [t.detach().float().requires_grad_() for t in (x, y, a, b)]
        got = uk.sinkhorn_loss(*low, memory_budget=4000, **options)
        close(got, want, 1e-5)
        for g, w in zip(torch.autograd.grad(got, low), wants, strict=True):
            close(g, w, 5e-3)


def test_results_and_warm_starts():
    x, y, *_ = problem(torch.float64, None, 20, 15, 5)
    options = {"return_result": True, "max_iter": 300, "tol": 1e-8, "reg": 0.5}
    dense = uk.sinkhorn_loss(x, y, **options)
    with model():
        got = uk.sinkhorn_loss(x, y, memory_budget=4000, **options)
        assert isinstance(got, PanelResult) and got.n_iter == dense.n_iter and bool(got.converged)
        again = uk.sinkhorn_loss(x, y, memory_budget=4000, init=got.potentials, **options)
    assert again.n_iter == 1
    for mine, theirs in zip(got.potentials, dense.potentials, strict=True):
        close(mine, theirs, 1e-9)


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
def test_over_relaxation_takes_fewer_iterations_to_the_same_loss(grad):
    x, y, *_ = problem(torch.float64, None, 20, 15, 5)
    options = {"grad": grad, "objective": "regularized", "reg": 0.02, "max_iter": 2000, "tol": 1e-6}
    options |= {"return_result": True, "accelerate": "relax"}
    plain = uk.sinkhorn_loss(x, y, **{**options, "accelerate": None})
    with model():
        dense = uk.sinkhorn_loss(x, y, **options)
        fast = uk.sinkhorn_loss(x, y, memory_budget=4000, **options)
        grads = torch.autograd.grad(fast.value_regularized, (x, y))
        few = uk.sinkhorn_loss(x, y, memory_budget=4000, **{**options, "max_iter": 5, "tol": 0.0})
    assert bool(fast.converged) and 1.5 * fast.n_iter < plain.n_iter and fast.n_iter == dense.n_iter
    close(fast.value_regularized, plain.value_regularized, 1e-7)
    for g, w in zip(grads, torch.autograd.grad(plain.value_regularized, (x, y)), strict=True):
        close(g, w, 1e-4)
    want = uk.sinkhorn_loss(x, y, memory_budget=4000, **{**options, "max_iter": 5, "tol": 0.0})
    for mine, theirs in zip(few.potentials, want.potentials, strict=True):
        close(mine, theirs, 1e-10)


@pytest.mark.parametrize("tol", [0.0, 1e-3])
@pytest.mark.parametrize("accelerate", [None, "relax"])
def test_the_rule_of_relaxation_is_that_of_the_host(accelerate, tol, by_panels):
    """Errors that fall, that come within the tolerance and leave it, and that grow a hundredfold."""
    by_panels.append(0)
    relaxed = 0
    for seed in range(20):
        errors = torch.logspace(0, -6, 40).double()
        errors *= 10 ** torch.randn(40, generator=torch.Generator().manual_seed(seed)).double()
        errors[7 + seed] = torch.nan
        host = _C.Relaxation(accelerate == "relax", tol, 40)
        device = _control.Relaxation(errors, Options(0.1, 40, tol, "implicit", accelerate, torch.float64))
        for t, error in enumerate(errors, 1):
            device.begin(t)
            assert bool(device.relaxed) is host.begin(t)
            relaxed += int(device.relaxed)
            device.watch(error)
            host.watch(float(error))
    assert (0 < relaxed < 20 * 36) is (accelerate == "relax")


@pytest.mark.parametrize("metric", ["cosine", "sqeuclidean"])
def test_samples_without_mass_have_their_potential_as_the_envelope(metric):
    """What the value would change by if they got some: on every way the same."""
    tensors = problem(torch.float64, "zeros", 20, 15, 5)
    options = {"metric": metric, "grad": "envelope", "objective": "regularized", "max_iter": 300, "reg": 0.5}
    wants = torch.autograd.grad(uk.sinkhorn_loss(*tensors, **options), tensors[2:])
    assert all((w[m == 0] != 0).all() and (m == 0).any() for w, m in zip(wants, tensors[2:], strict=True))
    on_cpu = uk.sinkhorn_loss(*tensors, memory_budget=4000, **options)
    for g, w in zip(torch.autograd.grad(on_cpu, tensors[2:]), wants, strict=True):
        close(g, w, 1e-9)
    with model():
        got = uk.sinkhorn_loss(*tensors, memory_budget=4000, **options)
        for g, w in zip(torch.autograd.grad(got, tensors[2:]), wants, strict=True):
            close(g, w, 1e-9)


def test_a_look_at_the_values_is_asked_for(monkeypatch):
    monkeypatch.setenv("UCMKD_CHECK", "1")
    z = torch.full((53, 2), torch.nan)
    with model(), pytest.raises(ValueError, match="overflows"):
        uk.sinkhorn_loss(z, z, memory_budget=7000)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_half_precision(half):
    x, y = (z.detach().to(half).requires_grad_() for z in problem(torch.float32)[:2])
    full = [z.detach().double().requires_grad_() for z in (x, y)]
    want = reference.sinkhorn_loss(*full, max_iter=10)
    wants = torch.autograd.grad(want, full)
    with model():
        got = uk.sinkhorn_loss(x, y, max_iter=10, memory_budget=7000)
        close(got, want, 1e-5)
        for g, w in zip(torch.autograd.grad(got, (x, y)), wants, strict=True):
            assert g.dtype == half
            close(g, w, 1e-2)


@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("metric", METRICS)
def test_terms_by_class(metric, objective):
    inputs, labels = by_class.problem(53, 37)
    inputs += by_class.masses(53, 37)
    options = {"metric": metric, "objective": objective, "reg": by_class.reg_of(metric), "max_iter": 10}

    def loss(function, x, y, W, a, b, labels=labels, **more):
        return function(x, y, a, b, class_cost=W, y_labels=labels, **options, **more)

    want = loss(reference.sinkhorn_loss, *inputs)
    wants = torch.autograd.grad(want, inputs)
    strided = labels.repeat_interleave(2)[::2]
    with model(order=list(ORDERS)[METRICS.index(metric) % 3], seed=5, threads=96):
        for dtype, limit, grad_limit, room in (
            (torch.float64, 1e-11, 1e-8, 14000),
            (torch.float32, 2e-5, 1e-3, 7000),
        ):
            own = [t.detach().to(dtype).requires_grad_() for t in inputs]
            got = loss(uk.sinkhorn_loss, *own, labels=strided, memory_budget=room)
            close(got, want, limit)
            for g, w in zip(torch.autograd.grad(got, own), wants, strict=True):
                close(g, w, grad_limit)
    assert wants[2][:, 2].abs().max() == 0 and wants[2][2, 1] == 0  # an absent class, a forbidden pair


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
def test_terms_by_class_of_other_gradients(grad):
    inputs, labels = by_class.problem(33, 26)
    options = {
        "metric": "l2",
        "reg": 2.0,
        "grad": grad,
        "objective": "regularized",
        "max_iter": 300,
        "tol": 1e-9,
    }
    options |= {"class_cost": inputs[2], "y_labels": labels}
    is_the_dense_one(inputs[:2], inputs, options, 8000, 1e-9, 1e-6)


@pytest.mark.parametrize(
    ("words", "W", "labels"),
    [
        ("number or .inf", torch.full((53, 2), torch.nan), torch.zeros(53, dtype=torch.int64)),
        ("number or .inf", torch.zeros(53, 2), torch.full((53,), 2)),
        ("none", torch.tensor([[0.0, torch.inf]]).repeat(53, 1), torch.arange(53) % 2),  # columns
        ("none", torch.full((53, 2), torch.inf), torch.arange(53) % 2),
    ],
)
def test_refused_terms_by_class(words, W, labels):
    z = torch.randn(53, 2, requires_grad=True)
    options = {"class_cost": W, "y_labels": labels, "max_iter": 3, "return_result": True}
    with model():
        result = uk.sinkhorn_loss(z, z.detach(), memory_budget=7000, **options)
        assert result.value.isnan() and torch.autograd.grad(result.value, z)[0].isnan().any()
        with pytest.raises(ValueError, match=words):
            result.check()


REFUSED = {
    "equal sums": lambda z: (z, z, 2 * torch.ones(53) / 53, None),
    "negative": lambda z: (z, z, None, -torch.ones(53) / 53),
    "all be 0": lambda z: (z, z, torch.zeros(53), torch.zeros(53)),
    "overflows": lambda z: (z * torch.nan, z, None, None),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_input_gives_nan_and_says_why_when_it_is_read(words):
    x, y, a, b = REFUSED[words](torch.randn(53, 2))
    leaf = x.clone().requires_grad_()
    with model():
        result = uk.sinkhorn_loss(leaf, y, a, b, max_iter=3, memory_budget=7000, return_result=True)
        assert result.value.isnan() and torch.autograd.grad(result.value, leaf)[0].isnan().all()
        with pytest.raises(ValueError, match=words):
            result.check()


def test_second_derivatives():
    tensors = no_equal_rows(problem(torch.float64, "zeros", 20, 15, 5))
    wants = twice(tensors, tensors, {"max_iter": 8})
    with model():
        gots = twice(tensors, tensors, {"max_iter": 8, "memory_budget": 4000})
    for got, want in zip(gots, wants, strict=True):
        close(got, want, 1e-9)


def test_second_derivatives_where_a_label_is_none_are_nan():
    """On a GPU an index out of range would end the process."""
    z, W = torch.randn(53, 2, requires_grad=True), torch.zeros(53, 2, requires_grad=True)
    options = {"class_cost": W, "y_labels": torch.full((53,), 2), "max_iter": 3, "memory_budget": 7000}
    with model():
        grads = torch.autograd.grad(uk.sinkhorn_loss(z, z.detach(), **options), (z, W), create_graph=True)
        twice_x, twice_W = torch.autograd.grad(sum(g.sum() for g in grads), (z, W))
    assert twice_x.isnan().any() and twice_W.shape == W.shape


@pytest.mark.parametrize("name", ["twice", "functorch"])
def test_second_derivatives_of_other_gradients_and_transforms_are_refused(name, by_panels):
    call, error, words = BAD[name]
    by_panels.append(0)
    with pytest.raises(error, match=words), model():
        call(torch.randn(53, 1))
