"""`compat.pot.batch` against POT's `ot.batch`: plans, values, gradients, stopping, helpers, refusals."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch

from ucmkd_fast.compat import pot

ot = pytest.importorskip("ot", reason="POT, which this part is compared with, is not installed (extra: test)")
theirs = pytest.importorskip("ot.batch", reason="this POT has no ot.batch (it came with 0.9.6)")
if "method" not in inspect.signature(theirs.solve_batch).parameters:
    pytest.skip("this POT's solve_batch calls its method solver (before 0.9.7)", allow_module_level=True)

FIELDS = ("value", "value_linear", "plan", "potential_a", "potential_b")
SIZES = [(1, 5, 7), (3, 8, 8), (4, 16, 11), (2, 64, 50)]


def close(got, want, tolerance):
    got, want = (z.detach().numpy() if isinstance(z, torch.Tensor) else np.asarray(z) for z in (got, want))
    assert got.shape == want.shape
    scale = max(1.0, float(np.abs(want).max()))
    assert np.abs(got - want).max() <= tolerance * scale  # false for NaN


def problem(batch=4, n=16, m=11, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    cost, a, b = rng.random((batch, n, m)), rng.random((batch, n)) + 0.1, rng.random((batch, m)) + 0.1
    return [z.astype(dtype) for z in (cost, a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True))]


def leaves(arrays, dtype=torch.float64):
    return [torch.tensor(z, dtype=dtype, requires_grad=True) for z in arrays]


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize("method", ["auto", "log_sinkhorn", "sinkhorn"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_and_iterations_are_pots(size, method, reg_type):
    for dtype, tolerance, thresholds in (
        (np.float64, 1e-12, (1e-2, 1e-5, 1e-9)),
        (np.float32, 2e-5, (1e-2, 1e-5)),
    ):
        cost, a, b = problem(*size, dtype=dtype)
        for reg in (0.05, 0.1, 1.0):
            for tol in thresholds:
                options = {"method": method, "reg_type": reg_type, "tol": tol, "max_iter": 777}
                got, want = (f(cost, reg, a, b, **options) for f in (pot.solve_batch, ot.solve_batch))
                assert got.log == want.log
                for name in FIELDS:
                    close(getattr(got, name), getattr(want, name), tolerance)
                    assert getattr(got, name).dtype == dtype


def test_a_search_that_passes_the_end_goes_back():
    """Whatever max_iter, also one that is no look, and a threshold that the last looks pass."""
    cost, a, b = problem(3, 20, 20, seed=5)
    for max_iter in (1, 2, 10, 11, 12, 200, 3000):
        for tol in (0, 0.3, 1e-3, 1e-7):
            got, want = (
                f(cost, 0.03, a, b, max_iter=max_iter, tol=tol) for f in (pot.solve_batch, ot.solve_batch)
            )
            assert got.log == want.log
            close(got.plan, want.plan, 1e-11)


def test_uniform_and_shared_masses():
    cost, a, b = problem()
    for pair in ({}, {"a": a[0]}, {"b": b[1]}):
        full = {name: np.repeat(z[None], 4, 0) for name, z in pair.items()}
        close(
            pot.solve_batch(cost, 0.1, tol=1e-9, **pair).plan,
            ot.solve_batch(cost, 0.1, tol=1e-9, **full).plan,
            1e-12,
        )
    with warnings.catch_warnings():  # POT warns of nothing, converged or not
        warnings.simplefilter("error")
        pot.solve_batch(cost, 0.01, max_iter=2)


@pytest.mark.parametrize("grad", ["detach", "envelope", "autodiff", "last_step"])
@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_pots(dtype, reg_type, grad):
    weight = torch.linspace(-1, 1, 4 * 16 * 11, dtype=dtype).reshape(4, 16, 11)
    found = []
    for solve in (pot.solve_batch, ot.solve_batch):
        cost, a, b = leaves(problem(), dtype)
        if grad == "last_step":  # POT's a and b go through all iterations, the costs through the last one
            a, b = a.detach(), b.detach()
        result = solve(cost, 0.2, a, b, reg_type=reg_type, grad=grad, tol=1e-4)
        values = [result.value, result.value_linear, (result.plan * weight).sum((1, 2))]
        found.append([v.detach() for v in values])
        if grad != "detach":
            usable = values if grad in ("autodiff", "last_step") else values[:2]
            assert [v.requires_grad for v in values] == [k < len(usable) for k in range(3)]
            inputs = (cost, a, b) if grad == "autodiff" else (cost,)
            for value in usable:
                found[-1] += torch.autograd.grad(value.sum(), inputs, retain_graph=True)
        if reg_type == "kl" and grad == "envelope":
            found[-1] += torch.autograd.grad(result.value.sum(), (a, b))
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-4 if dtype == torch.float32 else 1e-10)


def test_the_gradient_of_the_example():
    """As POT's documentation has it: points, costs, the envelope."""
    found = []
    for module in (pot, ot):
        rng = np.random.default_rng(3)
        x, y = leaves((rng.normal(size=(4, 8, 2)), rng.normal(size=(4, 8, 2))))
        result = module.solve_sample_batch(x, y, reg=1.0, max_iter=100, tol=1e-3, reg_type="entropy")
        found.append([result.value_linear.detach(), *torch.autograd.grad(result.value.sum(), (x, y))])
        assert module.dist_batch(x).shape == (4, 8, 8)
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-12)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "minkowski", "kl"])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_costs_and_losses(kind, metric):
    rng = np.random.default_rng(1)
    x, y = (rng.random(size) + 0.1 for size in ((2, 6, 3), (2, 5, 3)))
    x, y = (kind(z / z.sum(-1, keepdims=True)) for z in (x, y))
    options = {"metric": metric, "p": 3}
    cost = pot.dist_batch(x, y, **options)
    assert type(cost) is type(x)
    close(cost, ot.dist_batch(x, y, **options), 1e-12)
    close(pot.dist_batch(x, x, "minkowski", 1), ot.dist_batch(x, x, "minkowski", 1), 1e-12)
    got, want = (
        f(x, y, reg=0.1, tol=1e-9, **options) for f in (pot.solve_sample_batch, ot.solve_sample_batch)
    )
    for name in FIELDS:
        close(getattr(got, name), getattr(want, name), 1e-11)
    close(pot.batch.loss_linear_batch(cost, got.plan), theirs.loss_linear_batch(cost, got.plan), 1e-12)
    close(
        pot.batch.loss_linear_samples_batch(x, y, got.plan, "euclidean"),
        theirs.loss_linear_samples_batch(x, y, got.plan, "euclidean"),
        1e-12,
    )
    close(pot.batch.entropy_batch(got.plan), theirs.entropy_batch(got.plan), 1e-12)


def test_points_that_meet():
    """POT takes a root of what may round below zero; here distances are 0 and so are their gradients."""
    x = (torch.rand(2, 5, 3, dtype=torch.float64) * 1e3).requires_grad_()
    cost = pot.dist_batch(x, x.detach(), "euclidean")
    assert (cost.diagonal(dim1=1, dim2=2) == 0).all() and torch.isfinite(cost).all()
    assert torch.isfinite(torch.autograd.grad(cost.sum(), x)[0]).all()


def test_projections():
    cost, a, b = problem()
    for name, affinity in (
        ("bregman_log_projection_batch", -cost / 0.1),
        ("bregman_projection_batch", np.exp(-cost / 0.1)),
    ):
        got, want = (getattr(m, name)(affinity, a, b, max_iter=50, tol=1e-10) for m in (pot.batch, theirs))
        assert set(got) == set(want) and got["n_iters"] == want["n_iters"]
        for key in set(got) - {"n_iters", "potentials"}:
            close(got[key], want[key], 1e-12)
        for mine, other in zip(got["potentials"], want["potentials"], strict=True):
            close(mine, other, 1e-12)
        close(getattr(pot.batch, name)(affinity)["T"], getattr(theirs, name)(affinity)["T"], 1e-12)
    found = []
    for module in (pot.batch, theirs):
        (affinity,) = leaves((-cost / 0.1,))
        plan = module.bregman_log_projection_batch(affinity, *map(torch.tensor, (a, b)), grad="autodiff")["T"]
        found.append(torch.autograd.grad((plan * torch.tensor(cost)).sum(), affinity)[0])
    close(*found, 1e-10)


def test_small_regularisation_zero_masses_and_forbidden_pairs():
    cost, a, b = problem()
    options = {"tol": 0, "max_iter": 301}
    with np.errstate(all="ignore"):
        right = ot.solve_batch(cost, 2e-4, a, b, **options).plan
        broken = ot.solve_batch(cost, 2e-4, a, b, method="sinkhorn", **options).plan
    assert np.isnan(broken).any()
    for method in ("auto", "sinkhorn"):
        close(pot.solve_batch(cost, 2e-4, a, b, method=method, **options).plan, right, 1e-9)

    a[:, 2], b[1, 3] = 0, 0
    a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    with np.errstate(all="ignore"):
        right = ot.solve_batch(cost, 0.1, a, b, **options).plan
    for reg_type in ("kl", "entropy"):
        result = pot.solve_batch(cost, 0.1, a, b, reg_type=reg_type, **options)
        close(result.plan, right, 1e-12)
        assert np.isfinite(result.value).all() and result.potentials[0][0, 2] == -np.inf
    cost[0, 1, 2] = np.inf
    leaf = torch.tensor(cost).requires_grad_()
    for grad in ("envelope", "autodiff", "last_step"):
        result = pot.solve_batch(leaf, 0.1, grad=grad)
        slope = torch.autograd.grad(result.value.sum(), leaf)[0]
        assert result.plan[0, 1, 2] == 0 and torch.isfinite(slope).all() and slope[0, 1, 2] == 0


@pytest.mark.parametrize(
    ("options", "alternative"),
    [
        ({"reg": None}, "reg > 0"),
        ({"reg": 0}, "reg > 0"),
        ({"method": "proximal"}, "reg > 0"),
        ({"inner_iter": 2}, "leave it out"),
        ({"inner_reg": 1e-2}, "leave it out"),
    ],
)
def test_refusals_name_the_alternative(options, alternative):
    cost, a, b = problem()
    for call in (pot.solve_batch, pot.solve_sample_batch):
        first = (cost,) if call is pot.solve_batch else (cost, cost)
        with pytest.raises(NotImplementedError, match=alternative):
            call(*first, **{"reg": 0.1, **options})
    with pytest.raises(NotImplementedError, match="NumPy's or torch's"):
        pot.dist_batch(cost, nx=ot.backend.NumpyBackend())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"reg": -1.0}, ValueError, "reg"),
        ({"method": "sinkhron"}, ValueError, "did you mean 'sinkhorn'"),
        ({"reg_type": "KL"}, ValueError, "reg_type"),
        ({"grad": "implicit"}, ValueError, "grad"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"max_iter": 0}, ValueError, "max_iter"),
        ({"M": np.ones((3, 4))}, ValueError, r"M must have shape \(B, N, M\), got \(3, 4\)"),
        ({"M": np.ones((2, 0, 4))}, ValueError, "M must have problems"),
        ({"M": np.full((4, 16, 11), np.nan)}, ValueError, "NaN"),
        ({"M": torch.ones(4, 16, 11)}, TypeError, "all of one kind"),
        ({"a": np.ones((4, 7))}, ValueError, "a must have shape"),
        ({"a": np.ones((4, 16))}, ValueError, "equal sums"),
        ({"b": -np.ones((4, 11))}, ValueError, "b"),
    ],
)
def test_bad_input(change, error, words):
    cost, a, b = problem()
    with pytest.raises(error, match=words):
        pot.solve_batch(**{"M": cost, "a": a, "b": b, "reg": 0.1, **change})


def test_points_that_do_not_fit():
    x = np.ones((2, 3, 4))
    for y, words in ((x[:1], "as many problems"), (x[..., :2], "one width"), (x[0], r"X2 must have shape")):
        with pytest.raises(ValueError, match=words):
            pot.dist_batch(x, y)
    with pytest.raises(ValueError, match="metric"):
        pot.dist_batch(x, metric="chebyshev")
    with pytest.raises(ValueError, match="p must be"):
        pot.dist_batch(x, metric="minkowski", p=-1)


@pytest.mark.parametrize("log", [False, True])
def test_refusals_name_what_was_given(log):
    """Rows and a, though the op gets the problem transposed."""
    for change, words in (
        ("a[0, 3] = INF", "a"), ("a[0] = 0", "all-zero a"), ("cost[0, 1, 2] = NAN", "1, 2"),
        ("cost[0, 3] = INF", "row 3"),
    ):  # fmt: skip
        cost, a, b = problem()
        exec(change, {"a": a, "cost": cost, "INF": np.inf, "NAN": np.nan})
        with pytest.raises(ValueError, match=words):
            pot.solve_batch(cost, 0.1, a, b, grad="envelope" if log else "autodiff")


def test_signatures_are_pots():
    for name in ("solve_batch", "solve_sample_batch", "dist_batch"):
        assert getattr(pot, name) is getattr(pot.batch, name)
    for name in ("solve_batch", "solve_sample_batch", "dist_batch", "loss_linear_batch", "entropy_batch",
                 "loss_linear_samples_batch", "bregman_projection_batch", "bregman_log_projection_batch"):  # fmt: skip
        got, want = (inspect.signature(getattr(module, name)).parameters for module in (pot.batch, theirs))
        assert [(k, v.default) for k, v in got.items()] == [(k, v.default) for k, v in want.items()]
