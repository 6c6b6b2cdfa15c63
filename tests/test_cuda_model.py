"""The CUDA kernels, run on the execution model, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from cuda_harness import ORDERS, REGIMES, build, model
from sinkhorn_cases import CASES, Case
from test_sinkhorn import compare, distance, gradients, half_precision, leaves

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device
from ucmkd_fast.reference import sinkhorn as reference

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with"),
]


DTYPES = {"f64": torch.float64, "f32": torch.float32}
REGIME_IDS = list(REGIMES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", REGIME_IDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_regime_agrees_with_the_reference(case, regime, dtype):
    order = list(ORDERS)[(CASES.index(case) + REGIME_IDS.index(regime)) % len(ORDERS)]
    with model(regime, order, seed=CASES.index(case)):
        compare(case, DTYPES[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("regime", REGIME_IDS)
def test_half_precision(regime, dtype):
    with model(regime):
        half_precision(dtype, (3, 7, 9) if regime == "block" else (33, 20))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", REGIME_IDS)
def test_over_relaxation_takes_the_steps_that_the_cpu_takes(regime, dtype):
    """Iteration by iteration: a relaxed run of T iterations ends with a plain one."""
    C, a, b = (t.to(DTYPES[dtype]) for t in Case(33, 20, 0.02, 1, "zeros", "features").tensors())
    options = {"reg": 0.02, "grad": "implicit", "accelerate": "relax"}
    for max_iter, tol in ((3, 0.0), (4, 0.0), (5, 0.0), (30, 0.0), (2000, 1e-5)):
        want = uk.sinkhorn(C, a, b, max_iter=max_iter, tol=tol, **options)
        with model(regime):
            got = uk.sinkhorn(C, a, b, max_iter=max_iter, tol=tol, **options)
        assert abs(int(got.n_iter) - int(want.n_iter)) <= (1 if dtype == "f32" else 0)
        assert distance(got.plan(), want.plan()) < (1e-9 if dtype == "f64" else 1e-3)
        assert torch.allclose(got.plan().sum(1), a, atol=1e-6)
    plain = uk.sinkhorn(C, a, b, reg=0.02, max_iter=2000, tol=1e-5)
    assert got.n_iter < 0.7 * plain.n_iter
    leaf, options = C.requires_grad_(), {**options, "max_iter": 2000, "tol": 1e-5}
    (want,) = torch.autograd.grad(uk.sinkhorn(leaf, a, b, **options).value, leaf)
    with model(regime):
        (grad,) = torch.autograd.grad(uk.sinkhorn(leaf, a, b, **options).value, leaf)
    assert distance(grad, want) < (1e-6 if dtype == "f64" else 1e-2)


def test_results_do_not_depend_on_the_order_of_threads():
    C, a, b = leaves(Case(33, 20, 0.05, 1, "zeros", "forbidden"), torch.float32)
    for regime in REGIMES:
        runs = []
        for order in ORDERS:
            for seed in range(1 if order != "random" else 3):
                with model(regime, order, seed):
                    value = uk.sinkhorn(C, a, b, reg=0.05, max_iter=9).value
                    runs.append((value, *gradients(value, (C, a, b))))
        for run in runs[1:]:
            assert all(torch.equal(x, y) for x, y in zip(run, runs[0], strict=True)), regime


def test_shapes_of_grid_tile_and_warps():
    """Every way in which rows, columns, tiles, warps and blocks can fail to divide each other."""
    for n, m in ((1, 1), (1, 70), (70, 1), (5, 33), (31, 64), (37, 65), (64, 3)):
        C, a, b = leaves(Case(n, m, 0.1, 1, "random"), torch.float64)
        want = reference.sinkhorn(C, a, b, reg=0.1, max_iter=5).value
        grads = gradients(want, (C, a, b))
        for threads in (32, 96, 256):
            for blocks in (1, 2, 7):
                for shared in (18 * 1024, 200 * 1024):
                    for regime in ("resident", "sweep"):
                        with model(regime, "random", 1, blocks, shared, threads):
                            got = uk.sinkhorn(C, a, b, reg=0.1, max_iter=5).value
                            assert distance(got, want) < 1e-12
                            for g, w in zip(gradients(got, (C, a, b)), grads, strict=True):
                                assert distance(g, w) < 1e-10, (n, m, threads, blocks, shared, regime)


SHAPES_OF_OWNERSHIP = [
    # n, m, tuning: every count of columns per thread, with rows kept and streamed, columns in fours and not
    (9, 120, {"quads": 1}), (7, 121, {"quads": 1}), (9, 300, {"quads": 2}), (11, 301, {"quads": 2}),
    (6, 520, {"quads": 4}), (5, 517, {"quads": 4}), (5, 1024, {"quads": 8}), (4, 1030, {"quads": 8}),
    (5, 2048, {"quads": 16}), (4, 1999, {"quads": 16}), (40, 40, {"threads": 32}), (40, 36, {"grid": 1}),
]  # fmt: skip


SOME_ROWS_STAY = [  # n, m, quads, threads, kilobytes, held
    (90, 120, 1, 256, 18, 26), (130, 121, 1, 64, 18, 32), (40, 300, 2, 256, 18, 7), (23, 1000, 4, 256, 60, 6),
]  # fmt: skip


@pytest.mark.parametrize("n, m, quads, threads, kilobytes, held", SOME_ROWS_STAY)
def test_some_rows_stay_and_the_others_pass_through(n, m, quads, threads, kilobytes, held):
    C, a, b = leaves(Case(n, m, 0.1, 1, "random"), torch.float32)
    want = reference.sinkhorn(C.double(), a.double(), b.double(), reg=0.1, max_iter=5)
    shared = kilobytes * 1024
    assert build.load().make_plan(2, n, m, 1, 4, 3, shared, threads, quads)["owned"]["held"] == held
    for order in ORDERS:
        with model("resident", order, 2, shared=shared, threads=threads, tuning={"quads": quads}):
            got = uk.sinkhorn(C, a, b, reg=0.1, max_iter=5)
            assert distance(got.value, want.value) < 2e-6, order
            for x, y in zip(got.potentials, (want.f, want.g), strict=True):
                assert distance(x, y) < 2e-6, order


@pytest.mark.parametrize("own_barrier", [False, True], ids=["library barrier", "own barrier"])
@pytest.mark.parametrize("n, m, tuning", SHAPES_OF_OWNERSHIP)
def test_every_shape_of_ownership(n, m, tuning, own_barrier):
    C, a, b = leaves(Case(n, m, 0.1, 1, "random"), torch.float32)
    want = reference.sinkhorn(C.double(), a.double(), b.double(), reg=0.1, max_iter=5)
    for regime in ("resident", "sweep"):
        for order in ORDERS:
            with model(
                regime, order, 2, shared=200 * 1024, threads=128, own_barrier=own_barrier, tuning=tuning
            ):
                got = uk.sinkhorn(C, a, b, reg=0.1, max_iter=5)
                assert distance(got.value, want.value) < 2e-6, (regime, order)
                for x, y in zip(got.potentials, (want.f, want.g), strict=True):
                    assert distance(x, y) < 2e-6, (regime, order)


CLUSTERS = [  # n, m, tuning: a block has rows of its own even of few; one and two quads of columns; most blocks
    (8, 40, {}), (33, 300, {}), (130, 60, {"threads": 64}), (50, 517, {"quads": 2}), (70, 90, {"grid": 16}),
    (20, 20, {"grid": 3}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("n, m, tuning", CLUSTERS)
def test_every_shape_of_clusters(n, m, tuning, dtype):
    if dtype == torch.float64 and m > 500:
        tuning = {"threads": 160}  # doubles own one quad
    C, a, b = leaves(Case(n, m, 0.1, 1, "random"), torch.float64)
    want = reference.sinkhorn(C, a, b, reg=0.1, max_iter=5)
    wants = gradients(want.value, (C, a, b))
    C, a, b = (z.detach().to(dtype).requires_grad_() for z in (C, a, b))
    for order in ORDERS:
        with model("cluster", order, 2, shared=200 * 1024, threads=160, tuning=tuning) as module:
            got = uk.sinkhorn(C, a, b, reg=0.1, max_iter=5)
            grads = gradients(got.value, (C, a, b))
            assert module.clusters_launched() == 2
        found, expected = (got.value, *got.potentials, *grads), (want.value, want.f, want.g, *wants)
        for x, y in zip(found, expected, strict=True):
            assert distance(x, y) < (2e-5 if dtype == torch.float32 else 1e-10), order


@pytest.mark.parametrize("grid", [0, 2])
def test_where_a_cluster_has_no_room_for_the_cost_another_regime_runs(grid):
    """8 blocks would have: two are asked for."""
    C, _, _ = leaves(Case(90, 140, 0.1, 1), torch.float64)
    want = reference.sinkhorn(C, reg=0.1, max_iter=5)
    cost = C.detach().float()
    with model("cluster", shared=24 * 1024, tuning={"grid": grid} if grid else {}) as module:
        _device.clusters = True
        got = uk.sinkhorn(cost, reg=0.1, max_iter=5)
        assert module.clusters_launched() == (0 if grid else 1)
    assert distance(got.value, want.value) < 2e-6


def compare_backwards(case, grad, models):
    C, a, b = leaves(case, torch.float32)
    options = {"reg": case.reg, "max_iter": 6 if grad == "unrolled" else 100, "grad": grad}
    inputs = [t.detach().double().requires_grad_() for t in (C, a, b)]
    wants = gradients(reference.sinkhorn(*inputs, **options).value, inputs)
    for regime, words in models:
        for order in ORDERS:
            with model(regime, order, 3, **words):
                gots = gradients(uk.sinkhorn(C, a, b, **options).value, (C, a, b))
            for got, want, mass in zip(gots, wants, (None, a, b), strict=True):
                if mass is not None and grad == "implicit":  # up to a constant, free where there is no mass
                    got, want = (z[mass > 0] - z[mass > 0].mean() for z in (got, want))
                assert distance(got, want) < 5e-5, (regime, order)


@pytest.mark.parametrize("grad", ["unrolled", "implicit"])
@pytest.mark.parametrize("n, m, tuning", SHAPES_OF_OWNERSHIP)
def test_every_shape_of_ownership_backwards(n, m, tuning, grad):
    words = {"shared": 200 * 1024, "threads": 128, "tuning": tuning}
    models = [("resident", words), ("sweep", words | {"own_barrier": True})]
    compare_backwards(Case(n, m, 0.5, 1, "zeros"), grad, models)


@pytest.mark.parametrize("grad", ["unrolled", "implicit"])
@pytest.mark.parametrize("n, m, quads, threads, kilobytes, held", SOME_ROWS_STAY)
def test_some_rows_stay_backwards(n, m, quads, threads, kilobytes, held, grad):
    words = {"shared": kilobytes * 1024, "threads": threads, "tuning": {"quads": quads}}
    back = build.load().make_plan(2, n, m, 1, 4, 3, words["shared"], threads, quads)["back"]
    assert 0 < back["held"] <= held
    compare_backwards(Case(n, m, 0.5, 1, "zeros"), grad, [("resident", words)])


@pytest.mark.parametrize("m", [4096, 8192, 16384, 20001, 32768])
def test_gradients_of_wide_problems(m):
    C, a, b = leaves(Case(5, m, 0.5, 1, "zeros"), torch.float32)
    options = {"reg": 0.5, "max_iter": 3}
    inputs = [t.detach().double().requires_grad_() for t in (C, a, b)]
    wants = gradients(reference.sinkhorn(*inputs, **options).value, inputs)
    with model("sweep", "random", 3, 2, 227 * 1024, 512):
        gots = gradients(uk.sinkhorn(C, a, b, **options).value, (C, a, b))
    for got, want in zip(gots, wants, strict=True):
        assert distance(got, want) < 1e-5


MANY_ITERATIONS = [
    Case(33, 20, 0.05, 300, "zeros", "forbidden"), Case(33, 20, 0.05, 300, "heavy", "random"),
    Case(33, 20, 0.01, 300, "random", "features"), Case(33, 20, 0.01, 300, "zeros", "negative"),
    Case(33, 20, 0.002, 300, "random", "random"), Case(33, 20, 0.002, 300, "zeros", "forbidden"),
    Case(64, 64, 0.002, 300, "random", "features"), Case(19, 40, 0.01, 300, "zeros", "wide"),
]  # fmt: skip


@pytest.mark.parametrize("case", MANY_ITERATIONS, ids=str)
def test_gradients_of_many_iterations_do_not_drift(case):
    """In float32: both softmaxes of a step are made from one exponential, hundreds of times."""
    with model(list(REGIMES)[MANY_ITERATIONS.index(case) % 3], "random"):
        compare(case, torch.float32)


def test_rows_that_fit_no_shared_memory():
    C, a, b = leaves(Case(5, 2400, 0.1, 1, "random"), torch.float64)
    want = reference.sinkhorn(C, a, b, reg=0.1, max_iter=4).value
    with model("sweep", "random", shared=18 * 1024) as module:
        assert module.make_plan(3, 5, 2400, 1, 8, 3, 18 * 1024)["tile_rows"] == 0
        got = uk.sinkhorn(C, a, b, reg=0.1, max_iter=4).value
        for g, w in zip(gradients(got, (C, a, b)), gradients(want, (C, a, b)), strict=True):
            assert distance(g, w) < 1e-10


@pytest.mark.parametrize("regime", REGIME_IDS)
def test_batches_equal_the_loop(regime):
    C = torch.rand(5, 20, 13).double().requires_grad_()
    a = (torch.rand(5, 20).double() + 0.1).softmax(1).requires_grad_()
    with model(regime):
        for mass in (a, a[0], None):
            got = uk.sinkhorn(C, mass, reg=0.05, max_iter=30)
            loop = [
                uk.sinkhorn(C[k], mass if mass is None or mass.dim() == 1 else mass[k], reg=0.05, max_iter=30)
                for k in range(5)
            ]
            assert torch.equal(got.value, torch.stack([s.value for s in loop]))
            weight = torch.rand(5).double()
            inputs = [t for t in (C, mass) if t is not None]
            gots = torch.autograd.grad((got.value * weight).sum(), inputs)
            wants = torch.autograd.grad(sum(w * s.value for w, s in zip(weight, loop, strict=True)), inputs)
            for g, w in zip(gots, wants, strict=True):
                assert g.shape == w.shape and distance(g, w) < 1e-12


@pytest.mark.parametrize("regime", REGIME_IDS)
def test_the_device_stops_where_the_reference_does(regime):
    C, a, b = leaves(Case(30, 20, 0.1, 1, "random"), torch.float64)
    for tol in (1e-2, 1e-4, 1e-8):
        want = reference.sinkhorn(C, a, b, reg=0.1, max_iter=100, tol=tol)
        with model(regime):
            got = uk.sinkhorn(C, a, b, reg=0.1, max_iter=100, tol=tol)
            assert got.n_iter == want.n_iter and torch.allclose(got.value, want.value, rtol=1e-12)
            for g, w in zip(gradients(got.value, (C, a, b)), gradients(want.value, (C, a, b)), strict=True):
                assert distance(g, w) < max(tol, 1e-9)


@pytest.mark.parametrize("regime", REGIME_IDS)
def test_warm_start_and_gradients_of_the_potentials(regime):
    C, a, b = leaves(Case(30, 20, 0.1, 1, "zeros"), torch.float64)
    weight = torch.rand(30).double()

    def run(sinkhorn, **options):
        s = sinkhorn(C, a, b, reg=0.1, max_iter=4, **options)
        f, g = s.potentials if hasattr(s, "potentials") else (s.f, s.g)
        keep = f.isfinite()
        loss = s.value + (f[keep] * weight[keep]).sum() + g[g.isfinite()].square().sum()
        return loss, *gradients(loss, (C, a, b))

    start = reference.sinkhorn(C, a, b, reg=0.1, max_iter=7)
    init = start.f.detach(), start.g.detach()
    want = run(reference.sinkhorn, init=init)
    with model(regime):
        got = run(uk.sinkhorn, init=init)
    for g, w in zip(got, want, strict=True):
        keep = w.isfinite()
        assert distance(g[keep], w[keep]) < 1e-9


REGISTERS = [
    Case(n, m, 0.05, 12, masses, "features")
    for n, m, masses in (
        (1, 128, "uniform"), (128, 1, "random"), (32, 33, "zeros"), (31, 65, "random"), (65, 32, "random"),
        (33, 97, "zeros"), (64, 64, "heavy"), (100, 64, "uniform"), (128, 128, "zeros"),
    )
]  # fmt: skip


@pytest.mark.parametrize("case", REGISTERS, ids=str)
def test_every_shape_of_the_registers(case):
    with model("registers", "random", shared=160 * 1024) as module:
        assert module.choose_regime(case.n, case.m, 1, 4, 3, 160 * 1024) == REGIMES["registers"]
        compare(case, torch.float32)


def test_problems_in_registers_are_solved_as_in_a_block():
    """Batches, a tolerance, a warm start and gradients of the potentials, in float32."""
    C, b = torch.rand(3, 40, 50).requires_grad_(), (torch.rand(3, 50) + 0.1).softmax(1)
    b[:, 7] = 0
    b = (b / b.sum(1, keepdim=True)).requires_grad_()
    init = torch.rand(3, 40) / 10, torch.rand(3, 50) / 10
    found = []
    for regime in ("block", "registers"):
        with model(regime, "random"):
            for options in ({"tol": 1e-4}, {"init": init, "max_iter": 6}):
                s = uk.sinkhorn(C, None, b, reg=0.1, **{"max_iter": 100, **options})
                f, g = s.potentials
                loss = (s.value * torch.tensor([1.0, -2, 3])).sum() + f.square().sum() + g[g.isfinite()].sum()
                found.append((s.n_iter.float(), loss, f, *torch.autograd.grad(loss, (C, b))))
    for block, registers in zip(found[:2], found[2:], strict=True):
        assert torch.equal(block[0], registers[0])
        for x, y in zip(block, registers, strict=True):
            assert distance(y, x.double()) < 1e-4


REFUSED = {
    "NaN": (torch.tensor([[1.0, float("nan")]]), None, None, "NaN"),
    "-inf": (torch.tensor([[1.0, -float("inf")]]), None, None, "-inf"),
    "forbidden row": (torch.tensor([[1.0, 1.0], [float("inf")] * 2]), None, None, "finite cost"),
    "negative mass": (torch.ones(2, 2), torch.tensor([1.5, -0.5]), None, "negative"),
    "NaN mass": (torch.ones(2, 2), torch.tensor([1.5, float("nan")]), None, "NaN"),
    "no mass": (torch.ones(2, 2), torch.zeros(2), torch.zeros(2), "all be 0"),
    "sums": (torch.ones(2, 2), torch.ones(2), None, "equal sums"),
}


@pytest.mark.parametrize("regime", REGIME_IDS)
@pytest.mark.parametrize("name", REFUSED)
def test_refused_input_gives_nan_and_says_why_when_it_is_read(name, regime, monkeypatch):
    C, a, b, words = REFUSED[name]
    C = C.clone().requires_grad_()
    with model(regime):
        s = uk.sinkhorn(C, a, b, reg=0.5, max_iter=3)
        assert s.value.isnan() and torch.autograd.grad(s.value, C)[0].isnan().all()
        with pytest.raises(ValueError, match=words):
            repr(s)
        monkeypatch.setenv("UCMKD_CHECK", "1")
        with pytest.raises(ValueError, match=words):
            uk.sinkhorn(C, a, b, reg=0.5, max_iter=3)


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
@pytest.mark.parametrize("masses", ["uniform", "zeros"])
@pytest.mark.parametrize("regime", REGIME_IDS)
def test_gradients_at_the_fixed_point(grad, masses, regime):
    with model(regime, "random"):
        compare(Case(14, 9, 0.5, 150, masses), torch.float64, grad)


TILES = {  # n, m, multiprocessors, problems -> side of the tiles of the gradient
    "small": (70, 65, 16, 1, 32),
    "medium": (60, 190, 1, 1, 64),
    "medium, vectors": (66, 132, 1, 1, 64),
    "large": (127, 255, 1, 1, 128),
    "large, vectors": (128, 252, 1, 1, 128),
    "batch": (61, 64, 1, 3, 64),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reg, max_iter", [(0.1, 1), (0.1, 6), (0.1, 23), (0.004, 23)])
@pytest.mark.parametrize("name", TILES)
def test_gradients_by_tiles_of_every_size(name, reg, max_iter, dtype):
    """Whole and cut tiles, iterations that do and do not fill a chunk, ratios in and out of range."""
    n, m, multiprocessors, batch, side = TILES[name]
    C, a, b = Case(n, m, reg, max_iter, "zeros", "forbidden").tensors()
    C = torch.stack([C * (1 + k / 4) for k in range(batch)])
    weight = torch.rand(batch, dtype=torch.float64)

    def run(dtype):
        inputs = [t.to(dtype).requires_grad_() for t in (C, a, b)]
        values = uk.sinkhorn(*inputs, reg=reg, max_iter=max_iter).value
        return gradients((values * weight.to(dtype)).sum(), inputs)

    wants = run(torch.float64)
    with model("block", "random", max_iter, multiprocessors, threads=256) as module:
        tile = module.gradient_tile(n, m, batch, DTYPES[dtype].itemsize, multiprocessors)
        assert tile == (min(side, 64) if dtype == "f64" else side)
        gots = run(DTYPES[dtype])
    for got, want in zip(gots, wants, strict=True):
        assert distance(got, want) < (1e-10 if dtype == "f64" else 2e-4 if reg == 0.1 else 2e-3)


def test_a_row_of_hardly_any_mass_among_large_ones():
    """Its factor underflows: the row is taken exactly, and no gradient becomes NaN."""
    a, b = torch.full((140,), 1e17), torch.full((130,), 140e17 / 130)
    a[3] = 2e-30
    b *= a.sum() / b.sum()
    leaf = torch.zeros(140, 130).requires_grad_()
    with model("resident", threads=64, shared=200 * 1024):
        value = uk.sinkhorn(leaf, a, b, reg=1.0, max_iter=5).value
        (grad,) = torch.autograd.grad(value, leaf)
    assert grad.isfinite().all()
