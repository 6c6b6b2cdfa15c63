"""`sinkhorn` against the reference in float64: values, gradients, known answers, bad input."""

from __future__ import annotations

import math
import sys
import warnings

import pytest
import torch
from sinkhorn_cases import CASES, Case

import ucmkd_fast as uk
from ucmkd_fast._native import _C
from ucmkd_fast.ops import _registered
from ucmkd_fast.ops._cpu.sinkhorn import saved_size
from ucmkd_fast.ops._problem import Options
from ucmkd_fast.reference import sinkhorn as reference

OBJECTIVES = ("value", "value_regularized")
FLOOR = {torch.float64: 1e-9, torch.float32: 3e-6}


def leaves(case: Case, dtype: torch.dtype):
    return [None if t is None else t.to(dtype).requires_grad_() for t in case.tensors()]


def gradients(output, inputs):
    return torch.autograd.grad(output, [t for t in inputs if t is not None], retain_graph=True)


def distance(got, want, scale: float = 1e-6) -> float:
    """Largest difference over the largest entry, or over a scale of its unit; NaN counts as infinite."""
    error = (got.double() - want.double()).abs().max().item()
    return math.inf if math.isnan(error) else error / max(want.abs().max().item(), scale)


def compare(case: Case, dtype: torch.dtype, grad: str = "unrolled") -> None:
    """Error against float64 at most twice that of plain torch at the same dtype, and a floor."""
    truth_in = leaves(case, torch.float64)
    options = {"reg": case.reg, "max_iter": case.max_iter, "grad": grad}
    truth = reference.sinkhorn(*truth_in, **options)
    ours_in = leaves(case, dtype)
    ours = uk.sinkhorn(*ours_in, **options)
    plain_in = leaves(case, dtype)
    plain = reference.sinkhorn(*plain_in, **options)
    C = truth_in[0]
    unit = C[C.isfinite()].abs().max().item()
    for objective in OBJECTIVES:
        want, got, naive = (getattr(s, objective) for s in (truth, ours, plain))
        assert distance(got, want) <= 2 * distance(naive, want) + FLOOR[dtype], objective
        if objective == "value" and grad == "envelope":
            continue
        wants, gots, naives = (
            gradients(o, t) for o, t in ((want, truth_in), (got, ours_in), (naive, plain_in))
        )
        for name, w, g, n in zip("Cab", wants, gots, naives, strict=False):
            if grad != "unrolled" and name != "C":  # defined up to a constant, and free where the mass is 0
                keep = truth_in[1 if name == "a" else 2] > 0
                w, g, n = (z[keep] - z[keep].mean() for z in (w, g, n))
            scale = 1e-6 if name == "C" else unit  # gradients of masses are costs
            assert distance(g, w, scale) <= 2 * min(distance(n, w, scale), 1) + 30 * FLOOR[dtype], (
                objective,
                name,
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_unrolled_agrees_with_the_reference(case, dtype):
    compare(case, dtype)


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
@pytest.mark.parametrize("masses", ["uniform", "random", "zeros"])
@pytest.mark.parametrize("reg", [0.5, 0.1])
def test_gradients_at_the_fixed_point(grad, masses, reg):
    compare(Case(14, 9, reg, 2000, masses), torch.float64, grad)


def test_implicit_equals_unrolled_at_convergence():
    C, a, b = leaves(Case(12, 17, 0.2, 1, "random"), torch.float64)
    for objective in OBJECTIVES:
        outputs = [uk.sinkhorn(C, a, b, reg=0.2, max_iter=500, grad=g) for g in ("unrolled", "implicit")]
        unrolled, implicit = (gradients(getattr(o, objective), (C, a, b)) for o in outputs)
        assert distance(implicit[0], unrolled[0]) < 1e-9
        for i, u in zip(implicit[1:], unrolled[1:], strict=True):
            assert distance(i - i.mean(), u - u.mean()) < 1e-9


@pytest.mark.parametrize("case", CASES[:30], ids=str)
def test_both_adjoints_agree(case, monkeypatch):
    """The log-domain adjoint, forced, against the plain sums."""
    C, a, b = leaves(case, torch.float64)
    plain = gradients(uk.sinkhorn(C, a, b, reg=case.reg, max_iter=case.max_iter).value, (C, a, b))
    real = _C.sinkhorn_adjoint

    def out_of_range(problem, upstream, **addresses):
        real(problem, upstream, **addresses)
        import ctypes

        ctypes.c_int64.from_address(addresses["depth"]).value = -1
        return 0

    monkeypatch.setattr(_C, "sinkhorn_adjoint", out_of_range)
    forced = gradients(uk.sinkhorn(C, a, b, reg=case.reg, max_iter=case.max_iter).value, (C, a, b))
    for p, f in zip(plain, forced, strict=True):
        assert distance(f, p) < 1e-8


@pytest.mark.parametrize("reg", [0.3, 0.02])
def test_gradcheck(reg):
    C, a, b = Case(5, 4, reg, 4, "random").tensors()
    a, b = a / a.sum(), b / b.sum()

    def f(C, a, b):
        # Softmax keeps the sums equal under the finite differences.
        s = uk.sinkhorn(C, a.softmax(0), b.softmax(0), reg=reg, max_iter=4)
        return s.value, s.value_regularized, *s.potentials, s.plan()

    inputs = [t.clone().requires_grad_() for t in (C, a, b)]
    assert torch.autograd.gradcheck(f, inputs)


def test_gradgradcheck():
    C, _, _ = Case(4, 3, 0.3, 3).tensors()
    assert torch.autograd.gradgradcheck(
        lambda c: uk.sinkhorn(c, reg=0.3, max_iter=3).value, C.clone().requires_grad_()
    )
    x, y = torch.randn(4, 3).double().requires_grad_(), torch.randn(3, 3).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, y: uk.sinkhorn_loss(x, y, reg=0.5, max_iter=3), (x, y))


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
def test_double_backward_is_refused_where_it_would_be_wrong(grad):
    C = torch.rand(4, 3, requires_grad=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        torch.autograd.grad(uk.sinkhorn(C, grad=grad).value_regularized, C, create_graph=True)


def test_known_answers():
    # A small reg finds the permutation.
    n = 12
    permutation = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    C = torch.ones(n, n).double()
    C[torch.arange(n), permutation] = 0
    s = uk.sinkhorn(C, reg=0.01)
    assert s.value < 1e-12
    assert torch.allclose(s.plan()[torch.arange(n), permutation], torch.full((n,), 1 / n).double())
    # Diracs: the one plan there is.
    x, y = torch.randn(1, 5), torch.randn(1, 5)
    assert torch.allclose(uk.sinkhorn_loss(x, y, metric="l2"), (x - y).norm())
    # All mass of a on one row: the plan is that row's b.
    a, b = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.25, 0.75])
    cost = torch.rand(3, 2)
    s = uk.sinkhorn(cost, a, b)
    assert torch.allclose(s.plan()[1], b) and torch.allclose(s.value, (cost[1] * b).sum())
    # Translation: squared l2 between a set and itself moved by v is |v|^2 plus what it is to itself.
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    v = torch.tensor([3.0, -1.0, 2.0]).double()
    options = {"metric": "sqeuclidean", "reg": 4.0, "max_iter": 2000}
    moved, still = (uk.sinkhorn_loss(z, w, objective="divergence", **options) for w in (z + v, z))
    assert torch.allclose(moved, v @ v, atol=1e-6) and still.abs() < 1e-9
    # An independent plan where reg is huge.
    s = uk.sinkhorn(torch.rand(4, 6), reg=1e6)
    assert torch.allclose(s.plan(), torch.full((4, 6), 1 / 24), atol=1e-6)


def test_result_describes_the_run():
    C, a, b = Case(30, 20, 0.1, 1, "random").tensors()
    s = uk.sinkhorn(C, a, b, reg=0.1, max_iter=500, tol=1e-6)
    assert s.converged and s.marginal_error <= 1e-6 and 1 < s.n_iter < 500
    assert not s.marginal_error.requires_grad and s.n_iter.dtype == torch.int64
    plan = s.plan()
    assert torch.allclose(plan.sum(1), a, atol=1e-12)
    assert abs((plan.sum(0) - b).abs().sum() - s.marginal_error) < 1e-9
    f, g = s.potentials
    assert torch.allclose(plan, ((f[:, None] + g - C) / 0.1).exp())
    assert torch.allclose(s.value, (plan * C).sum())
    full = s.value + 0.1 * (plan * (plan / (a[:, None] * b)).log()).sum()
    assert torch.allclose(s.value_regularized, full, atol=1e-5)
    once = uk.sinkhorn(C, a, b, reg=0.1, max_iter=1)
    assert not once.converged and once.n_iter == 1
    assert "value=" in repr(s)


def test_tol_stops_when_the_reference_does():
    C, a, b = Case(30, 20, 0.1, 1, "random").tensors()
    for tol in (1e-2, 1e-4, 1e-8):
        want = reference.sinkhorn(C, a, b, reg=0.1, max_iter=300, tol=tol)
        got = uk.sinkhorn(C, a, b, reg=0.1, max_iter=300, tol=tol)
        assert got.n_iter == want.n_iter and torch.allclose(got.value, want.value, rtol=1e-12)


def test_warm_start():
    for reg in (0.1, 0.004):
        C, a, b = leaves(Case(30, 20, reg, 1, "zeros"), torch.float64)
        first = uk.sinkhorn(C, a, b, reg=reg, max_iter=200)
        again = uk.sinkhorn(C, a, b, reg=reg, max_iter=3, init=first.potentials)
        want = reference.sinkhorn(C, a, b, reg=reg, max_iter=3, init=first.potentials)
        assert torch.allclose(again.value, want.value, rtol=1e-10)
        for g, w in zip(gradients(again.value, (C, a, b)), gradients(want.value, (C, a, b)), strict=True):
            assert distance(g, w) < 1e-8
    C, a, b = Case(30, 20, 0.1, 1, "zeros").tensors()
    stopped = uk.sinkhorn(C, a, b, reg=0.1, max_iter=200, tol=1e-4)
    warm = uk.sinkhorn(C, a, b, reg=0.1, max_iter=200, tol=1e-4, init=stopped.potentials)
    assert warm.n_iter <= 2 < stopped.n_iter


@pytest.mark.parametrize("masses", ["uniform", "random", "zeros"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_over_relaxation_ends_at_the_same_point_in_fewer_iterations(masses, dtype):
    for reg, saves in ((0.1, False), (0.02, True), (0.005, True)):
        C, a, b = (
            None if t is None else t.to(dtype) for t in Case(60, 45, reg, 1, masses, "features").tensors()
        )
        C.requires_grad_()
        runs = [
            uk.sinkhorn(C, a, b, reg=reg, max_iter=5000, tol=1e-5, grad="implicit", accelerate=accelerate)
            for accelerate in (None, "relax")
        ]
        plain, relaxed = runs
        assert relaxed.marginal_error <= 1e-5
        target = C.new_full((60,), 1 / 60) if a is None else a
        assert torch.allclose(relaxed.plan().sum(1), target, atol=1e-6)  # the last iteration is a plain one
        assert relaxed.n_iter <= (0.7 * plain.n_iter if saves else plain.n_iter + 2)
        assert torch.allclose(relaxed.value, plain.value, rtol=1e-3)
        grads = [torch.autograd.grad(r.value, C)[0] for r in runs]
        assert distance(grads[1], grads[0]) < 2e-2
    exact = uk.sinkhorn(C.double(), max_iter=20000, tol=1e-12, reg=0.02).value
    fast = uk.sinkhorn(
        C.double(), max_iter=20000, tol=1e-12, reg=0.02, grad="envelope", accelerate="relax"
    ).value
    assert torch.allclose(exact, fast, rtol=1e-10)


@pytest.mark.parametrize("tol", [0.0, 1e-6])
def test_relaxed_iterations_of_a_range_that_plain_sums_do_not_reach(tol):
    """There they are plain ones: a run that reaches the fixed point gets it, and tol = 0 is no stop."""
    rand = torch.Generator().manual_seed(34)
    C = torch.cdist(*(3 * torch.randn(k, 3, generator=rand).double() for k in (23, 37))).square()
    options = {"reg": 0.1, "max_iter": 20000, "tol": tol, "grad": "envelope"}
    plain = uk.sinkhorn(C, **options)
    relaxed = uk.sinkhorn(C, accelerate="relax", **options)
    assert relaxed.marginal_error <= max(tol, 1e-9) or relaxed.n_iter == 20000
    assert distance(relaxed.value, plain.value) < 1e-4
    if tol == 0:
        assert relaxed.n_iter == 20000


def test_batches_equal_the_loop():
    C = torch.rand(5, 20, 13).double().requires_grad_()
    a = (torch.rand(5, 20).double() + 0.1).softmax(1).requires_grad_()
    for mass in (a, a[0], None):
        got = uk.sinkhorn(C, mass, reg=0.05, max_iter=30)
        loop = [
            uk.sinkhorn(C[k], mass if mass is None or mass.dim() == 1 else mass[k], reg=0.05, max_iter=30)
            for k in range(5)
        ]
        assert torch.equal(got.value, torch.stack([s.value for s in loop]))
        assert torch.equal(got.n_iter, torch.stack([s.n_iter for s in loop]))
        weight = torch.rand(5).double()
        inputs = [t for t in (C, mass) if t is not None]
        gots = torch.autograd.grad((got.value * weight).sum(), inputs)
        wants = torch.autograd.grad(sum(w * s.value for w, s in zip(weight, loop, strict=True)), inputs)
        for g, w in zip(gots, wants, strict=True):
            assert g.shape == w.shape and distance(g, w) < 1e-12
    assert got.plan().shape == (5, 20, 13)


def test_strides_and_reuse():
    base = torch.rand(40, 60).double()
    views = [base[::2, ::3], base.T[:20, :15], base[:10].expand(10, 60)]
    for view in views:
        leaf = view.detach().requires_grad_()
        dense = view.contiguous().detach().requires_grad_()
        pair = [uk.sinkhorn(t, reg=0.05, max_iter=10).value for t in (leaf, dense)]
        assert pair[0] == pair[1]
        assert torch.equal(*(torch.autograd.grad(v, t)[0] for v, t in zip(pair, (leaf, dense), strict=True)))
    # A second backward gives the same again; an input changed in between is noticed.
    leaf = base.clone().requires_grad_()
    changing = leaf * 1
    value = uk.sinkhorn(changing).value
    first = torch.autograd.grad(value, leaf, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(value, leaf, retain_graph=True)[0])
    with torch.no_grad():
        changing.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_no_silent_zero_where_scaling_underflows():
    """Large distances at a small reg: plain float32 scaling gives 0 and a gradient of 0."""
    x, y = torch.randn(32, 64) * 10, torch.randn(32, 64) * 10 + 5
    x.requires_grad_()
    loss = uk.sinkhorn_loss(x, y, metric="l2", reg=0.1)
    loss.backward()
    want = reference.sinkhorn_loss(x.detach().double(), y.double(), metric="l2", reg=0.1)
    assert loss > 50 and abs(loss.item() / want.item() - 1) < 1e-5
    assert torch.isfinite(x.grad).all() and x.grad.norm() > 0.1


def test_saved_size_is_that_of_the_kernels():
    for n, m, T, history in [(1, 1, 1, True), (33, 20, 7, False), (64, 130, 100, True), (2048, 17, 3, True)]:
        for rho in (None, (1.0, math.inf)):
            options = Options(0.1, T, 0.0, "unrolled", None, torch.float32, unbalanced=rho)
            size = saved_size(torch.Size((n, m)), options, history)
            assert size == _C.sinkhorn_saved_size(n, m, T, history, rho is not None)


def test_registered_ops_are_sound():
    # Sizes without padding: opcheck compares the saved block too, and padding is not written.
    C = torch.rand(16, 16, dtype=torch.float64, requires_grad=True)
    a = torch.full((16,), 1 / 16, dtype=torch.float64, requires_grad=True)
    for grad, accelerate, *rho in (
        ("unrolled", None, math.inf, math.inf),
        ("implicit", "relax", math.inf, math.inf),
        ("unrolled", None, 0.5, 2.0),
        ("implicit", None, 0.5, math.inf),
    ):
        torch.library.opcheck(
            _registered.sinkhorn_forward, (C, a, None, None, None, 0.2, 4, 0.0, grad, accelerate, *rho)
        )


@pytest.mark.parametrize("batch", [None, 3])
def test_compiled_equals_eager(batch):
    C = torch.rand(*([] if batch is None else [batch]), 9, 7, requires_grad=True)

    def f(C):
        s = uk.sinkhorn(C * 2, reg=0.2, max_iter=5)
        return s.value.sum() + s.value_regularized.sum()

    eager = f(C)
    want = torch.autograd.grad(eager, C)[0]
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)(C)
    got = torch.autograd.grad(compiled, C)[0]
    assert torch.allclose(compiled, eager) and torch.allclose(got, want)


def test_compiled_with_masses_and_a_start():
    C = torch.rand(9, 7, requires_grad=True)
    a, b = (torch.rand(k).softmax(0).requires_grad_() for k in (9, 7))
    init = torch.zeros(9), torch.zeros(7)

    def f(C, a, b):
        return uk.sinkhorn(C, a, b, reg=0.2, max_iter=5, init=init).value_regularized

    wants = torch.autograd.grad(f(C, a, b), (C, a, b))
    gots = torch.autograd.grad(torch.compile(f, backend="aot_eager", fullgraph=True)(C, a, b), (C, a, b))
    for got, want in zip(gots, wants, strict=True):
        assert torch.allclose(got, want)


def half_precision(dtype, shape):
    """A cost in half precision is solved in float32; its gradient is rounded once, at the end."""
    cost = torch.rand(*shape).to(dtype).requires_grad_()
    a = torch.rand(shape[-2]).add(0.1).softmax(0).requires_grad_()
    wide = cost.detach().float().requires_grad_()
    got, want = (uk.sinkhorn(c, a, reg=0.05, max_iter=20) for c in (cost, wide))
    assert got.value.dtype == torch.float32 and torch.equal(got.value, want.value)
    assert torch.equal(got.plan(), want.plan())
    (g, ga), (w, wa) = (torch.autograd.grad(r.value.sum(), (c, a)) for r, c in ((got, cost), (want, wide)))
    assert g.dtype == dtype and torch.equal(g, w.to(dtype)) and torch.equal(ga, wa)


@pytest.mark.parametrize("shape", [(33, 20), (3, 7, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_half_precision(dtype, shape):
    half_precision(dtype, shape)


def test_functorch_transforms():
    C = torch.rand(6, 5).double()
    want = torch.autograd.grad(uk.sinkhorn(leaf := C.clone().requires_grad_()).value, leaf)[0]
    assert torch.allclose(torch.func.grad(lambda c: uk.sinkhorn(c).value)(C), want)


def overflowing(most: float):
    cost = torch.tensor([[most, -3, -3], [0, 0, 0], [-3, -most, -most]], dtype=torch.float64)
    away = torch.full((3,), -16.0, dtype=torch.float64)
    return uk.sinkhorn(cost, reg=1e-6, max_iter=1, init=(away, away))


BAD = {
    "not a tensor": (lambda: uk.sinkhorn([[1.0]]), TypeError, "torch.Tensor"),
    "integers": (lambda: uk.sinkhorn(torch.ones(2, 2, dtype=torch.int64)), TypeError, "int64"),
    "complex": (lambda: uk.sinkhorn(torch.ones(2, 2, dtype=torch.complex64)), TypeError, "complex64"),
    "half mass": (lambda: uk.sinkhorn(torch.ones(2, 2).half(), torch.ones(2).half() / 2), TypeError, "float16"),
    "one dimension": (lambda: uk.sinkhorn(torch.ones(3)), ValueError, "shape"),
    "empty": (lambda: uk.sinkhorn(torch.ones(0, 3)), ValueError, "at least one row"),
    "NaN": (lambda: uk.sinkhorn(torch.tensor([[1.0, math.nan]])), ValueError, "NaN"),
    "-inf": (lambda: uk.sinkhorn(torch.tensor([[1.0, -math.inf]])), ValueError, "-inf"),
    "forbidden row": (
        lambda: uk.sinkhorn(torch.tensor([[1.0, 1.0], [math.inf, math.inf]])), ValueError, "finite cost"),
    "overflow": (lambda: overflowing(sys.float_info.max), ValueError, "differences overflow"),
    "negative mass": (lambda: uk.sinkhorn(torch.ones(2, 2), torch.tensor([1.5, -0.5])), ValueError, "negative"),
    "NaN mass": (lambda: uk.sinkhorn(torch.ones(2, 2), torch.tensor([1.5, math.nan])), ValueError, "NaN"),
    "no mass": (lambda: uk.sinkhorn(torch.ones(2, 2), torch.zeros(2), torch.zeros(2)), ValueError, "all be 0"),
    "sums": (lambda: uk.sinkhorn(torch.ones(2, 2), torch.ones(2)), ValueError, "equal sums"),
    "mass shape": (lambda: uk.sinkhorn(torch.ones(2, 2), torch.ones(3) / 3), ValueError, "shape"),
    "mass dtype": (lambda: uk.sinkhorn(torch.ones(2, 2), torch.ones(2).double() / 2), TypeError, "dtype"),
    "mass type": (lambda: uk.sinkhorn(torch.ones(2, 2), [0.5, 0.5]), TypeError, "torch.Tensor"),
    "reg 0": (lambda: uk.sinkhorn(torch.ones(2, 2), reg=0.0), ValueError, "reg"),
    "reg NaN": (lambda: uk.sinkhorn(torch.ones(2, 2), reg=math.nan), ValueError, "reg"),
    "reg text": (lambda: uk.sinkhorn(torch.ones(2, 2), reg="0.1"), TypeError, "reg"),
    "max_iter 0": (lambda: uk.sinkhorn(torch.ones(2, 2), max_iter=0), ValueError, "max_iter"),
    "max_iter 1.5": (lambda: uk.sinkhorn(torch.ones(2, 2), max_iter=1.5), TypeError, "max_iter"),
    "tol": (lambda: uk.sinkhorn(torch.ones(2, 2), tol=-1.0), ValueError, "tol"),
    "grad": (lambda: uk.sinkhorn(torch.ones(2, 2), grad="unroled"), ValueError, "did you mean 'unrolled'"),
    "accelerate": (lambda: uk.sinkhorn(torch.ones(2, 2), grad="implicit", accelerate="rlx"), ValueError, "'relax'"),
    "unrolled relax": (lambda: uk.sinkhorn(torch.ones(2, 2), accelerate="relax"), ValueError, "plain iterations"),
    "init": (lambda: uk.sinkhorn(torch.ones(2, 2), init=torch.ones(2)), TypeError, "pair"),
    "init shape": (lambda: uk.sinkhorn(torch.ones(2, 2), init=(torch.ones(3), torch.ones(2))), ValueError, "init f"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, words = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=words):
            call()
