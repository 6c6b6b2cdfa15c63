"""`sinkhorn_loss`: metrics, objectives, half precision, bad input."""

from __future__ import annotations

import math

import pytest
import torch

import ucmkd_fast as uk
from tests.cuda_harness import build, model
from ucmkd_fast.ops import _cpu, _registered
from ucmkd_fast.ops._cpu import losses
from ucmkd_fast.reference import sinkhorn as reference

METRICS = ["cosine", "chordal", "l2", "l1", "sqeuclidean"]


def features(metric: str, n=23, m=17, d=11, dtype=torch.float64):
    """Two sets with a duplicate pair, a near-duplicate pair and, for normalised metrics, a zero row."""
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    y[0], y[1] = x[0], x[1] + 1e-3
    if metric in ("cosine", "chordal"):
        x[2] = 0
    return [z.to(dtype).requires_grad_() for z in (x, y)]


def reg_of(metric: str) -> float:
    return {"cosine": 0.1, "chordal": 0.1}.get(metric, 2.0)


def relative(got, want) -> float:
    error = (got.double() - want).abs().max().item()
    return math.inf if math.isnan(error) else error / want.abs().max().item()


@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("metric", METRICS)
def test_agrees_with_the_reference(metric, objective):
    options = {"metric": metric, "objective": objective, "reg": reg_of(metric), "max_iter": 30}
    pairs = [features(metric), features(metric)]
    want = reference.sinkhorn_loss(*pairs[0], **options)
    got = uk.sinkhorn_loss(*pairs[1], **options)
    assert torch.allclose(got, want, rtol=1e-11)
    wants, gots = (torch.autograd.grad(v, p) for v, p in ((want, pairs[0]), (got, pairs[1])))
    for g, w in zip(gots, wants, strict=True):
        assert relative(g, w) < 1e-8
    single = [z.detach().float().requires_grad_() for z in pairs[0]]
    low = uk.sinkhorn_loss(*single, **options)
    assert low.dtype == torch.float32 and relative(low, want) < 1e-5
    for g, w in zip(torch.autograd.grad(low, single), wants, strict=True):
        assert relative(g, w) < (1e-3 if metric in ("l2", "chordal") else 1e-4)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 3, 16, 33])
def test_cost_matrix(metric, d):
    x, y = features(metric, d=d)
    want = reference.cost(x, y, metric)
    got = uk.sinkhorn_loss(x, y, metric=metric, return_result=True)._cost
    assert torch.allclose(got, want, atol=1e-12)
    low = uk.sinkhorn_loss(x.float(), y.float(), metric=metric, return_result=True)._cost
    assert torch.allclose(low.double(), want, atol=2e-6 * want.max().item())
    if metric in ("l1", "l2", "sqeuclidean"):
        assert got[0, 0] == 0 and low[0, 0] == 0


def test_near_duplicates_keep_their_digits():
    """|x|^2 + |y|^2 - 2 <x, y> would give 0 or noise here."""
    x = torch.randn(8, 256) * 10
    y = x + 1e-3 * torch.randn(8, 256)
    got = uk.sinkhorn_loss(x, y, metric="l2", return_result=True)._cost.diagonal()
    assert torch.allclose(got.double(), (x.double() - y.double()).norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_gradient_is_zero_not_nan_where_all_coincide(metric):
    x = torch.ones(4, 3, requires_grad=True)
    loss = uk.sinkhorn_loss(x, torch.ones(5, 3), metric=metric)
    loss.backward()
    assert loss.abs() < 1e-6 and torch.isfinite(x.grad).all() and x.grad.abs().max() < 1e-6


def as_a_batch(x, y, **options):
    return uk.sinkhorn_loss(x[None], y[None], **options)[0]


def in_panels(x, y, **options):
    return uk.sinkhorn_loss(x, y, memory_budget=32 * len(x) * x.element_size(), **options)


@pytest.mark.parametrize("route", [uk.sinkhorn_loss, as_a_batch, in_panels, reference.sinkhorn_loss])
@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("metric", ["cosine", "chordal"])
def test_rows_too_small_to_normalise_count_as_zero(metric, objective, route):
    """1 / |x| of two such rows multiplies to inf, and the gradient of all rows would be NaN."""
    for dtype, tiny in ((torch.float32, 1e-20), (torch.float64, 1e-160)):
        x, y = (z.detach() for z in features(metric, dtype=dtype))
        found = []
        for size in (tiny, 0.0):
            x[3:6], y[4:6] = size * x[6:9].sign(), size * y[6:8].sign()
            leaves = [z.clone().requires_grad_() for z in (x, y)]
            loss = route(*leaves, metric=metric, objective=objective, max_iter=15)
            found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
        for got, want in zip(*found, strict=True):
            assert torch.isfinite(got).all() and torch.equal(got, want)


@pytest.mark.parametrize("metric", ["cosine", "chordal"])
def test_rows_too_small_to_normalise_on_other_routes(metric):
    x, y = (z.detach() for z in features(metric, dtype=torch.float32))
    x[3:6], y[4:6] = 1e-20 * x[6:9], 1e-20 * y[6:8]

    def f(x, y):
        return uk.sinkhorn_loss(x, y, metric=metric, max_iter=15)

    leaves = [z.clone().requires_grad_() for z in (x, y)]
    want = torch.autograd.grad(f(*leaves), leaves)
    (once,) = torch.autograd.grad(f(*leaves), leaves[0], create_graph=True)
    assert torch.isfinite(torch.autograd.grad(once.square().sum(), leaves[0])[0]).all()
    for got in (
        torch.func.grad(f, (0, 1))(x, y),
        torch.func.vmap(torch.func.grad(f, (0, 1)))(x[None], y[None]),
    ):
        for g, w in zip(got, want, strict=True):
            assert torch.allclose(g.reshape(w.shape), w, atol=1e-7) and (w[4] == 0).all()
    if build.compiler() is not None:
        with model():
            for g, w in zip(torch.autograd.grad(f(*leaves), leaves), want, strict=True):
                assert torch.allclose(g, w, atol=1e-6)


def test_reg_is_a_number_of_the_costs_dtype():
    """Outside it 1 / reg or reg itself is inf or 0."""
    x, y = (z.detach().float() for z in features("l2"))
    for reg in (1e-39, 1e-50, 1e39):
        for call in (
            lambda: uk.sinkhorn_loss(x, y, reg=reg),  # noqa: B023
            lambda: uk.sinkhorn_loss(x.half(), y.half(), reg=reg),  # noqa: B023
            lambda: uk.sinkhorn(x @ x.T, reg=reg),  # noqa: B023
        ):
            with pytest.raises(ValueError, match="reg must be a normal number of torch.float32.*float64"):
                call()
    assert torch.isfinite(uk.sinkhorn_loss(x.double(), y.double(), reg=1e39))
    wide = uk.sinkhorn_loss(x * 1e18, y * 1e18, metric="l2", reg=1e-39, reg_scale="mean", max_iter=2)
    assert torch.isfinite(wide)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features(dtype):
    x = torch.randn(20, 32).to(dtype).requires_grad_()
    y = torch.randn(15, 32, requires_grad=True)
    loss = uk.sinkhorn_loss(x, y)
    gx, gy = torch.autograd.grad(loss, (x, y))
    full = x.detach().float().requires_grad_()
    want = uk.sinkhorn_loss(full, y)
    wx, wy = torch.autograd.grad(want, (full, y))
    assert loss.dtype == torch.float32 and loss == want
    assert gx.dtype == dtype and torch.equal(gx, wx.to(dtype)) and torch.equal(gy, wy)


def test_autocast_leaves_the_kernels_types_alone():
    """Matrix products under autocast would come back in bfloat16, which the kernels do not read."""
    x, y = (z.detach().float().requires_grad_() for z in features("l2"))
    for metric in METRICS:
        want = uk.sinkhorn_loss(x, y, metric=metric)
        wants = torch.autograd.grad(want, (x, y))
        with torch.autocast("cpu", torch.bfloat16):
            got = uk.sinkhorn_loss(x, y, metric=metric)
            gots = torch.autograd.grad(got, (x, y))
        assert got == want and all(torch.equal(g, w) for g, w in zip(gots, wants, strict=True))


@pytest.mark.parametrize("m", [1, 3, 16, 19])
def test_a_distance_that_overflows_is_refused_in_every_column(m):
    """Norms in range, one distance beyond it: not to be taken for a forbidden pair."""
    x = torch.full((2, 1), 1.2e19)
    for column in range(m):
        y = torch.zeros(m, 1)
        y[column] = -1.2e19
        with pytest.raises(ValueError, match="distances between x and y must stay in range"):
            uk.sinkhorn_loss(x, y, metric="sqeuclidean", reg=1e37)


def test_masses_and_their_gradients():
    x, y = features("l2")
    a = torch.rand(23).double().softmax(0).requires_grad_()
    b = torch.rand(17).double().softmax(0).requires_grad_()
    for objective in ("transport", "regularized", "divergence"):
        options = {"metric": "l2", "reg": 2.0, "max_iter": 20, "objective": objective}
        want = reference.sinkhorn_loss(x, y, a, b, **options)
        got = uk.sinkhorn_loss(x, y, a, b, **options)
        for g, w in zip(
            torch.autograd.grad(got, (x, y, a, b)), torch.autograd.grad(want, (x, y, a, b)), strict=True
        ):
            assert relative(g, w) < 1e-9


def test_only_what_needs_a_gradient_gets_one():
    x, y = features("cosine")
    teacher = y.detach()
    uk.sinkhorn_loss(x, teacher).backward()
    assert x.grad is not None and teacher.grad is None
    with torch.no_grad():
        assert not uk.sinkhorn_loss(x, y).requires_grad
    x.grad = None
    uk.sinkhorn_loss(teacher, x).backward()
    assert x.grad is not None


def test_result_of_features():
    x, y = features("l2")
    s = uk.sinkhorn_loss(x, y, metric="l2", reg=1.0, return_result=True)
    torch.testing.assert_close(s.value, uk.sinkhorn_loss(x, y, metric="l2", reg=1.0), rtol=1e-14, atol=0)
    (gx,) = torch.autograd.grad(s.plan()[0, 0], x)
    assert torch.isfinite(gx).all() and gx.abs().sum() > 0
    assert s.plan().shape == (23, 17)


def test_modules():
    x, y = features("l2")
    module = uk.FeatureAlignmentLoss(metric="l2", reg=1.0, max_iter=7)
    assert torch.equal(module(x, y), uk.sinkhorn_loss(x, y, metric="l2", reg=1.0, max_iter=7))
    assert "metric='l2'" in repr(module) and not list(module.parameters())


def test_compiled_equals_eager():
    x, y = (z.detach().float() for z in features("cosine"))
    layer = torch.nn.Linear(11, 11)

    def f(x):
        return uk.sinkhorn_loss(layer(x), y, max_iter=10, objective="regularized")

    want = f(x)
    wants = torch.autograd.grad(want, layer.parameters())
    got = torch.compile(f, backend="aot_eager", fullgraph=True)(x)
    assert torch.allclose(got, want, rtol=1e-5)
    for g, w in zip(torch.autograd.grad(got, layer.parameters()), wants, strict=True):
        assert torch.allclose(g, w, rtol=1e-4, atol=1e-7)


def test_registered_cost_is_sound():
    x, y = (z[:, :16].detach() for z in features("l2", 16, 16, 16))
    for metric in ("cosine", "l2", "l1"):
        torch.library.opcheck(_registered.cost_forward, (x.clone().requires_grad_(), y, metric))


def test_functorch_transforms():
    x, y = features("cosine")
    want = torch.autograd.grad(uk.sinkhorn_loss(x, y), x)[0]
    assert torch.allclose(torch.func.grad(lambda z: uk.sinkhorn_loss(z, y.detach()))(x.detach()), want)


ones = torch.ones
BAD = {
    "list": (lambda: uk.sinkhorn_loss([[1.0]], ones(2, 2)), TypeError, "x must be a torch.Tensor"),
    "integers": (lambda: uk.sinkhorn_loss(ones(2, 2).long(), ones(2, 2)), TypeError, "int64"),
    "one dimension": (lambda: uk.sinkhorn_loss(ones(3), ones(3, 2)), ValueError, "shape"),
    "empty": (lambda: uk.sinkhorn_loss(ones(0, 2), ones(3, 2)), ValueError, "at least one row"),
    "widths": (lambda: uk.sinkhorn_loss(ones(3, 2), ones(3, 4)), ValueError, "same width"),
    "doubles": (lambda: uk.sinkhorn_loss(ones(3, 2), ones(3, 2).double()), TypeError, "float64 and float32"),
    "devices": (lambda: uk.sinkhorn_loss(ones(3, 2), ones(3, 2, device="meta")), ValueError, "one device"),
    "NaN": (lambda: uk.sinkhorn_loss(ones(3, 2) * math.nan, ones(3, 2)), ValueError, "x must be finite"),
    "inf": (lambda: uk.sinkhorn_loss(ones(3, 2), ones(3, 2) / 0), ValueError, "y must be finite"),
    "overflow": (lambda: uk.sinkhorn_loss(ones(3, 2) * 1e30, ones(3, 2), metric="l2"), ValueError, "overflow"),
    "metric": (lambda: uk.sinkhorn_loss(ones(3, 2), ones(3, 2), metric="cosin"), ValueError, "'cosine'"),
    "objective": (lambda: uk.sinkhorn_loss(ones(3, 2), ones(3, 2), objective="ot"), ValueError, "objective"),
    "envelope mass": (
        lambda: uk.sinkhorn_loss(ones(2, 2), ones(2, 2), (ones(2) / 2).requires_grad_(), grad="envelope"),
        ValueError, "plan constant"),
    "divergence result": (
        lambda: uk.sinkhorn_loss(ones(2, 2), ones(2, 2), objective="divergence", return_result=True),
        ValueError, "return_result"),
    "group": (lambda: uk.sinkhorn_loss(ones(2, 2), ones(2, 2), group=1), ValueError, "not initialised"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("grad", ["unrolled", "implicit", "envelope"])
def test_the_gradient_made_along_with_the_loss_is_that_of_two_calls(grad, objective, monkeypatch):
    options = {"grad": grad, "objective": objective, "max_iter": 300}
    found = {}
    for apart in (False, True):
        if apart:
            monkeypatch.setattr(losses, "_small", losses.make)
        x, y = features("cosine")
        loss = uk.sinkhorn_loss(x, y, **options)
        upstream = torch.tensor(-3.0).double()
        first = torch.autograd.grad(loss, (x, y), upstream, retain_graph=True)
        again = torch.autograd.grad(loss, (x, y), upstream)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        found[apart] = (loss.detach(), *first)
    for got, want in zip(found[False], found[True], strict=True):
        assert relative(got, want) < 1e-12


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_where_autograd_records_nothing(context, monkeypatch):
    keeps = []
    loss = _cpu.loss

    def watched(*args):
        value, kept = loss(*args)
        keeps.append([z for z in kept if z is not None])
        return value, kept

    monkeypatch.setattr(_cpu, "loss", watched)
    x, y = features("cosine")
    want = uk.sinkhorn_loss(x, y)
    with context():
        got = uk.sinkhorn_loss(x, y)
    assert [bool(kept) for kept in keeps] == [True, False]
    assert not got.requires_grad and torch.equal(got, want)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_in_the_dtype_that_it_is_computed_in(dtype, metric):
    x, y = (torch.randn(6, 4) * 500).to(dtype).requires_grad_(), torch.randn(7, 4).to(dtype)
    y[3, 0] = float("inf")
    for leaf in (x, x.detach()):
        with pytest.raises(
            ValueError, match=r"y must be finite.*torch.float32's range, got \+inf at y\[3, 0\]"
        ):
            uk.sinkhorn_loss(leaf, y, metric=metric)


def test_a_tensor_that_outlived_its_transform_is_a_plain_one():
    kept, (x, y) = [], (z.detach() for z in features("cosine"))
    torch.func.grad(lambda z: (kept.append(z * 1), z.sum())[1])(x)
    starts = torch.tensor([0, 3, len(x)]), torch.tensor([0, 3, len(y)])
    for options in ({}, {"offsets": starts}, {"memory_budget": 5000}, {"return_result": True}):
        want, got = uk.sinkhorn_loss(x, y, **options), uk.sinkhorn_loss(kept[0], y, **options)
        if options.get("return_result"):
            want, got = want.value, got.value
        assert torch.allclose(got, want)


def test_a_history_that_no_memory_holds_is_refused():
    x, y = features("cosine")
    for count in (2**31, 2**60, 2**62, 2**63 - 1):
        with pytest.raises(ValueError, match="max_iter must be at most 2147483647"):
            uk.sinkhorn_loss(x, y, max_iter=count, tol=1e-3)


def test_forward_mode_is_refused_by_panels_and_lists():
    x, y = (z.detach() for z in features("cosine"))
    starts = torch.tensor([0, len(x)]), torch.tensor([0, len(y)])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        for options in ({"offsets": starts}, {"memory_budget": 5000}):
            with pytest.raises(NotImplementedError, match="forward mode"):
                uk.sinkhorn_loss(dual, y, **options)


@pytest.mark.parametrize("case", ["plain", "masses", "classes", "log domain"])
@pytest.mark.parametrize("grad", ["unrolled", "implicit", "envelope"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_large_problem_in_blocks_of_rows(metric, grad, case, monkeypatch):
    """Blocks of 16 and 7 rows and torch's products, against the reference."""
    monkeypatch.setattr(losses, "OWN_PRODUCTS", 0)
    monkeypatch.setattr(losses, "BLOCK", 1)
    at_once, real = [], losses.backward
    monkeypatch.setattr(losses, "backward", lambda *args: at_once.append(1) or real(*args))
    ours, truth = features(metric), features(metric)
    reg = reg_of(metric) * (1e-3 if case == "log domain" and grad == "unrolled" else 1)
    options = {"metric": metric, "objective": "regularized", "grad": grad, "reg": reg, "max_iter": 200}
    cost_options = {k: v for k, v in options.items() if k not in ("metric", "objective")}
    masses, names = [], {}
    if case == "masses":
        masses = [torch.rand(k, dtype=torch.float64).softmax(0) for k in (23, 17)]
    if case == "classes":
        names = {
            "class_cost": torch.rand(23, 3, dtype=torch.float64, requires_grad=True),
            "y_labels": torch.arange(17) % 3,
        }
    matrix = reference.cost(*truth, metric)
    if names:
        matrix = matrix + names["class_cost"][:, names["y_labels"]]
    wants = [*truth, *([names["class_cost"]] if names else [])]
    leaves = [*ours, *wants[2:]]
    given, known = ([m.clone().requires_grad_() for m in masses] for _ in range(2))
    want = reference.sinkhorn(matrix, *known, **cost_options).value_regularized
    got = uk.sinkhorn_loss(*ours, *given, **options, **names)
    wanted = torch.autograd.grad(want, [*wants, *known])
    found = torch.autograd.grad(got, [*leaves, *given])
    assert relative(got, want) < 1e-11
    assert bool(at_once) == (case == "log domain" and grad == "unrolled")
    for g, w in zip(found, wanted, strict=True):
        if w.dim() == 1:  # defined up to a constant
            g, w = g - g.mean(), w - w.mean()
        assert relative(g, w) < 1e-6


WAYS = {
    "small": {},
    "stopped": {"tol": 1e-3},
    "regularized": {"objective": "regularized"},
    "panels": {"memory_budget": 4_000},
    "by class": {"class_cost": torch.rand(20, 3), "y_labels": torch.arange(30) % 3},
    "ragged": {"offsets": (torch.tensor([0, 8, 20]), torch.tensor([0, 9, 30]))},
    "large": {"large": True},
}


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_convergence_is_that_of_the_result_on_every_way(way, gradient):
    options = {"reg": 0.05, "max_iter": 40, **WAYS[way]}
    width = 1200 if options.pop("large", False) else 8  # torch's matrix products from there on
    torch.manual_seed(0)
    scale = 40 if width > 8 else 1
    x = torch.randn(20 * scale, width, requires_grad=gradient)
    y = torch.randn(30 * scale, width)
    told = uk.Convergence()
    assert told.marginal_error.isnan() and told.n_iter == 0
    loss = uk.sinkhorn_loss(x, y, **options, convergence=told)
    wanted = uk.sinkhorn_loss(x, y, **options, return_result=True)
    torch.testing.assert_close(told.marginal_error, wanted.marginal_error, rtol=1e-3, atol=2e-6)
    assert torch.equal(told.n_iter, wanted.n_iter) and not told.marginal_error.requires_grad
    plain = uk.sinkhorn_loss(x, y, **options)
    assert torch.equal(loss, plain)
    if gradient:
        first, second = (torch.autograd.grad(value.sum(), x)[0] for value in (loss, plain))
        assert torch.equal(first, second)


def test_convergence_of_a_divergence_and_of_a_batch_is_that_between_x_and_y():
    x, y = torch.randn(3, 20, 8), torch.randn(3, 30, 8)
    told = uk.Convergence()
    uk.sinkhorn_loss(x, y, objective="divergence", tol=1e-4, convergence=told)
    wanted = uk.sinkhorn_loss(x, y, tol=1e-4, return_result=True)
    assert torch.equal(told.n_iter, wanted.n_iter) and told.marginal_error.shape == (3,)
    uk.sinkhorn_loss(x[0], y[0], objective="divergence", tol=1e-4, convergence=told)
    assert told.n_iter == wanted.n_iter[0]


def test_convergence_of_transport_class_by_class_is_that_of_the_whole_plan():
    torch.manual_seed(0)
    x, y, k = torch.randn(20, 8), torch.randn(30, 8), torch.arange(30) % 3
    options = {"classes": 3, "reg": 0.02, "max_iter": 5}
    told = uk.Convergence()
    uk.class_conditional_loss(x, y, k[:20], k, **options, convergence=told)
    whole = uk.class_conditional_loss(x, y, k[:20], k, **options, return_result=True)
    assert whole.marginal_error > 1e-3 and told.n_iter == 5
    torch.testing.assert_close(told.marginal_error, whole.marginal_error, rtol=1e-3, atol=1e-6)
