"""Unbalanced functions of `compat.pot` against POT: plans, logs, iterations, gradients, where POT errs, refusals."""

from __future__ import annotations

import inspect
import warnings
from functools import partial

import numpy as np
import pytest
import torch

from ucmkd_fast.compat import _relaxed, pot

ot = pytest.importorskip("ot", reason="POT, which this part is compared with, is not installed (extra: test)")
theirs = ot.unbalanced
if "returnCost" not in inspect.signature(theirs.sinkhorn_unbalanced2).parameters:
    pytest.skip("this POT's sinkhorn_unbalanced2 has no returnCost (before 0.9.5)", allow_module_level=True)

INF = float("inf")
METHODS = ["sinkhorn", "sinkhorn_stabilized", "sinkhorn_translation_invariant"]
RHOS = [0.05, 1.0, (0.5, 3.0), (INF, 1.0), (2.0, INF)]
pytestmark = [
    pytest.mark.filterwarnings("ignore:If reg_type = entropy"),  # POT says so of every call
    pytest.mark.filterwarnings("ignore:Stabilized Unbalanced Sinkhorn did not converge"),
    pytest.mark.filterwarnings("ignore:Numerical errors"),
]


def close(got, want, tolerance):
    got, want = (z.detach().numpy() if isinstance(z, torch.Tensor) else np.asarray(z) for z in (got, want))
    assert got.shape == want.shape
    scale = max(1.0, float(np.abs(want).max()))
    assert np.abs(got - want).max() <= tolerance * scale  # false for NaN


def problem(n=20, m=30, seed=0, dtype=np.float64, mass=1.7):
    rng = np.random.default_rng(seed)
    a, b, cost = rng.random(n) + 0.1, rng.random(m) + 0.1, rng.random((n, m))
    return [z.astype(dtype) for z in (a / a.sum(), b / b.sum() * mass, cost)]


def leaves(arrays, dtype=torch.float64):
    return [torch.tensor(z, dtype=dtype, requires_grad=True) for z in arrays]


def both(name, *arguments, **options):
    return (getattr(module, name)(*arguments, **options) for module in (pot, ot))


# Plans, logs, iterations.


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize("rho", RHOS, ids=str)
@pytest.mark.parametrize("size", [(5, 7), (20, 20), (64, 50)], ids=str)
def test_iterations_and_logs_are_pots(size, rho, reg_type):
    a, b, cost = problem(*size)
    for reg in (0.05, 0.3, 1.0):
        for threshold in (1e-3, 1e-6, 1e-9):
            options = {"reg_type": reg_type, "stopThr": threshold, "numItermax": 3000}
            call = partial(both, "sinkhorn_unbalanced", a, b, cost, reg, rho, **options)
            (got, log), (want, want_log) = call(log=True)
            assert set(log) == set(want_log) and len(log["err"]) == len(want_log["err"])
            close(got, want, 1e-12)
            for name in ("logu", "logv", "cost", "total_cost", "err"):
                close(log[name], want_log[name], 1e-10)
            # Without a log the search goes ahead and back: the same end.
            close(next(call()), want, 1e-12)


def test_the_stabilized_rule():
    """Of u, at iterations 1, 11, 21; equal to POT's where POT has nothing to absorb."""
    a, b, cost = problem()
    for reg in (0.3, 1.0):
        for rho in (0.05, 1.0, (0.5, 3.0)):
            for reg_type in ("kl", "entropy"):
                options = {
                    "method": "sinkhorn_stabilized",
                    "reg_type": reg_type,
                    "log": True,
                    "stopThr": 1e-9,
                }
                (got, log), (want, want_log) = both("sinkhorn_unbalanced", a, b, cost, reg, rho, **options)
                assert set(log) == set(want_log) and len(log["err"]) == len(want_log["err"])
                close(got, want, 1e-11)
                close(log["logv"], want_log["logv"], 1e-10)


def test_the_stabilized_rule_where_scalings_are_far_apart():
    """Small u and large v are measured by their largest, as where POT takes them into its potentials."""
    rng = np.random.default_rng(0)
    a, b, cost = rng.random(40), rng.random(30) * 3, rng.random((40, 30))
    options = {"method": "sinkhorn_stabilized", "numItermax": 20_000, "stopThr": 1e-10, "log": True}
    (got, log), (want, _) = both("sinkhorn_unbalanced", a, b, cost, 0.05, 50.0, **options)
    assert len(log["err"]) > 100
    close(got, want, 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["numpy32", "torch64", "torch32"])
def test_kinds_of_arrays(kind, method):
    dtype = np.float32 if kind.endswith("32") else np.float64
    arrays = problem(dtype=dtype)
    if kind.startswith("torch"):
        arrays = [torch.tensor(z) for z in arrays]
    tolerance = 2e-4 if dtype == np.float32 else 1e-6
    for name in ("sinkhorn_unbalanced", "sinkhorn_unbalanced2"):
        got, want = both(name, *arrays, 0.3, 1.0, method=method, stopThr=1e-6)
        assert type(got) is type(want) and got.dtype == want.dtype
        close(got, want, tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rho", RHOS, ids=str)
def test_every_method_finds_the_plan(rho, method):
    """Of the fixed point, which POT's translation-invariant iterations miss where both weights differ."""
    a, b, cost = problem(12, 9)
    want = ot.sinkhorn_unbalanced(a, b, cost, 0.3, rho, stopThr=1e-15, numItermax=100_000)
    got = pot.sinkhorn_unbalanced(a, b, cost, 0.3, rho, method=method, stopThr=1e-13, numItermax=10_000)
    close(got, want, 1e-10)
    original = ot.sinkhorn_unbalanced(a, b, cost, 0.3, rho, method=method, stopThr=1e-13, numItermax=10_000)
    if method == "sinkhorn_translation_invariant" and rho == (0.5, 3.0):
        assert np.abs(original - want).max() > 1e-4
    else:
        close(original, want, 1e-10)


def test_large_weights_converge_in_few_iterations():
    """Plain iterations change the masses slowly there, and POT's translation-invariant ones overflow."""
    a, b, cost = problem()
    options = {"stopThr": 1e-9, "log": True, "method": "sinkhorn_translation_invariant"}
    with np.errstate(all="ignore"):
        assert np.isnan(ot.sinkhorn_unbalanced(a, b, cost, 0.05, 1000.0, **options)[0]).any()
    plan, log = pot.sinkhorn_unbalanced(a, b, cost, 0.05, 1000.0, **options)
    assert len(log["err"]) < 200
    for side, mass, scaling in ((1, a, log["logu"]), (0, b, log["logv"])):
        close(plan.sum(side), mass * np.exp(-0.05 / 1000 * scaling), 1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_reference_measures(method):
    a, b, cost = problem()
    c = np.random.default_rng(3).random(cost.shape) + 0.1
    c[0, 1] = 0
    options = {"method": method, "c": c, "stopThr": 1e-9, "log": True}
    with np.errstate(all="ignore"):
        (got, log), (want, want_log) = both("sinkhorn_unbalanced", a, b, cost, 0.3, 1.0, **options)
    assert got[0, 1] == 0
    close(got, want, 1e-7)
    close(log["cost"], want_log["cost"], 1e-7)
    assert np.isfinite(log["total_cost"])  # POT's is NaN where c is 0
    c = a[:, None] * b
    close(
        pot.sinkhorn_unbalanced(a, b, cost, 0.3, 1.0, c=c, method=method),
        pot.sinkhorn_unbalanced(a, b, cost, 0.3, 1.0, method=method),
        1e-12,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rho", [1.0, (2.0, INF), (INF, INF)], ids=str)
def test_several_histograms(rho, method):
    a, _, cost = problem()
    b = np.random.default_rng(4).random((30, 3)) + 0.1
    b /= b.sum(0)
    options = {"method": method, "stopThr": 1e-9, "log": True, "numItermax": 3000}
    for name in ("sinkhorn_unbalanced", "sinkhorn_unbalanced2"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (got, log), (want, want_log) = both(name, a, b, cost, 0.3, rho, **options)
        assert set(log) == set(want_log)
        plain = method == "sinkhorn"
        if method == "sinkhorn_translation_invariant" and rho == (2.0, INF):
            with warnings.catch_warnings():  # POT's own misses the plan there
                warnings.simplefilter("ignore")
                want, want_log = ot.sinkhorn_unbalanced(
                    a, b, cost, 0.3, rho, stopThr=1e-12, numItermax=10_000, log=True
                )
        close(got, want, 1e-12 if plain else 1e-7)
        for key in ("logu", "logv"):
            close(log[key], want_log[key], 1e-10 if plain else 1e-6)
        assert not plain or len(log["err"]) == len(want_log["err"])
    with pytest.warns(UserWarning, match="'entropy', as in POT"):
        pot.sinkhorn_unbalanced2(a, b, cost, 0.3, 1.0)


def test_losses_and_defaults():
    a, b, cost = problem()
    for kind in ("linear", "total"):
        (got, log), (want, want_log) = both(
            "sinkhorn_unbalanced2", a, b, cost, 0.3, 1.0, returnCost=kind, log=True
        )
        close(got, want, 1e-12)
        assert set(log) == set(want_log)
        close(next(both("sinkhorn_unbalanced2", a, b, cost, 0.3, 1.0, returnCost=kind)), want, 1e-12)
    close(*both("sinkhorn_unbalanced", [], [], cost, 0.3, 1.0), 1e-12)
    assert pot.sinkhorn_unbalanced is pot.unbalanced.sinkhorn_unbalanced
    for name in (
        "sinkhorn_knopp_unbalanced", "sinkhorn_stabilized_unbalanced", "sinkhorn_unbalanced_translation_invariant",
    ):  # fmt: skip
        got, want = (getattr(m, name)(a, b, cost, 0.3, 1.0, stopThr=1e-9) for m in (pot.unbalanced, theirs))
        close(got, want, 1e-7)


def test_ways_to_write_the_weights():
    a, b, cost = problem()
    want = ot.sinkhorn_unbalanced(a, b, cost, 0.3, (1.0, 2.0))
    for pair in ([1, 2.0], np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])):
        close(pot.sinkhorn_unbalanced(a, b, cost, 0.3, pair), want, 1e-12)
    want = ot.sinkhorn_unbalanced(a, b, cost, 0.3, 2.0)
    for one in (2, [2.0], (2.0,), np.array([2.0]), np.float32(2.0)):
        close(pot.sinkhorn_unbalanced(a, b, cost, 0.3, one), want, 1e-12)


def test_both_sides_exact():
    """Equal sums: the balanced plan. Others: the iterates that POT has before its scalings overflow."""
    a, b, cost = problem(mass=1.0)
    options = {"numItermax": 3000}
    balanced = pot.sinkhorn(a, b, cost, 0.3, stopThr=1e-14, **options)
    close(pot.sinkhorn_unbalanced(a, b, cost, 0.3, INF, stopThr=1e-13, **options), balanced, 1e-11)
    b = b * 1.7
    for count in (1, 2, 7):
        (got, log), (want, want_log) = both(
            "sinkhorn_unbalanced", a, b, cost, 0.3, INF, stopThr=0, numItermax=count, log=True
        )
        close(got, want, 1e-12)
        close(got.sum(0), b, 1e-12)
        for name in ("logu", "logv"):
            close(log[name], want_log[name], 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_warmstart(method):
    a, b, cost = problem()
    start = np.linspace(-1, 1, 20), np.linspace(1, -1, 30)
    options = {"method": method, "warmstart": start, "log": True, "stopThr": 1e-9}
    (got, log), (want, want_log) = both("sinkhorn_unbalanced", a, b, cost, 0.3, 1.0, **options)
    close(got, want, 1e-12 if method == "sinkhorn" else 1e-7)
    if method == "sinkhorn":
        assert len(log["err"]) == len(want_log["err"])
        close(log["err"], want_log["err"], 1e-10)
    again = pot.sinkhorn_unbalanced(
        a, b, cost, 0.3, 1.0, **{**options, "warmstart": (log["logu"], log["logv"])}
    )[1]
    assert len(again["err"]) == 1
    histograms = np.stack([b, b / 2], 1)
    pairs = start, [np.stack([z, z], 1) for z in start]
    first, second = (
        pot.sinkhorn_unbalanced(a, histograms, cost, 0.3, 1.0, warmstart=w, stopThr=1e-9) for w in pairs
    )
    close(first, second, 1e-14)


def test_errors_are_printed(capsys):
    a, b, cost = problem()
    pot.sinkhorn_unbalanced(a, b, cost, 0.3, 1.0, verbose=True, numItermax=7, stopThr=1e-15)
    assert capsys.readouterr().out.count("error") == 7


def test_the_search_goes_ahead(monkeypatch):
    """Fewer calls of the op than iterations, and never a look past the end of what was asked for."""
    a, b, cost = problem()
    ran = []
    real = _relaxed.sinkhorn

    def counted(*arguments, **options):
        ran.append(options["max_iter"])
        return real(*arguments, **options)

    monkeypatch.setattr(_relaxed, "sinkhorn", counted)
    plan, log = ot.sinkhorn_unbalanced(a, b, cost, 0.05, 2.0, stopThr=1e-9, log=True, numItermax=5000)
    close(pot.sinkhorn_unbalanced(a, b, cost, 0.05, 2.0, stopThr=1e-9, numItermax=5000), plan, 1e-12)
    count = len(log["err"])
    assert count > 100 and len(ran) < count / 2 and sum(ran) < 2 * count
    ran.clear()
    pot.sinkhorn_unbalanced(a, b, cost, 0.05, 2.0, stopThr=0, numItermax=40)
    assert ran == [40]


# Gradients.


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize("rho", [1.0, (0.5, INF)], ids=str)
@pytest.mark.parametrize("with_c", [False, True])
def test_gradients_are_pots(with_c, rho, reg_type):
    if with_c and reg_type == "entropy":
        return  # POT does not read c there
    c = np.random.default_rng(3).random((20, 30)) + 0.1
    weight = torch.linspace(-1, 1, 600, dtype=torch.float64).reshape(20, 30)
    found = []
    for module in (pot, ot):
        inputs = leaves([*problem(), *([c] if with_c else [])])
        options = {"reg_type": reg_type, "stopThr": 1e-11, "c": inputs[3] if with_c else None}
        values = [
            module.sinkhorn_unbalanced2(*inputs[:3], 0.3, rho, returnCost=kind, **options)
            for kind in ("linear", "total")
        ]
        values.append((module.sinkhorn_unbalanced(*inputs[:3], 0.3, rho, **options) * weight).sum())
        slopes = [s for value in values for s in torch.autograd.grad(value, inputs)]
        found.append([*(v.detach() for v in values), *slopes])
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-8)


def test_gradients_of_translation_invariant_iterations():
    """As at convergence: those of the fixed point."""
    found = []
    for method in ("sinkhorn", "sinkhorn_translation_invariant"):
        inputs = leaves(problem())
        options = {"method": method, "stopThr": 1e-12, "numItermax": 5000, "returnCost": "total"}
        loss = pot.sinkhorn_unbalanced2(*inputs, 0.3, 5.0, **options)
        found.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-6)


def test_masses_that_are_zero():
    a, b, cost = problem()
    a[3], b[5] = 0, 0
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = ot.sinkhorn_unbalanced(a, b, cost, 0.3, 1.0, c=np.outer(a, b) + 1e-300, stopThr=1e-9)
    inputs = leaves((a, b, cost))
    loss, log = pot.sinkhorn_unbalanced2(*inputs, 0.3, 1.0, stopThr=1e-9, log=True)
    close(pot.sinkhorn_unbalanced(a, b, cost, 0.3, 1.0, stopThr=1e-9), want, 1e-9)
    assert log["logu"][3] == -INF and log["logv"][5] == -INF and torch.isfinite(log["total_cost"])
    slopes = torch.autograd.grad(loss, inputs)
    assert torch.isfinite(slopes[2]).all() and (slopes[2][3] == 0).all()


def test_where_pots_scaling_breaks():
    a, b, cost = problem()
    with np.errstate(all="ignore"), pytest.warns(UserWarning, match="Numerical errors"):
        ot.sinkhorn_unbalanced(a, b, cost, 1e-3, 50.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = pot.sinkhorn_unbalanced(a, b, cost, 1e-3, 50.0, stopThr=1e-6, numItermax=2000)
    assert np.isfinite(plan).all() and 1 < plan.sum() < 1.7


# solve and solve_sample.


@pytest.mark.parametrize("unbalanced", [1.0, (0.5, 3.0), (INF, 1.0)], ids=str)
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_solve(kind, unbalanced):
    a, b, cost = map(kind, problem())
    c = kind(np.random.default_rng(3).random(cost.shape) + 0.1)
    start = kind(np.linspace(-1, 1, 20)), kind(np.linspace(1, -1, 30))
    for options in (
        {},
        {"reg_type": "kl", "unbalanced_type": "kl"},
        {"c": c},
        {"potentials_init": start},
        {"tol": 1e-5},
    ):
        got, want = both("solve", cost, a, b, 0.3, unbalanced=unbalanced, **options)
        for name in (
            "value",
            "value_linear",
            "plan",
            "potential_a",
            "potential_b",
            "marginal_a",
            "marginal_b",
        ):
            close(getattr(got, name), getattr(want, name), 1e-11)
            assert type(getattr(got, name)) is type(getattr(want, name))
    close(*(r.plan for r in both("solve", cost, reg=0.3, unbalanced=unbalanced)), 1e-11)


def test_solve_with_entropy_minimises_what_pot_does():
    """POT runs L-BFGS there, from the product of the masses."""
    a, b, cost = problem(8, 6)
    for unbalanced in (1.0, (0.5, 3.0)):
        options = {"reg_type": "entropy", "unbalanced": unbalanced}
        want = ot.solve(cost, a, b, 0.3, max_iter=10_000, **options)
        got = pot.solve(cost, a, b, 0.3, **options)
        close(got.value, want.value, 1e-8)
        assert got.value <= want.value + 1e-12
        close(got.plan, want.plan, 1e-3)
        close(got.value_linear, want.value_linear, 1e-3)
    inputs = leaves((a, b, cost))
    slope = torch.autograd.grad(pot.solve(inputs[2], *inputs[:2], 0.3, **options).value, inputs[2])[0]
    close(slope, got.plan, 1e-7)  # the envelope: the derivative of a minimum


def test_solve_and_its_gradients():
    found = []
    for module in (pot, ot):
        inputs = leaves(problem())
        result = module.solve(inputs[2], *inputs[:2], reg=0.3, unbalanced=1.0, tol=1e-11)
        values = result.value, result.value_linear
        found.append([s for v in values for s in torch.autograd.grad(v, inputs, retain_graph=True)])
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-8)
    assert not pot.solve(inputs[2], reg=0.3, unbalanced=1.0, grad="detach").value.requires_grad


@pytest.mark.parametrize("debias", [False, True])
def test_solve_sample(debias):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(20, 4)), rng.normal(size=(16, 4)) + 0.3
    found = []
    for module in (pot, ot):
        x, y = leaves(points)
        result = module.solve_sample(x, y, reg=0.5, unbalanced=2.0, debias=debias)
        found.append(
            [result.value, result.plan, result.value_linear, *torch.autograd.grad(result.value, (x, y))]
        )
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-8)


# What is refused, and bad input.


@pytest.mark.parametrize(
    ("options", "alternative"),
    [
        ({"unbalanced_type": "L2"}, "POT's own"),
        ({"unbalanced_type": "TV"}, "POT's own"),
        ({"reg_type": "L2"}, "'KL' or 'entropy'"),
        ({"reg_type": (np.sum, np.ones_like)}, "'KL' or 'entropy'"),
        ({"reg": None}, "reg > 0"),
        ({"reg": 0}, "reg > 0"),
        ({"method": "mm"}, "sinkhorn_log"),
        ({"grad": "envelope"}, "'autodiff' or 'detach'"),
        ({"grad": "last_step"}, "'autodiff' or 'detach'"),
        ({"reg_type": "entropy", "c": np.ones((20, 30))}, "leave it out"),
        ({"reg_type": "entropy", "potentials_init": (np.ones(20), np.ones(30))}, "leave it out"),
        ({"plan_init": np.ones((20, 30))}, "warmstart"),
    ],
    ids=str,
)
def test_refusals_name_the_alternative(options, alternative):
    a, b, cost = problem()
    with pytest.raises(NotImplementedError, match=alternative):
        pot.solve(cost, a, b, **{"reg": 0.3, "unbalanced": 1.0, **options})
    if "c" in options:
        with pytest.raises(NotImplementedError, match="leave it out"):
            pot.sinkhorn_unbalanced(a, np.stack([b, b], 1), cost, 0.3, 1.0, c=options["c"])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"reg": 0.0}, ValueError, "reg"),
        ({"reg_m": 0.0}, ValueError, "reg_m must be > 0"),
        ({"reg_m": float("nan")}, ValueError, "reg_m must be > 0"),
        ({"reg_m": (1.0, -1.0)}, ValueError, "reg_m must be > 0"),
        ({"reg_m": (1.0, 2.0, 3.0)}, ValueError, "one number or two"),
        ({"reg_m": None}, TypeError, "inf keeps a side exact"),
        ({"reg_m": (None, 1.0)}, TypeError, "inf keeps a side exact"),
        ({"method": "sinkhron"}, ValueError, "did you mean 'sinkhorn'"),
        ({"reg_type": "L2"}, ValueError, "reg_type"),
        ({"numItermax": 0}, ValueError, "numItermax"),
        ({"stopThr": -1.0}, ValueError, "stopThr"),
        ({"tau": 10.0}, TypeError, "tau"),
        ({"tau": 0.0, "method": "sinkhorn_stabilized"}, ValueError, "tau"),
        ({"a": np.ones(7)}, ValueError, r"a must have shape \(20,\)"),
        ({"a": -np.ones(20)}, ValueError, "a must be >= 0"),
        ({"b": np.ones((30, 0))}, ValueError, "K > 0"),
        ({"b": np.ones((7, 2))}, ValueError, r"b must have shape \(30, K\)"),
        ({"c": np.ones((30, 20))}, ValueError, "c must have the shape of M"),
        ({"c": -np.ones((20, 30))}, ValueError, "c must be >= 0"),
        ({"M": np.full((20, 30), np.nan)}, ValueError, "NaN"),
        ({"M": torch.ones(20, 30)}, TypeError, "all of one kind"),
        ({"warmstart": 3}, TypeError, "pair"),
        ({"warmstart": (np.zeros(30), np.zeros(20))}, ValueError, r"warmstart\[0\] must have shape \(20,\)"),
    ],
    ids=str,
)
def test_bad_input(change, error, words):
    a, b, cost = problem()
    call = {"a": a, "b": b, "M": cost, "reg": 0.3, "reg_m": 1.0, **change}
    for function in (pot.sinkhorn_unbalanced, pot.sinkhorn_unbalanced2):
        with pytest.raises(error, match=words):
            function(**call)


def test_warnings_are_pots():
    a, b, cost = problem()
    call = partial(pot.sinkhorn_unbalanced, a, b, cost, 0.3, 1.0)
    with pytest.raises(ValueError, match="returnCost"):
        pot.sinkhorn_unbalanced2(a, b, cost, 0.3, 1.0, returnCost="all")
    with pytest.warns(UserWarning, match="Method not implemented yet") as caught:
        call(method="sinkhorn_reg_scaling")
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="Stabilized Unbalanced Sinkhorn did not converge") as caught:
        call(method="sinkhorn_stabilized", numItermax=1)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="c is not read"):
        call(reg_type="entropy", c=np.ones_like(cost))
    with warnings.catch_warnings():  # as POT, which says nothing of the others
        warnings.simplefilter("error")
        call(numItermax=1)
        call(reg_type="entropy")


@pytest.mark.parametrize("log", [False, True])
def test_refusals_name_what_was_given(log):
    """Rows and a, though the op gets the problem transposed."""
    for change, words in (
        ("a[3] = INF", "a"), ("a[:] = 0", "all-zero a"), ("cost[1, 2] = NAN", "1, 2"), ("cost[3] = INF", "row 3"),
    ):  # fmt: skip
        a, b, cost = problem()
        exec(change, {"a": a, "cost": cost, "INF": np.inf, "NAN": np.nan})
        with pytest.raises(ValueError, match=words):
            pot.sinkhorn_unbalanced(a, b, cost, 0.3, 1.0, log=log)


def test_signatures_are_pots():
    for name in (
        "sinkhorn_unbalanced", "sinkhorn_unbalanced2", "sinkhorn_knopp_unbalanced", "sinkhorn_stabilized_unbalanced",
        "sinkhorn_unbalanced_translation_invariant",
    ):  # fmt: skip
        got, want = (inspect.signature(getattr(m, name)).parameters for m in (pot.unbalanced, theirs))
        assert [(k, v.default, v.kind) for k, v in got.items()] == [
            (k, v.default, v.kind) for k, v in want.items()
        ]
