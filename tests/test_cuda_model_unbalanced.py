"""Unbalanced transport by the CUDA kernels, run on the execution model, against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_harness import ORDERS, REGIMES, build, model
from sinkhorn_cases import Case
from test_cuda_model import SHAPES_OF_OWNERSHIP
from test_sinkhorn import distance
from test_unbalanced import HARD, RHOS
from test_unbalanced import compare as compare_hard

import ucmkd_fast as uk
from ucmkd_fast.reference import sinkhorn as reference

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with"),
]


DTYPES = {"f64": torch.float64, "f32": torch.float32}
INF = math.inf
RHO = [(1e-2, 1e-2), (0.3, 0.3), (10.0, 0.5), (1e3, 1e3), (0.5, INF), (INF, 1.0)]  # of the mean cost


def problem(n, m, seed=0):
    """C (N, M) with masses of unequal sums, some 0; a far row, a forbidden pair; float64 leaves."""
    maker = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(size, 3, generator=maker, dtype=torch.float64) for size in (n, m))
    C = reference.cost(x, y, "l2")
    a, b = (
        torch.rand(size, generator=maker, dtype=torch.float64) / size * scale
        for size, scale in ((n, 1), (m, 3))
    )
    if min(n, m) > 4:
        C[2] += 4
        C[0, 3] = torch.inf
        a[1] = b[2] = 0
    return [z.requires_grad_() for z in (C, a, b)]


def outputs(found, n, weights):
    """What is compared, flat; and a scalar that depends on all of it."""
    f, g = found.potentials if hasattr(found, "potentials") else (found.f, found.g)
    dual = found.value_regularized
    parts = [found.value, dual]
    if weights:
        parts += [f[f.isfinite()].clamp_min(-50), g[g.isfinite()].clamp_min(-50)]
    maker = torch.Generator().manual_seed(n)
    loss = 0
    for part in parts:
        weight = torch.rand(part.shape, generator=maker, dtype=torch.float64)
        loss = loss + (part.double() * weight).sum() / max(1, part.numel())
    return [found.value, dual, f, g], loss


def compare(leaves, rho, dtype, limits, *, potentials=True, **options):
    """A model is on. Values, potentials and all gradients against the reference in float64; ``limits`` of each."""
    C, a, b = leaves
    mean = float(C.detach()[C.detach().isfinite()].mean())
    rho = rho[0] * mean, rho[1] * mean
    potentials = potentials and options.get("grad") != "envelope"
    want = reference.sinkhorn(C, a, b, unbalanced=rho, **options)
    wants, loss = outputs(want, len(a), potentials)
    want_grads = torch.autograd.grad(loss, leaves)
    ours = [z.detach().to(dtype).requires_grad_() for z in leaves]
    got = uk.sinkhorn(*ours, unbalanced=rho, **options)
    gots, loss = outputs(got, len(a), potentials)
    grads = torch.autograd.grad(loss, ours)
    if dtype == torch.float64:
        assert int(got.n_iter) == want.n_iter
    value, gradient = limits
    for name, g, w in zip(("value", "dual", "f", "g"), gots, wants, strict=True):
        keep = w.isfinite()
        assert torch.equal(keep, g.isfinite()), name
        assert distance(g[keep], w[keep]) < value, name
    assert abs(float(got.marginal_error.detach()) - float(want.marginal_error)) < value * float(
        b.detach().sum()
    ), "error"
    for name, g, w in zip(("cost", "a", "b"), grads, want_grads, strict=True):
        assert distance(g, w) < gradient, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("rho", RHO, ids=str)
def test_every_regime_agrees_with_the_reference(rho, regime, dtype):
    limits = {"f64": (1e-10, 1e-8), "f32": (1e-4, 2e-3)}[dtype]
    order = list(ORDERS)[(RHO.index(rho) + list(REGIMES).index(regime)) % len(ORDERS)]
    for n, m in ((33, 20), (9, 40)):
        with model(regime, order):
            compare(problem(n, m), rho, DTYPES[dtype], limits, reg=0.1, max_iter=12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("rho", RHO, ids=str)
def test_shifts_between_iterations(rho, regime, dtype):
    """With a tolerance, and at the fixed point."""
    limits = {"f64": (1e-8, 1e-6), "f32": (2e-4, 5e-3)}[dtype]
    with model(regime, "random"):
        compare(problem(21, 17), rho, DTYPES[dtype], limits, reg=0.2, max_iter=300, tol=1e-4)
        for grad in ("implicit", "envelope"):
            compare(problem(21, 17), rho, DTYPES[dtype], limits, reg=0.2, max_iter=400, grad=grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rho", RHOS, ids=str)
@pytest.mark.parametrize("case", HARD, ids=str)
@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
def test_hard_cases(case, rho, dtype):
    number = HARD.index(case) + RHOS.index(rho)
    with model(list(REGIMES)[number % 3], list(ORDERS)[number % len(ORDERS)]):
        compare_hard(case, rho, DTYPES[dtype])
        compare_hard(case, rho, DTYPES[dtype], tol=1e-30)  # shifted between iterations


@pytest.mark.parametrize("n, m, tuning", SHAPES_OF_OWNERSHIP)
@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
def test_every_shape_of_ownership(n, m, tuning):
    words = {"shared": 200 * 1024, "threads": 128, "tuning": tuning}
    for regime, own_barrier in (("resident", False), ("sweep", True)):
        with model(regime, "random", 2, own_barrier=own_barrier, **words):
            for options in ({}, {"tol": 1e-30}):
                compare_hard(Case(n, m, 0.1, 5, "zeros"), (0.3, 1.0), torch.float32, **options)


def test_rows_that_fit_no_shared_memory():
    with model("sweep", "random", shared=18 * 1024):
        compare_hard(Case(5, 2400, 0.1, 4, "random"), (0.3, 1.0), torch.float64)


@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("grad", ["unrolled", "implicit", "envelope"])
def test_losses(grad, objective):
    x, y = torch.randn(19, 5).double().requires_grad_(), (1.3 * torch.randn(23, 5)).double().requires_grad_()
    options = {"metric": "l2", "reg": 0.3, "max_iter": 20 if grad == "unrolled" else 300, "grad": grad}
    options |= {"objective": objective, "unbalanced": (0.7, 2.0)}
    want = reference.sinkhorn_loss(x, y, **options)
    wants = torch.autograd.grad(want, (x, y))
    with model():
        got = uk.sinkhorn_loss(x, y, **options)
        grads = torch.autograd.grad(got, (x, y))
    for g, w in zip((got, *grads), (want, *wants), strict=True):
        assert distance(g, w) < 1e-8


def test_lists_and_batches():
    x, y = torch.randn(20, 4).double().requires_grad_(), torch.randn(24, 4).double()
    a, b = torch.rand(20).double().requires_grad_(), torch.rand(24).double()
    offsets = torch.tensor([0, 8, 20]), torch.tensor([0, 9, 24])

    def both():
        options = {"reg": 0.3, "max_iter": 8, "unbalanced": 0.5}
        ragged = uk.sinkhorn_loss(x, y, a, b, offsets=offsets, **options)
        batch = [z.unflatten(0, (2, len(z) // 2)) for z in (x, y, a, b)]
        return torch.cat([ragged, uk.sinkhorn_loss(*batch, **options)])

    want = both()
    wants = torch.autograd.grad(want.sum(), (x, a))
    with model():
        got = both()
        grads = torch.autograd.grad(got.sum(), (x, a))
    for g, w in zip((got, *grads), (want, *wants), strict=True):
        assert distance(g, w) < 1e-9


@pytest.mark.parametrize("regime", ["block", "resident", "sweep"])
@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
def test_barriers_that_do_nothing_are_caught(regime):
    C, a, b = problem(33, 20)
    options = {"reg": 0.1, "max_iter": 6, "tol": 1e-30, "unbalanced": (1.0, 1.0)}
    want, wrong = reference.sinkhorn(C, a, b, **options).value, 0
    for order in ORDERS:
        with model(regime, order, 3, threads=96, skip_block_barrier=True):
            try:
                wrong += not distance(uk.sinkhorn(C, a, b, **options).value, want) < 1e-9
            except RuntimeError as stuck:  # threads that vote apart
                wrong += "deadlock" in str(stuck)
    assert wrong >= 2


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_half_precision_and_terms_by_class(half):
    """As exact as the same features in float32; gradients are handed back in half precision."""
    x, y = torch.randn(20, 9).to(half).requires_grad_(), torch.randn(17, 9).to(half).requires_grad_()
    W, labels = torch.rand(20, 3).requires_grad_(), torch.arange(17) % 3
    options = {
        "metric": "l2",
        "objective": "regularized",
        "reg": 0.5,
        "max_iter": 12,
        "unbalanced": (0.6, 2.0),
    }
    truth = [z.detach().double().requires_grad_() for z in (x, y, W)]
    want = reference.sinkhorn_loss(*truth[:2], class_cost=truth[2], y_labels=labels, **options)
    with model(order="random"):
        got = uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, **options)
        grads = torch.autograd.grad(got, (x, y, W))
    assert got.dtype == torch.float32 and distance(got, want) < 2e-6
    for g, w, z in zip(grads, torch.autograd.grad(want, truth), (x, y, W), strict=True):
        assert g.dtype == z.dtype and distance(g, w) < (5e-3 if z.dtype == half else 1e-5)


def test_masses_of_other_sums_are_no_fault_but_bad_ones_are():
    C = torch.rand(4, 5)
    with model():
        assert uk.sinkhorn(C, torch.full((4,), 2.0), unbalanced=1.0).value > 0
        assert uk.sinkhorn(C, torch.full((4,), 2.0)).value.isnan()
        for bad, why in ((torch.tensor([1.0, -1, 1, 1]), "negative"), (torch.zeros(4), "all be 0")):
            told = uk.sinkhorn(C, bad, unbalanced=1.0)
            assert told.value.isnan()
            with pytest.raises(ValueError, match=why):
                told.check()
        told = uk.sinkhorn(torch.full((4, 5), torch.inf), unbalanced=1.0)
        with pytest.raises(ValueError, match="pair of finite cost"):
            told.check()


def test_second_derivatives_and_transforms_go_by_torch():
    C = torch.rand(3, 9, 7).double()

    def value(C):
        return uk.sinkhorn(C, reg=0.2, max_iter=6, unbalanced=(0.5, 1.0)).value_regularized.sum()

    def plain(C):
        options = {"reg": 0.2, "max_iter": 6, "unbalanced": (0.5, 1.0)}
        return sum(reference.sinkhorn(c, **options).value_regularized for c in C)

    def squared(of, C):
        (grad,) = torch.autograd.grad(of(C), C, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), C)[0]

    leaf = C.clone().requires_grad_()
    with model():
        assert distance(squared(value, leaf), squared(plain, leaf)) < 1e-9
        got = torch.func.vmap(torch.func.grad(value))(C[:, None])
    (want,) = torch.autograd.grad(plain(leaf), leaf)
    assert distance(got[:, 0], want) < 1e-10
