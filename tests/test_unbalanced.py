"""Unbalanced transport against the float64 reference, POT and GeomLoss; known limits; bad input."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from sinkhorn_cases import Case

import ucmkd_fast as uk
from ucmkd_fast._native import _C
from ucmkd_fast.reference import sinkhorn as reference

INF = math.inf
FLOOR = {torch.float64: 1e-9, torch.float32: 3e-6}
RHOS = [
    (0.01, 0.01),
    (0.1, 0.1),
    (1.0, 1.0),
    (30.0, 30.0),
    (1000.0, 1000.0),
    (0.5, 2.0),
    (INF, 0.3),
    (0.3, INF),
]
HARD = [
    Case(1, 1, 0.1, 20),
    Case(1, 9, 0.1, 20, "random"),
    Case(8, 1, 0.1, 20, "random"),
    Case(33, 20, 1.0, 30, "random", "features"),
    Case(33, 20, 0.02, 40, "random", "features"),
    Case(33, 20, 0.004, 60, "zeros"),
    Case(33, 20, 0.05, 40, "heavy"),
    Case(33, 20, 0.05, 40, "zeros", "negative"),
    Case(33, 20, 0.05, 40, "random", "forbidden"),
    Case(33, 20, 0.05, 40, "heavy", "equal"),
    Case(65, 130, 0.1, 20),
    Case(19, 40, 0.1, 50, "zeros", "wide"),
]


def problem(case: Case, dtype: torch.dtype = torch.float64):
    """C, a, b with sums that differ, leaves; and the unit of the cost that rho is in."""
    C, a, b = case.tensors()
    unit = C[C.isfinite()].abs().mean().item()
    a, b = (1.0 * a, 1.7 * b) if a is not None else (a, b)
    return [None if z is None else z.to(dtype).requires_grad_() for z in (C, a, b)], unit


def distance(got, want, scale: float) -> float:
    error = (got.double() - want.double()).abs().max().item()
    return INF if math.isnan(error) else error / max(want.abs().max().item(), scale)


def compare(case: Case, rho, dtype: torch.dtype, **options) -> None:
    """Error against float64 at most twice that of plain torch at the same dtype, and a floor."""
    found = {}
    for name, solve, kind in (
        ("want", reference.sinkhorn, torch.float64),
        ("plain", reference.sinkhorn, dtype),
        ("got", uk.sinkhorn, dtype),
    ):
        inputs, unit = problem(case, kind)
        held = (rho[0] * unit, rho[1] * unit)
        solved = solve(*inputs, reg=case.reg, max_iter=case.max_iter, unbalanced=held, **options)
        given = [z for z in inputs if z is not None]
        for objective in ("value", "value_regularized"):
            value = getattr(solved, objective)
            gradients = torch.autograd.grad(value, given, retain_graph=True)
            found[name, objective] = value.detach(), gradients
    # What is compared is a cost times a mass; where next to nothing is moved, against a thousandth of that.
    mass = 1.0 if len(given) == 1 else 1.7
    for objective in ("value", "value_regularized"):
        (want, wants), (plain, plains), (got, gots) = (
            found[name, objective] for name in ("want", "plain", "got")
        )
        least = 1e-3 * unit * mass
        assert distance(got, want, least) <= 2 * distance(plain, want, least) + FLOOR[dtype], objective
        for name, w, p, g in zip("Cab", wants, plains, gots, strict=False):
            scale = 1e-6 if name == "C" else unit
            bound = 2 * min(distance(p, w, scale), 1) + 30 * FLOOR[dtype]
            assert distance(g, w, scale) <= bound, (objective, name, distance(g, w, scale), bound)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("rho", RHOS, ids=str)
@pytest.mark.parametrize("case", HARD, ids=str)
def test_plain_iterates_and_their_gradient_agree_with_the_reference(case, rho, dtype):
    compare(case, rho, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("rho", [(0.1, 0.1), (1.0, 1.0), (1000.0, 1000.0), (INF, 0.3), (0.3, INF)], ids=str)
@pytest.mark.parametrize("case", HARD[3:9], ids=str)
@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
def test_shifted_iterates_and_their_gradient_agree_with_the_reference(case, rho, dtype):
    compare(case, rho, dtype, tol=1e-30)  # never reached: as many iterations in both dtypes


SETTLED = [
    Case(33, 20, 0.3, 100, "random", "features"),
    Case(19, 40, 0.5, 60, "zeros"),
    Case(1, 9, 0.1, 40, "random"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("rho", [*RHOS, (0.02, 3000.0)], ids=str)
@pytest.mark.parametrize("case", SETTLED, ids=str)
def test_iterations_that_move_a_constant_alone_are_as_if_they_had_been_made(case, rho, dtype):
    """csrc/sinkhorn/settling.h: most of these never run; the potentials' gradients are charged with the constant."""
    compare(case, rho, dtype)
    found = []
    for solve, kind in ((reference.sinkhorn, torch.float64), (uk.sinkhorn, dtype)):
        (C, a, b), unit = problem(case, kind)
        held = (rho[0] * unit, rho[1] * unit)
        solved = solve(C, a, b, reg=case.reg, max_iter=case.max_iter, unbalanced=held)
        f, g = solved.potentials if isinstance(solved, uk.SinkhornResult) else (solved.f, solved.g)
        part = f[a > 0] @ a[a > 0] - 0.5 * (g[b > 0] ** 2).sum()
        kept = torch.stack([f[a > 0].detach().sum(), g[b > 0].detach().sum()])
        found.append((part.detach(), kept, solved.marginal_error, *torch.autograd.grad(part, (C, a, b))))
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    for want, got in zip(*found, strict=True):
        assert (
            distance(got, want, 1.0 if want is found[0][2] else 1e-3) < limit
        )  # the error next to the masses


@pytest.mark.parametrize("rho", [(0.1, 0.1), (1.0, 4.0), (100.0, 100.0), (INF, 0.3), (0.3, INF)], ids=str)
@pytest.mark.parametrize("grad", ["implicit", "envelope"])
@pytest.mark.parametrize("masses", ["uniform", "random", "zeros"])
def test_gradients_at_the_fixed_point(grad, rho, masses):
    case = Case(14, 9, 0.1, 3000, masses)
    values = ("value_regularized",) if grad == "envelope" else ("value", "value_regularized")
    for name in values:
        found = []
        for solve in (reference.sinkhorn, uk.sinkhorn):
            inputs, unit = problem(case)
            held = (rho[0] * unit, rho[1] * unit)
            solved = solve(*inputs, reg=case.reg, max_iter=3000, tol=1e-13, grad=grad, unbalanced=held)
            found.append(torch.autograd.grad(getattr(solved, name), [z for z in inputs if z is not None]))
        for want, got in zip(*found, strict=True):
            assert distance(got, want, 1e-3) < 1e-7


def forced(monkeypatch):
    """The log-domain sweeps back in the place of plain sums."""
    real = _C.sinkhorn_adjoint

    def out_of_range(problem, upstream, **addresses):
        import ctypes

        real(problem, upstream, **addresses)
        ctypes.c_int64.from_address(addresses["depth"]).value = -1
        return 0

    monkeypatch.setattr(_C, "sinkhorn_adjoint", out_of_range)


@pytest.mark.parametrize("tol", [0, 1e-30], ids=["plain", "shifted"])
@pytest.mark.parametrize("rho", [(0.1, 0.1), (1.0, 4.0), (INF, 0.3), (100.0, INF)], ids=str)
@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
def test_both_ways_back_agree(rho, tol, monkeypatch):
    (C, a, b), _ = problem(Case(21, 34, 0.1, 30, "zeros"))

    def gradients():
        solved = uk.sinkhorn(C, a, b, reg=0.1, max_iter=30, tol=tol, unbalanced=rho)
        return torch.autograd.grad(solved.value + 0.3 * solved.value_regularized, (C, a, b))

    plain = gradients()
    forced(monkeypatch)
    for got, want in zip(gradients(), plain, strict=True):
        assert distance(got, want, 1e-6) < 1e-9


@pytest.mark.parametrize("shape", [(33, 20), (9, 40)], ids=str)
def test_a_loss_on_potentials_agrees_where_some_rows_keep_next_to_nothing(shape):
    (C, a, b), unit = problem(Case(*shape, 0.1, 12, "random"))
    weights = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape]
    found = []
    for solve in (reference.sinkhorn, uk.sinkhorn):
        solved = solve(C, a, b, reg=0.1, max_iter=12, unbalanced=(0.01 * unit, 0.01 * unit))
        f, g = solved.potentials if solve is uk.sinkhorn else (solved.f, solved.g)
        found.append(torch.autograd.grad((f * weights[0]).sum() + (g * weights[1]).sum(), (C, a, b)))
    for want, got in zip(*found, strict=True):
        assert distance(got, want, 1e-6) < 1e-8


def test_gradients_by_finite_differences():
    C, a, b = Case(5, 4, 0.3, 4, "random").tensors()

    def f(C, a, b):
        s = uk.sinkhorn(C, a, 1.7 * b, reg=0.3, max_iter=4, unbalanced=(0.4, 2.0))
        return s.value, s.value_regularized, *s.potentials, s.plan(), *s.marginals()

    inputs = [z.clone().requires_grad_() for z in (C, a, b)]
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(lambda *z: f(*z)[:2], inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_infinite_rho_is_balanced_bit_for_bit(dtype):
    x, y = torch.randn(40, 6).to(dtype).requires_grad_(), torch.randn(30, 6).to(dtype)
    want = uk.sinkhorn_loss(x, y, objective="divergence", max_iter=30)
    (of_x,) = torch.autograd.grad(want, x)
    for rho in (INF, (INF, None), (None, INF), [INF, INF]):
        got = uk.sinkhorn_loss(x, y, objective="divergence", max_iter=30, unbalanced=rho)
        assert torch.equal(got, want) and torch.equal(torch.autograd.grad(got, x)[0], of_x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_huge_rho_is_balanced_within_rounding(dtype):
    C, a, b = (z.to(dtype) for z in Case(33, 20, 0.1, 40, "random").tensors())
    C.requires_grad_()
    rho, rounding = 1e6 * C.detach().mean().item(), torch.finfo(dtype).eps
    balanced, held = (uk.sinkhorn(C, a, b, reg=0.1, max_iter=40, unbalanced=r) for r in (None, rho))
    # A damped half-step falls short by reg / rho = 2e-7 of it, in every iteration.
    bound = 100 * rounding + 2e-6
    for name in ("value", "value_regularized"):
        got, want = getattr(held, name), getattr(balanced, name)
        assert abs(got - want) <= bound * abs(want)
        d_got, d_want = (torch.autograd.grad(z, C, retain_graph=True)[0] for z in (got, want))
        assert (d_got - d_want).abs().max() <= 10 * bound * d_want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_shifts_find_the_fixed_point_at_a_large_rho(dtype):
    C, a, b = (z.to(dtype) for z in Case(40, 30, 0.05, 1, "random").tensors())
    b = 1.7 * b
    want = reference.sinkhorn(C.double(), a.double(), b.double(), reg=0.05, max_iter=5000, tol=1e-14,
                              unbalanced=(1000.0, 1000.0))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", uk.ConvergenceWarning)
        got = uk.sinkhorn(C, a, b, reg=0.05, max_iter=100, tol=1e-12, unbalanced=1000.0)
    plan = reference.plan(C.double(), want.f, want.g, 0.05)
    assert abs(got.value - want.value) <= 1e-5 * want.value
    # Potentials of about 300 are known to 2e-5 in float32, a plan made from them to that over reg.
    bound = 1e-5 if dtype == torch.float64 else 1e-3
    assert (got.plan().double() - plan).abs().sum() <= bound * plan.sum()
    slow = uk.sinkhorn(C, a, b, reg=0.05, max_iter=100, unbalanced=1000.0)
    assert (slow.plan().double() - plan).abs().sum() > 0.05 * plan.sum()  # what the shifts are for


@pytest.mark.parametrize("rho", [(0.05, 0.05), (1.0, 1.0), (0.5, 2.0), (INF, 0.3), (0.3, INF)], ids=str)
def test_agrees_with_pot(rho):
    ot = pytest.importorskip("ot", reason="POT is not installed")
    C, a, b = Case(30, 25, 0.1, 1, "random").tensors()
    b = 1.7 * b
    plan = ot.unbalanced.sinkhorn_unbalanced(
        a.numpy(), b.numpy(), C.numpy(), 0.1, rho, numItermax=100_000, stopThr=1e-14
    )
    got = uk.sinkhorn(C, a, b, reg=0.1, max_iter=5000, tol=1e-13, unbalanced=rho)
    assert abs(got.plan().numpy() - plan).sum() <= 1e-5 * plan.sum()


@pytest.mark.parametrize("reach", [0.3, 1.0])
def test_the_divergence_agrees_with_geomloss(reach):
    geomloss = pytest.importorskip("geomloss", reason="GeomLoss is not installed")
    rand = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 3, generator=rand, dtype=torch.float64) for n in (40, 30))
    a, b = (torch.rand(n, generator=rand, dtype=torch.float64) + 0.1 for n in (40, 30))
    a, b = a / a.sum(), 1.7 * b / b.sum()
    blur = 0.3
    peer = geomloss.SamplesLoss("sinkhorn", p=2, blur=blur, reach=reach, scaling=0.9997, backend="tensorized")
    want = peer(a, x, b, y)
    # Its cost is |x - y|^2 / 2: ours is twice that, as are reg, rho and the value.
    got = uk.sinkhorn_loss(
        x, y, a, b, metric="sqeuclidean", reg=2 * blur**2, unbalanced=2 * reach**2, objective="divergence",
        tol=1e-13, max_iter=5000,
    )  # fmt: skip
    assert abs(got / 2 - want) <= 1e-5 * abs(want)


def test_the_dual_value_is_the_primal_one_at_convergence():
    C, a, b = Case(20, 15, 0.1, 1, "random").tensors()
    b, rho_a, rho_b = 1.7 * b, 0.4, 3.0
    got = uk.sinkhorn(C, a, b, reg=0.1, tol=1e-14, max_iter=5000, unbalanced=(rho_a, rho_b))
    P = got.plan()

    def kl(p, q):
        return (p * (p / q).log() - p + q).sum()

    primal = (P * C).sum() + 0.1 * kl(P, a[:, None] * b) + rho_a * kl(P.sum(1), a) + rho_b * kl(P.sum(0), b)
    assert abs(got.value_regularized - primal) < 1e-12


def test_the_plan_says_what_it_moves():
    C, a, b = Case(20, 15, 0.1, 1, "zeros").tensors()
    for rho in ((0.2, 0.2), (INF, 0.2)):
        got = uk.sinkhorn(C, a, b, reg=0.1, max_iter=200, unbalanced=rho)
        rows, columns = got.marginals()
        assert torch.allclose(rows, got.plan().sum(1)) and torch.allclose(columns, got.plan().sum(0))
        assert torch.allclose(got.mass, got.plan().sum())
        assert (rows[a == 0] == 0).all() and (columns[b == 0] == 0).all()
        if rho[0] == INF:
            assert torch.allclose(rows, a)
        else:
            assert got.mass < 0.9


def test_far_outliers_are_left_out_and_disturb_nothing():
    """Costs of 1,000 rho: what is left of such a row is far below what float32 holds."""
    rand = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 4, generator=rand, dtype=torch.float64) for n in (30, 25))
    x[7] += 60
    options = {"metric": "sqeuclidean", "reg": 1.0, "unbalanced": 2.0, "max_iter": 100}
    x64, x32 = x.clone().requires_grad_(), x.float().requires_grad_()
    want = uk.sinkhorn_loss(x64, y, return_result=True, **options)
    got = uk.sinkhorn_loss(x32, y.float(), return_result=True, **options)
    assert want.marginals()[0][7] < 1e-30
    for z in (*want.potentials, *got.potentials):
        assert z.isfinite().all()
    assert torch.allclose(got.potentials[0].double(), want.potentials[0], rtol=1e-4)
    assert abs(got.value - want.value) <= 1e-5 * want.value
    d64, d32 = (torch.autograd.grad(r.value, z)[0] for r, z in ((want, x64), (got, x32)))
    assert (d32.double() - d64).abs().max() <= 1e-4 * d64.abs().max() and (d32[7].abs() < 1e-30).all()


OBJECTIVES = ("transport", "regularized", "divergence")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rho", [(0.3, 0.3), (INF, 0.5)], ids=str)
@pytest.mark.parametrize("tol", [0.0, 1e-6])
@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
def test_features_batches_lists_panels_and_classes_agree_with_the_reference(objective, rho, tol):
    rand = torch.Generator().manual_seed(3)
    x, y = (torch.randn(2, n, 5, generator=rand, dtype=torch.float64) for n in (23, 17))
    a, b = (torch.rand(2, n, generator=rand, dtype=torch.float64) + 0.1 for n in (23, 17))
    a[:, 3], b[:, 5] = 0, 0
    W, k = torch.rand(23, 4, generator=rand, dtype=torch.float64), torch.arange(17) % 4
    options = {"reg": 0.1, "max_iter": 40, "tol": tol, "objective": objective, "unbalanced": rho}

    def found(call, *given):
        inputs = [z.clone().requires_grad_() for z in given]
        value = call(*inputs)
        return [value.detach(), *torch.autograd.grad(value.sum(), inputs)]

    def agree(got, want):
        for g, w in zip(got, want, strict=True):
            assert distance(g, w, 1e-6) < (1e-5 if tol else 1e-9)

    wants = [
        found(lambda *z: reference.sinkhorn_loss(*z, **options), *(z[i] for z in (x, y, a, b)))
        for i in (0, 1)
    ]
    for i, want in enumerate(wants):
        one = tuple(z[i] for z in (x, y, a, b))
        agree(found(lambda *z: uk.sinkhorn_loss(*z, **options), *one), want)
        agree(found(lambda *z: uk.sinkhorn_loss(*z, memory_budget=6000, **options), *one), want)
    batch = found(lambda *z: uk.sinkhorn_loss(*z, **options), x, y, a, b)
    agree(batch, [torch.stack(z) for z in zip(*wants, strict=True)])
    offsets = torch.tensor([0, 23, 46]), torch.tensor([0, 17, 34])
    flat = (z.flatten(0, 1) for z in (x, y, a, b))
    listed = found(lambda *z: uk.sinkhorn_loss(*z, offsets=offsets, **options), *flat)
    agree(listed, [batch[0], *(z.flatten(0, 1) for z in batch[1:])])
    if objective != "divergence":
        by_class = {**options, "y_labels": k}
        given = (x[0], y[0], a[0], b[0], W)
        want = found(
            lambda x, y, a, b, W: reference.sinkhorn_loss(x, y, a, b, class_cost=W, **by_class), *given
        )
        for budget in (None, 6000):
            got = found(
                lambda x, y, a, b, W, m=budget: uk.sinkhorn_loss(
                    x, y, a, b, class_cost=W, memory_budget=m, **by_class
                ),
                *given,
            )
            agree(got, want)


def test_relative_reg_scales_rho_as_well():
    x, y = torch.randn(20, 4).double(), torch.randn(15, 4).double()
    mean = reference.cost(x, y, "sqeuclidean").mean().item()
    options = {"metric": "sqeuclidean", "objective": "regularized"}
    got = uk.sinkhorn_loss(x, y, reg=0.05, unbalanced=(0.3, None), reg_scale="mean", **options)
    want = uk.sinkhorn_loss(x, y, reg=0.05 * mean, unbalanced=(0.3 * mean, None), **options)
    assert abs(got - want) < 1e-12
    batch = uk.sinkhorn_loss(x[None], y[None], reg=0.05, unbalanced=(0.3, None), reg_scale="mean", **options)
    assert abs(batch[0] - want) < 1e-12


def test_transforms_and_compilers_agree_with_eager_calls():
    (C, a, b), _ = problem(Case(12, 9, 0.2, 10, "zeros"))
    C, a, b = (z.detach() for z in (C, a, b))

    def loss(C, a, b, tol=0.0):
        found = uk.sinkhorn(C, a, b, reg=0.2, max_iter=10, tol=tol, unbalanced=(0.4, 2.0))
        return found.value + found.value_regularized

    for tol in (0.0, 1e-3):
        leaves = [z.clone().requires_grad_() for z in (C, a, b)]
        value = loss(*leaves, tol)
        wants = torch.autograd.grad(value, leaves)
        by_func = torch.func.grad(loss, (0, 1, 2))(C, a, b, tol)
        ahead = torch.func.jacfwd(loss, (0, 1, 2))(C, a, b, tol)
        several = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)), (0, None, None, None))(
            torch.stack([C, C]), a, b, tol
        )
        for want, *gots in zip(wants, by_func, ahead, (z[1] for z in several), strict=True):
            for got in gots:
                assert distance(got, want, 1e-6) < 1e-6
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        for got, want in zip(torch.autograd.grad(compiled(*leaves, tol), leaves), wants, strict=True):
            assert distance(got, want, 1e-6) < 1e-12


def test_threads_and_masses_of_any_sum_change_nothing_else():
    x, y = torch.randn(300, 8), torch.randn(280, 8)
    a = torch.rand(300) * 5
    before = torch.get_num_threads()
    try:
        values = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            values.append(uk.sinkhorn_loss(x, y, a, reg=0.1, unbalanced=0.5, max_iter=20))
    finally:
        torch.set_num_threads(before)
    assert abs(values[0] - values[1]) <= 1e-5 * abs(values[0])


@pytest.mark.parametrize(
    ("rho", "says"),
    [
        (0, "above 0"),
        (-1.0, "above 0"),
        (math.nan, "above 0"),
        ((1.0, -INF), "above 0"),
        ((1.0, 2.0, 3.0), "a pair"),
        ("much", "a pair"),
        (True, "a pair"),
        (1e-45, "at least"),
    ],
    ids=str,
)
def test_bad_rho_is_refused(rho, says):
    with pytest.raises((ValueError, TypeError), match=says):
        uk.sinkhorn(torch.rand(4, 3), unbalanced=rho)
    with pytest.raises((ValueError, TypeError), match=says):
        uk.sinkhorn_loss(torch.rand(4, 3), torch.rand(5, 3), unbalanced=rho)


def test_what_does_not_go_with_it_is_refused():
    C = torch.rand(4, 3)
    with pytest.raises(ValueError, match="accelerate='relax' is for balanced transport"):
        uk.sinkhorn(C, grad="envelope", accelerate="relax", unbalanced=1.0)
    with pytest.raises(ValueError, match="must not all be 0"):
        uk.sinkhorn(C, torch.zeros(4), unbalanced=1.0)
    with pytest.raises(ValueError, match="must be finite and >= 0"):
        uk.sinkhorn(C, torch.tensor([1.0, -1, 1, 1]), unbalanced=1.0)
    with pytest.raises(ValueError, match="equal sums"):
        uk.sinkhorn(C, torch.full((4,), 0.5))
    forbidden = C.clone()
    forbidden[2] = INF
    with pytest.raises(ValueError, match="needs a pair of finite cost"):
        uk.sinkhorn(forbidden, unbalanced=1.0)


def test_a_rho_that_is_not_reached_in_time_is_told():
    with pytest.warns(uk.ConvergenceWarning, match="did not converge") as told:
        uk.sinkhorn(torch.rand(20, 15), reg=0.01, max_iter=2, tol=1e-6, unbalanced=1.0)
    assert "accelerate" not in str(told[0].message)


def test_the_module_takes_it():
    x, y = torch.randn(9, 4), torch.randn(8, 4)
    loss = uk.FeatureAlignmentLoss(unbalanced=(0.5, None), max_iter=20)
    assert torch.equal(loss(x, y), uk.sinkhorn_loss(x, y, unbalanced=(0.5, INF), max_iter=20))
    assert "unbalanced=(0.5, None)" in repr(loss)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("rho", [1e-3, 1e-2, (1e-3, None), (1e-4, 1e-2)], ids=str)
@pytest.mark.parametrize("reg", [1.0, 0.001])
@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
def test_a_plan_of_next_to_nothing_stays_finite(rho, reg, dtype):
    """Costs of up to 40,000 rho: what half-steps leave of the masses is beyond the range of either dtype."""
    rand = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 4, generator=rand).to(dtype).requires_grad_() for n in (20, 15))
    a = torch.rand(20, generator=rand).to(dtype)
    for grad, tol in (("unrolled", 0.0), ("unrolled", 1e-30), ("implicit", 1e-8), ("envelope", 1e-8)):
        for objective in OBJECTIVES:
            for budget in (None, 3200 if dtype == torch.float32 else 6400):
                a.requires_grad_(grad != "envelope" or objective != "transport")
                value = uk.sinkhorn_loss(
                    x, y + 1, a, metric="sqeuclidean", reg=reg, unbalanced=rho, grad=grad, tol=tol,
                    objective=objective, max_iter=60, memory_budget=budget,
                )  # fmt: skip
                for z in (value, *torch.autograd.grad(value, [z for z in (x, y, a) if z.requires_grad])):
                    assert z.isfinite().all(), (grad, tol, objective, budget)
