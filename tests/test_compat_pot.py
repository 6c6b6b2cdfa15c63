"""`compat.pot` against POT itself: its public examples' calls, gradients, stopping, logs, refusals."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from ucmkd_fast.compat import pot
from ucmkd_fast.reference import sinkhorn as reference

ot = pytest.importorskip("ot", reason="POT, which this part is compared with, is not installed (extra: test)")

METHODS = ["sinkhorn", "sinkhorn_log", "sinkhorn_stabilized"]
#: Of a result, what is compared with POT's.
FIELDS = ("value", "value_linear", "plan", "potential_a", "potential_b", "marginal_a", "marginal_b")


def close(got, want, tolerance=1e-4):
    assert type(got) is type(want), (type(got), type(want))
    got, want = (z.detach().numpy() if isinstance(z, torch.Tensor) else np.asarray(z) for z in (got, want))
    assert got.shape == want.shape and got.dtype == want.dtype
    scale = max(1.0, float(np.abs(want).max()))
    assert np.abs(got - want).max() <= tolerance * scale  # false for NaN


def problem(n=30, m=24, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) + 0.5
    a, b = rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, m)
    cost = ot.dist(x, y)
    return [z.astype(dtype) for z in (a / a.sum(), b / b.sum(), cost / cost.max())]


def in_torch(arrays, dtype=torch.float64, grad=False):
    return [torch.tensor(z, dtype=dtype, requires_grad=grad) for z in arrays]


# The calls of POT's documentation and gallery.


def test_docstring_example():
    a, cost = [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]]
    close(pot.sinkhorn(a, a, cost, 1), ot.sinkhorn(a, a, cost, 1), 1e-12)
    close(pot.sinkhorn2(a, a, cost, 1), ot.sinkhorn2(a, a, cost, 1), 1e-12)


def test_gallery_1d_gaussians():
    n = 100
    grid = np.arange(n, dtype=np.float64)
    a, b = ot.datasets.make_1D_gauss(n, m=20, s=5), ot.datasets.make_1D_gauss(n, m=60, s=10)
    cost = ot.dist(grid.reshape(n, 1), grid.reshape(n, 1))
    cost /= cost.max()
    close(pot.sinkhorn(a, b, cost, 1e-3), ot.sinkhorn(a, b, cost, 1e-3))


def test_gallery_2d_samples():
    np.random.seed(0)
    xs = ot.datasets.make_2D_samples_gauss(50, np.array([0, 0]), np.array([[1, 0], [0, 1]]))
    xt = ot.datasets.make_2D_samples_gauss(50, np.array([4, 4]), np.array([[1, -0.8], [-0.8, 1]]))
    a = b = np.ones(50) / 50
    cost = ot.dist(xs, xt)
    close(pot.sinkhorn(a, b, cost, 1e-1 * 10), ot.sinkhorn(a, b, cost, 1e-1 * 10))
    close(pot.sinkhorn([], [], cost, 1.0), ot.sinkhorn([], [], cost, 1.0))
    for options in ({}, {"reg_type": "entropy"}):
        got, want = (
            f.solve_sample(xs, xt, a, b, reg=1.0, max_iter=3000, tol=1e-7, **options) for f in (pot, ot)
        )
        for field in FIELDS:
            close(getattr(got, field), getattr(want, field))


def test_gallery_several_histograms():
    n = 60
    grid = np.arange(n, dtype=np.float64).reshape(n, 1)
    b = np.stack([ot.datasets.make_1D_gauss(n, m=m, s=8) for m in (10, 30, 50)], 1)
    a = ot.datasets.make_1D_gauss(n, m=25, s=6)
    cost = ot.dist(grid, grid)
    cost /= cost.max()
    for method in ("sinkhorn", "sinkhorn_log"):
        for name in ("sinkhorn", "sinkhorn2"):
            got, log = getattr(pot, name)(a, b, cost, 0.05, method=method, log=True)
            want, want_log = getattr(ot, name)(a, b, cost, 0.05, method=method, log=True)
            close(got, want)
            assert set(log) == set(want_log)
            for key in sorted(set(log) - {"err", "niter"}):
                close(log[key], want_log[key])
            if method == "sinkhorn":
                assert log["niter"] == want_log["niter"]
                close(np.array(log["err"]), np.array(want_log["err"]), 1e-9)
        close(pot.sinkhorn2(a, b, cost, 0.05, method), ot.sinkhorn2(a, b, cost, 0.05, method))
    with pytest.raises(NotImplementedError, match="sinkhorn_log"):
        pot.sinkhorn2(a, b, cost, 0.05, method="sinkhorn_stabilized")
    with pytest.raises(ValueError, match=r"\(60, K\)"):
        pot.sinkhorn2(a, b[:-1], cost, 0.05)


# Kinds of arrays.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["numpy64", "numpy32", "torch64", "torch32"])
def test_values_and_plans_of_every_kind(kind, method):
    a, b, cost = problem()
    if kind == "numpy32":
        a, b, cost = problem(dtype=np.float32)
    elif kind.startswith("torch"):
        a, b, cost = in_torch((a, b, cost), torch.float64 if kind == "torch64" else torch.float32)
    options = {"method": method, "numItermax": 201, "warn": False}
    close(pot.sinkhorn(a, b, cost, 0.05, **options), ot.sinkhorn(a, b, cost, 0.05, **options))
    close(pot.sinkhorn2(a, b, cost, 0.05, **options), ot.sinkhorn2(a, b, cost, 0.05, **options))


def test_numpy_memory_is_shared_read_and_left_alone():
    a, b, cost = problem()
    kept = cost.copy()
    want = pot.sinkhorn(a, b, cost, 0.05)
    for view in (np.asfortranarray(cost), cost[::-1][::-1], np.repeat(cost, 2, 1)[:, ::2]):
        np.testing.assert_array_equal(pot.sinkhorn(a, b, view, 0.05), want)
    cost.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pot.sinkhorn(a, b, cost, 0.05), want)
    np.testing.assert_array_equal(cost, kept)
    integers = np.arange(12).reshape(3, 4)
    close(pot.sinkhorn([], [], integers, 2.0), ot.sinkhorn([], [], integers.astype(float), 2.0))
    wide = pot.sinkhorn(a.astype(np.float32), b.astype(np.float32), kept, 0.05, stopThr=1e-6)
    assert wide.dtype == np.float64


# Gradients.


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_sinkhorn2_and_of_the_plan(dtype, method):
    weight = torch.linspace(-1, 1, 30 * 24, dtype=dtype).reshape(30, 24)
    found = []
    for module in (pot, ot):
        a, b, cost = in_torch(problem(), dtype, grad=True)
        options = {"method": method, "numItermax": 31, "stopThr": 1e-4, "warn": False}
        loss = module.sinkhorn2(a, b, cost, 0.1, **options)
        plan = module.sinkhorn(a, b, cost, 0.1, **options)
        found.append(
            [
                *torch.autograd.grad(loss, (a, b, cost)),
                *torch.autograd.grad((plan * weight).sum(), (a, b, cost)),
            ]
        )
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("grad", ["autodiff", "envelope", "last_step", "detach"])
@pytest.mark.parametrize("reg_type", ["KL", "entropy"])
def test_solve_and_its_gradients(reg_type, grad):
    found = []
    for module in (pot, ot):
        leaves = in_torch(problem(), grad=True)
        a, b, cost = leaves
        result = module.solve(cost, a, b, reg=0.2, reg_type=reg_type, grad=grad, max_iter=200, tol=1e-8)
        values = [result.value, result.value_linear, result.plan, *result.potentials, *result.marginals]
        wanted = {"autodiff": values[:2], "last_step": values[:2], "envelope": values[:1], "detach": []}[grad]
        assert [v.requires_grad for v in values[:2]] == [v in wanted for v in values[:2]]
        slopes = [torch.autograd.grad(v, (cost, a, b), retain_graph=True) for v in wanted]
        found.append([*(v.detach() for v in values), *(s for group in slopes for s in group)])
        assert result.status is None and result.lazy_plan is None and result.log is None
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-8)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine", "cityblock"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solve_sample(dtype, metric):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(20, 4)), rng.normal(size=(16, 4)) + 0.3
    found = []
    for module in (pot, ot):
        x, y = in_torch(points, dtype, grad=True)
        result = module.solve_sample(x, y, metric=metric, reg=0.5, tol=1e-5)
        found.append([result.value, result.plan, *torch.autograd.grad(result.value, (x, y))])
    for got, want in zip(*found, strict=True):
        close(got, want)


def test_solve_sample_debiased():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(16, 4)) + 0.3
    got, want = (module.solve_sample(x, y, reg=2.0, debias=True) for module in (pot, ot))
    assert set(got.log) == set(want.log)
    for field in ("value", "value_linear", "plan", "potential_a"):
        close(getattr(got, field), getattr(want, field))
    assert np.isclose(got.log["res_aa"].value, want.log["res_aa"].value)
    close(got.sparse_plan.toarray(), got.plan)


# The stopping rule, the logs, the warnings.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threshold", [1e-1, 1e-2, 1e-3, 1e-6, 1e-9])
def test_stops_where_pot_stops(threshold, method):
    a, b, cost = problem(40, 33, seed=3)
    options = {"method": method, "stopThr": threshold, "numItermax": 2000}
    want, want_log = ot.sinkhorn(a, b, cost, 0.03, log=True, **options)
    got, log = pot.sinkhorn(a, b, cost, 0.03, log=True, **options)
    count = "n_iter" if method == "sinkhorn_stabilized" else "niter"
    assert set(log) == set(want_log) and log[count] == want_log[count]
    close(np.array(log["err"]), np.array(want_log["err"]), 1e-9)
    close(got, want, 1e-9)
    # Without a log one long call replaces the look every ten iterations: the same end.
    np.testing.assert_allclose(pot.sinkhorn(a, b, cost, 0.03, **options), got, atol=1e-12)
    for name in sorted(set(log) & {"u", "v", "log_u", "log_v"}):
        close(log[name], want_log[name], 1e-8)


def test_scalings_of_stabilized_are_pots_up_to_a_constant():
    a, b, cost = problem()
    log, want = (
        module.sinkhorn(a, b, cost, 0.02, method="sinkhorn_stabilized", log=True)[1] for module in (pot, ot)
    )
    shift = log["alpha"] - want["alpha"]
    assert np.ptp(shift) < 1e-8
    close(log["beta"] + shift.mean(), want["beta"], 1e-8)
    close(log["logu"], log["alpha"] / 0.02, 1e-12)
    again, second = pot.sinkhorn(
        a, b, cost, 0.02, method="sinkhorn_stabilized", log=True, warmstart=log["warmstart"]
    )
    assert second["n_iter"] == 0


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log"])
def test_warmstart(method):
    a, b, cost = problem()
    start = np.linspace(-1, 1, 30), np.linspace(1, -1, 24)
    options = {"method": method, "numItermax": 5, "warn": False, "warmstart": start, "log": True}
    (got, log), (want, want_log) = (module.sinkhorn(a, b, cost, 0.05, **options) for module in (pot, ot))
    close(got, want, 1e-12)
    close(log["u"], want_log["u"], 1e-12)
    with pytest.raises(ValueError, match="warmstart"):
        pot.sinkhorn(a, b, cost, 0.05, warmstart=start[::-1])


def test_warns_as_pot_does(capsys):
    a, b, cost = problem()
    short = {"numItermax": 3, "stopThr": 1e-12}
    for module in (pot, ot):
        with pytest.warns(UserWarning, match="Sinkhorn did not converge") as caught:
            module.sinkhorn(a, b, cost, 0.01, **short)
        if module is pot:
            assert caught[0].filename == __file__
        with pytest.warns(UserWarning, match="Sinkhorn did not converge"):
            module.solve(cost, a, b, reg=0.01, max_iter=3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module.sinkhorn(a, b, cost, 0.01, warn=False, **short)
            module.sinkhorn2(a, b, cost, 0.01, **short)
            module.sinkhorn(a, b, cost, 0.5)
    capsys.readouterr()
    pot.sinkhorn(a, b, cost, 0.01, verbose=True, warn=False, numItermax=21)
    assert capsys.readouterr().out.count("error") == 3


def test_no_threshold_runs_every_iteration():
    a, b, cost = problem()
    _, log = pot.sinkhorn(a, b, cost, 0.5, numItermax=37, stopThr=0, log=True, warn=False)
    assert log["niter"] == 36 and len(log["err"]) == 4
    close(
        pot.sinkhorn(a, b, cost, 0.5, numItermax=37, stopThr=0, warn=False),
        ot.sinkhorn(a, b, cost, 0.5, numItermax=37, stopThr=0, warn=False),
        1e-12,
    )


# Where POT's scaling breaks and this does not.


def test_small_regularisation_and_zero_masses():
    a, b, cost = problem()
    with pytest.warns(UserWarning, match="numerical errors"):
        broken = ot.sinkhorn(a, b, cost, 5e-5, numItermax=50)
    assert np.abs(broken.sum(1) - a).max() > 1e-2
    options = {"numItermax": 2000, "warn": False}
    right = ot.sinkhorn(a, b, cost, 5e-5, method="sinkhorn_log", **options)
    for method in METHODS:
        close(pot.sinkhorn(a, b, cost, 5e-5, method=method, **options), right)

    a[3], b[5] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    want = reference.sinkhorn(*in_torch((cost, a, b)), reg=0.05, max_iter=501)
    wanted = reference.plan(torch.tensor(cost), want.f, want.g, 0.05).numpy()
    for log in (False, True):
        got = pot.sinkhorn(a, b, cost, 0.05, numItermax=501, stopThr=1e-14, log=log, warn=False)
        close(got[0] if log else got, wanted, 1e-9)
    result = pot.solve(cost, a, b, reg=0.05)
    assert np.isfinite(result.value) and result.plan[3].sum() == 0 and result.potential_a[3] == -np.inf


def test_forbidden_pairs():
    a, b, cost = problem()
    cost[0, 1] = cost[4, 7] = np.inf
    got, want = (
        module.sinkhorn(a, b, cost, 0.1, method="sinkhorn_log", numItermax=300, warn=False)
        for module in (pot, ot)
    )
    close(got, want, 1e-12)
    assert got[0, 1] == 0
    leaves = in_torch((a, b, cost), grad=True)
    for grad in ("autodiff", "envelope", "last_step"):
        result = pot.solve(leaves[2], leaves[0], leaves[1], reg=0.1, grad=grad, tol=1e-6)
        slope = torch.autograd.grad(result.value, leaves[2])[0]
        assert torch.isfinite(slope).all() and slope[0, 1] == 0 and slope.abs().max() > 0


# What is refused names what to do instead.


@pytest.mark.parametrize(
    ("function", "options", "alternative"),
    [
        ("solve", {"reg": None}, "reg > 0"),
        ("solve", {"reg": 0}, "reg > 0"),
        ("solve", {"unbalanced_type": "L2"}, "POT's own"),
        ("solve", {"reg_type": "L2"}, "'KL' or 'entropy'"),
        ("solve", {"c": np.ones((30, 24))}, "leave it out"),
        ("solve", {"method": "mm"}, "sinkhorn_log"),
        ("solve", {"n_threads": 4}, "set_num_threads"),
        ("solve", {"plan_init": np.ones((30, 24))}, "warmstart"),
        ("solve", {"potentials_init": (np.ones(30), np.ones(24))}, "warmstart"),
        ("solve_sample", {"lazy": True}, "POT's own"),
        ("solve_sample", {"batch_size": 10}, "lazy"),
        ("solve_sample", {"method": "geomloss"}, "SamplesLoss"),
        ("solve_sample", {"method": "sliced"}, "POT's own"),
        ("solve_sample", {"rank": 5}, "POT's own"),
        ("solve_sample", {"scaling": 0.5}, "SamplesLoss"),
        ("solve_sample", {"X_init": np.ones((2, 2))}, "leave it out"),
        ("solve_sample", {"random_state": 1}, "leave it out"),
        ("solve_sample", {"debias": "split"}, "debias=True"),
        ("solve_sample", {"n_projections": 5}, "POT's own"),
        ("solve_sample", {"projections": np.ones((2, 2))}, "POT's own"),
        ("solve_sample", {"scaler": np.sqrt}, "before the call"),
        ("solve_sample", {"metric": "chebyshev"}, "solve"),
        ("sinkhorn", {"method": "greenkhorn"}, "sinkhorn_log"),
        ("sinkhorn2", {"method": "sinkhorn_epsilon_scaling"}, "sinkhorn_log"),
    ],
)
def test_refusals_name_the_alternative(function, options, alternative):
    a, b, cost = problem()
    with pytest.raises(NotImplementedError, match=alternative):
        if function.startswith("sinkhorn"):
            getattr(pot, function)(a, b, cost, 0.1, **options)
        elif function == "solve":
            pot.solve(cost, a, b, **{"reg": 0.1, **options})
        else:
            pot.solve_sample(np.ones((30, 3)), np.ones((24, 3)), **{"reg": 0.1, **options})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"reg": 0.0}, ValueError, "reg"),
        ({"reg": "0.1"}, TypeError, "reg"),
        ({"method": "sinkhron"}, ValueError, "did you mean 'sinkhorn'"),
        ({"numItermax": 0}, ValueError, "numItermax"),
        ({"stopThr": -1.0}, ValueError, "stopThr"),
        ({"a": np.ones(7)}, ValueError, r"a must have shape \(30,\), got \(7,\)"),
        ({"M": np.ones(7)}, ValueError, "M must have shape"),
        ({"M": np.full((30, 24), np.nan)}, ValueError, "NaN"),
        ({"M": np.ones((30, 24), complex)}, TypeError, "real"),
        ({"M": torch.ones(30, 24)}, TypeError, "all of one kind"),
        ({"M": "text"}, TypeError, "NumPy array"),
        ({"a": np.full(30, 1.0)}, ValueError, "equal sums"),
        ({"warmstart": 3}, TypeError, "pair"),
        ({"tau": 1e3}, TypeError, "tau"),
        ({"tau": 0.0, "method": "sinkhorn_stabilized"}, ValueError, "tau"),
        ({"M": None}, TypeError, "M must be .* NoneType"),
        ({"M": np.ones((30, 24), np.longdouble)}, TypeError, "M must be of dtype .* cast it"),
        ({"M": [[1.0, 2.0], [3.0]]}, ValueError, "M must have rows of equal length"),
        ({"M": np.float64(1.0)}, ValueError, r"M must have shape \(N, M\), got \(\)"),
        ({"a": np.float64(1.0)}, ValueError, r"a must have shape \(30,\), got \(\)"),
        ({"b": np.ones((24, 0))}, ValueError, "b must hold at least one histogram"),
        ({"b": np.ones((24, 2, 2))}, ValueError, r"b must have shape \(24,\)"),
        ({"b": np.full((24, 2), -1.0)}, ValueError, "b must be >= 0 everywhere, got a negative mass"),
        ({"a": np.full(30, np.nan)}, ValueError, "a must be >= 0 everywhere"),
        ({"warmstart": (np.zeros(0), np.zeros(0))}, ValueError, r"warmstart .* got \(0,\) and \(0,\)"),
        ({"warmstart": (np.zeros(30), np.zeros(7))}, ValueError, r"warmstart .* got \(30,\) and \(7,\)"),
        ({"warmstart": (np.zeros(30), None)}, TypeError, r"warmstart\[1\]"),
    ],
)
def test_bad_input(change, error, words):
    a, b, cost = problem()
    call = {"a": a, "b": b, "M": cost, "reg": 0.1, **change}
    with pytest.raises(error, match=words):
        pot.sinkhorn(**call)


KINDS = [np.asarray, torch.tensor]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)], ids=str)
def test_no_rows_or_no_columns(shape, kind):
    """With masses of that length, uniform ones, or those of another problem."""
    n, m = shape
    cost = kind(np.zeros(shape))
    words = rf"M must have at least one row and one column, got shape \({n}, {m}\)"
    for a, b in ((None, None), (kind(np.zeros(n)), kind(np.zeros(m))), (kind(np.ones(3)), kind(np.ones(4)))):
        for method in METHODS:
            for function in (pot.sinkhorn, pot.sinkhorn2):
                with pytest.raises(ValueError, match=words):
                    function(a, b, cost, 0.1, method=method, log=True)
        for grad in ("autodiff", "last_step"):
            with pytest.raises(ValueError, match=words):
                pot.solve(cost, a, b, reg=0.1, grad=grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("debias", [False, True])
def test_points_that_are_none(debias, kind):
    x, y = np.ones((3, 2)), np.ones((4, 2))
    for points, words in [
        ((x[:0], y), "X_a must have at least one row"),
        ((x, y[:0]), "X_b must have at least one row"),
        ((x[:, :0], y[:, :0]), "X_a must have at least one row and one column"),
        ((x[:, 0], y), r"X_a must have shape \(n, D\)"),
        ((x, y * np.nan), "X_b must hold finite points"),
        ((x * np.inf, y), "X_a must hold finite points"),
    ]:
        with pytest.raises(ValueError, match=words):
            pot.solve_sample(*map(kind, points), reg=0.1, debias=debias)


def test_one_device():
    a, b, cost = in_torch(problem())
    for call in (
        lambda: pot.sinkhorn(a.to("meta"), b, cost, 0.1),
        lambda: pot.solve(cost, a.to("meta"), b, reg=0.1),
        lambda: pot.solve_sample(cost, cost.to("meta"), reg=0.1),
    ):
        with pytest.raises(ValueError, match="one device, got .* on meta"):
            call()


def test_numbers_of_other_kinds():
    a, b, cost = problem()
    want = pot.sinkhorn(a, b, cost, 0.05)
    np.testing.assert_array_equal(pot.sinkhorn(a.astype(">f8"), b, cost.astype(">f8"), 0.05), want)
    counts = np.arange(12).reshape(3, 4)
    close(pot.sinkhorn(np.ones(3, int), np.full(4, 0.75), counts, 2.0),
          ot.sinkhorn(np.ones(3), np.full(4, 0.75), counts.astype(float), 2.0))  # fmt: skip
    close(pot.sinkhorn(*in_torch((a, b)), torch.ones(30, 24, dtype=torch.int64), 1.0),
          pot.sinkhorn(*in_torch((a, b)), torch.ones(30, 24, dtype=torch.float64), 1.0))  # fmt: skip


# Results, as POT's own tests read them.


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_has_what_pots_has(kind):
    import pickle

    a, b, cost = map(kind, problem())
    for got, want in (
        (pot.solve(cost, a, b, reg=0.2), ot.solve(cost, a, b, reg=0.2)),
        (
            pot.solve_sample(cost, cost, reg=0.2, debias=True),
            ot.solve_sample(cost, cost, reg=0.2, debias=True),
        ),
    ):
        public = [name for name in dir(want) if not name.startswith("_")]
        assert {"citation", "sparse_plan", "a_to_b"} < set(public) and set(public) <= set(dir(got))
        assert type(got._backend) is type(want._backend) is type(ot.backend.get_backend(cost))
        for name in FIELDS:
            close(getattr(got, name), getattr(want, name))
        close(got._backend.to_numpy(got.value), want._backend.to_numpy(want.value))
        assert (
            type(got.sparse_plan) is type(want.sparse_plan)
            and got.sparse_plan.shape == want.sparse_plan.shape
        )
        for name in ("status", "value_quad", "lazy_plan"):
            assert getattr(got, name) is getattr(want, name) is None
        for name in ("a_to_b", "b_to_a"):
            with pytest.raises(NotImplementedError, match="plan"):
                getattr(got, name)
        assert "Cuturi" in got.citation and "@article" in got.citation
        again = pickle.loads(pickle.dumps(got))
        close(again.plan, got.plan, 0)
        close(again.marginals[0], got.marginals[0], 0)


def test_a_result_of_ones_own():
    empty = pot.OTResult()
    assert repr(empty) == "OTResult()" and empty._backend is None
    for name in ("value", "plan", "sparse_plan", "lazy_plan", "potentials", "potential_a", "potential_b", "marginals",
                 "marginal_a", "marginal_b", "status", "log", "value_linear", "value_quad"):  # fmt: skip
        assert getattr(empty, name) is None
    a, b, cost = problem()
    plan = ot.sinkhorn(a, b, cost, 0.1)
    lazy = ot.utils.LazyTensor(plan.shape, lambda i, j: plan[i, j])
    backend = ot.backend.NumpyBackend()
    for result in (
        pot.OTResult(plan=plan),
        pot.OTResult(sparse_plan=pot.OTResult(plan=plan).sparse_plan),
        pot.OTResult(lazy_plan=lazy, batch_size=7, backend=backend),
    ):
        close(result.marginal_a, plan.sum(1), 1e-12)
        close(result.marginal_b, plan.sum(0), 1e-12)
        assert "plan=" in repr(result) or result.plan is not None
    assert result._backend is backend


def test_tau_is_taken_and_changes_nothing(monkeypatch):
    from ucmkd_fast.compat import _scaling

    monkeypatch.setattr(_scaling, "_told", set())
    a, b, cost = problem()
    want = pot.sinkhorn(a, b, cost, 0.05, method="sinkhorn_stabilized")
    with pytest.warns(UserWarning, match="tau=1000 changes nothing here") as caught:
        got = pot.sinkhorn(a, b, cost, 0.05, method="sinkhorn_stabilized", tau=1e3)
    assert len(caught) == 1 and caught[0].filename == __file__
    np.testing.assert_array_equal(got, want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = pot.sinkhorn2(a, b, cost, 0.05, method="sinkhorn_stabilized", tau=1)
    assert np.isclose(loss, (want * cost).sum(), atol=1e-9)


def test_signatures_are_pots():
    import inspect

    for name in ("sinkhorn", "sinkhorn2", "solve", "solve_sample"):
        got, want = (inspect.signature(getattr(module, name)).parameters for module in (pot, ot))
        kinds = (inspect.Parameter.VAR_KEYWORD,)
        assert [(k, v.default) for k, v in got.items() if v.kind not in kinds] == [
            (k, v.default) for k, v in want.items() if v.kind not in kinds
        ]
