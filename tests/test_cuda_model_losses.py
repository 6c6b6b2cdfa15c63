"""The losses' CUDA kernels on the execution model: costs and their gradients, terms by class, label transport."""

from __future__ import annotations

import pytest
import torch
from cuda_harness import ORDERS, build, model
from test_sinkhorn import distance

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import costs, label
from ucmkd_fast.ops._label import LabelOptions, Logits, Losses
from ucmkd_fast.ops.cost import METRICS
from ucmkd_fast.reference import label_transport as label_reference
from ucmkd_fast.reference import sinkhorn as reference

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with"),
]

LIMIT = {torch.float64: 1e-9, torch.float32: 2e-4}
DTYPES = {"f64": torch.float64, "f32": torch.float32}


def features(n: int, m: int, d: int, dtype: torch.dtype):
    x, y = torch.randn(n, d, dtype=torch.float64), torch.randn(m, d, dtype=torch.float64) + 0.3
    if n > 2 and m > 2:
        x[1], y[2] = 0, x[0]  # a zero row, and a pair at distance 0
    x, y = (z.to(dtype).double() for z in (x, y))
    return [z.to(dtype).requires_grad_() for z in (x, y)], [z.clone().requires_grad_() for z in (x, y)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(1, 1, 4), (7, 5, 3), (9, 36, 5), (20, 33, 17), (33, 18, 40)], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_losses_of_features(metric, size, order, dtype):
    dtype = DTYPES[dtype]
    ours, truth = features(*size, dtype)
    for objective in ("transport", "regularized", "divergence"):
        options = {"metric": metric, "objective": objective, "reg": 0.5, "max_iter": 12}
        want = reference.sinkhorn_loss(*truth, **options)
        with model(order=order, seed=1):
            got = uk.sinkhorn_loss(*ours, **options)
            grads = torch.autograd.grad(got, ours)
        assert distance(got, want, 1.0) < LIMIT[dtype]
        for g, w in zip(grads, torch.autograd.grad(want, truth), strict=True):
            assert distance(g, w, 1e-2) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(5, 1030, 3), (6, 1028, 3), (70, 4, 3), (2100, 1, 2)], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_costs_of_many_pieces(metric, size, dtype):
    """Rows of several blocks and blocks of many rows, with and without vectors; near pairs among them."""
    dtype = DTYPES[dtype]
    ours, truth = features(*size, dtype)
    weight = torch.rand(size[:2], dtype=torch.float64)
    want = reference.cost(*truth, metric)
    grads = torch.autograd.grad((want * weight).sum(), truth)
    with model(order="random", seed=1), torch.no_grad():
        got, scale = costs.cost(*ours, metric)
        gots = costs.cost_backward(*ours, scale, got, weight.to(dtype), metric)
    assert distance(got, want, 1.0) < LIMIT[dtype]
    for g, w in zip(gots, grads, strict=True):
        assert distance(g, w, 1e-2) < LIMIT[dtype]


NEAR = {  # rows of x and of y at the same place, but for a little
    "one": [(133, 700)],
    "a few": [(0, 0), (3, 1025), (4, 1027), (257, 1024), (258, 40), (258, 41), (299, 1055)],
    "every third and seventh": [(7, j) for j in range(0, 1056, 3)] + [(i, 7) for i in range(0, 300, 7)],
    "all": [(i, j) for i in range(300) for j in range(i % 2, 1056, 2)],
}


def near_problem(where: str, dtype: torch.dtype, columns: int):
    """Features (300, 3), (M, 3) of which only the pairs of NEAR are near; their truth in float64."""
    x, y = torch.randn(300, 3, dtype=torch.float64) + 20, torch.randn(columns, 3, dtype=torch.float64) - 20
    y[:, 0] += 30
    if where == "all":
        x, y = torch.ones_like(x), torch.ones_like(y)
        y[1::2] *= -1
        x[1::2] *= -1
    else:
        for i, j in NEAR[where]:
            y[j] = x[i] if len(NEAR[where]) < 20 else x[7]
            x[i] = y[j]
    x, y = x + 1e-3 * torch.rand_like(x), y + 1e-3 * torch.rand_like(y)
    ours = [z.to(dtype) for z in (x, y)]
    return ours, [z.double().clone().requires_grad_() for z in ours]


@pytest.mark.parametrize("dtype, columns", [("f32", 1056), ("f32", 1057), ("f64", 1056)])
@pytest.mark.parametrize("where", NEAR)
@pytest.mark.parametrize("metric", ["l2", "sqeuclidean", "chordal"])
def test_near_pairs_in_a_matrix_of_several_pieces(metric, where, columns, dtype):
    """Few and many, in some pieces and in all, with and without vectors; of few, each gradient alone as well."""
    if columns == 1057 and len(NEAR[where]) > 20:
        pytest.skip("the kernels of near pairs are those of 1056 columns")
    dtype = DTYPES[dtype]
    ours, truth = near_problem(where, dtype, columns)
    weight = torch.rand(300, columns, dtype=torch.float64)
    want = torch.autograd.grad((reference.cost(*truth, metric) * weight).sum(), truth)
    with model(order="random", seed=1):
        sets = costs.features(*ours, metric, dtype)
        matrix, scale = costs.cost(*ours, metric)
        for need in ((True, True), (True, False), (False, True))[: 3 if len(NEAR[where]) < 20 else 1]:
            c = costs.call(sets, costs.scales_in(scale, 300), matrix)
            got = costs.gradients(c, sets, weight.to(dtype, copy=True), need)
            for g, w, wanted in zip(got, want, need, strict=True):
                assert (g is not None) == wanted
                assert g is None or distance(g, w, 1e-2) < LIMIT[dtype]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("forbids", [False, True])
def test_terms_by_class(metric, forbids):
    ours, truth = features(13, 21, 6, torch.float64)
    labels = torch.arange(21) % 4
    W = torch.rand(13, 5).double()  # the last class has no column
    if forbids:
        W[torch.arange(13), torch.arange(13) % 4] = torch.inf
    ours.append(W.clone().requires_grad_()), truth.append(W.clone().requires_grad_())
    weights = torch.rand(13).double().softmax(0)
    options = {"reg": 0.3, "max_iter": 15}
    cost = reference.cost(truth[0], truth[1], metric) + truth[2][:, labels]
    want = reference.sinkhorn(cost, weights, **options).value
    with model("block", "random"):
        got = uk.sinkhorn_loss(
            *ours[:2], weights, class_cost=ours[2], y_labels=labels, metric=metric, **options
        )
        grads = torch.autograd.grad(got, ours)
    assert distance(got, want) < 1e-10
    for g, w in zip(grads, torch.autograd.grad(want, truth), strict=True):
        keep = w.isfinite()
        assert distance(g[keep], w[keep]) < 1e-8 and not g[~keep].any()


def test_masses_init_and_fixed_point_of_features():
    ours, truth = features(12, 17, 6, torch.float64)
    a, b = torch.rand(12).double().softmax(0), torch.rand(17).double().softmax(0)
    masses = [z.clone().requires_grad_() for z in (a, b)]
    true_masses = [z.clone().requires_grad_() for z in (a, b)]
    for grad in ("unrolled", "implicit", "envelope"):
        options = {"metric": "l2", "objective": "regularized", "reg": 1.0, "max_iter": 300, "grad": grad}
        want = reference.sinkhorn_loss(*truth, *true_masses, **options)
        with model("resident"):
            got = uk.sinkhorn_loss(*ours, *masses, **options)
            grads = torch.autograd.grad(got, [*ours, *masses])
        for g, w in zip(grads, torch.autograd.grad(want, [*truth, *true_masses]), strict=True):
            if w.dim() == 1:  # defined up to a constant
                g, w = g - g.mean(), w - w.mean()
            assert distance(g, w) < 1e-7, grad


@pytest.mark.parametrize("budget", [None, 8000], ids=["one matrix", "panels"])
def test_an_implicit_gradient_that_does_not_converge_warns(budget):
    x, y = torch.randn(33, 4).requires_grad_(), torch.randn(22, 4)
    with model(), pytest.warns(UserWarning, match="did not reach its tolerance"):
        loss = uk.sinkhorn_loss(
            x, y, grad="implicit", reg=1e-3, max_iter=2, metric="sqeuclidean", memory_budget=budget
        )
        torch.autograd.grad(loss, x)


def no_composite_cost(*_):
    raise AssertionError("the cost was made of differences (N, M, D)")


@pytest.mark.parametrize("metric", METRICS)
def test_batches_of_features_and_results_form_no_differences(metric, monkeypatch):
    x, y = torch.randn(3, 9, 5).double().requires_grad_(), torch.randn(3, 7, 5).double().requires_grad_()
    options = {"metric": metric, "objective": "divergence", "reg": 0.5, "max_iter": 8}
    want = torch.stack([reference.sinkhorn_loss(*pair, **options) for pair in zip(x, y, strict=True)])
    wants = torch.autograd.grad(want.sum(), (x, y))
    monkeypatch.setattr(reference, "cost", no_composite_cost)
    with model():
        got = uk.sinkhorn_loss(x, y, **options)
        grads = torch.autograd.grad(got.sum(), (x, y))
        options["objective"] = "transport"
        one = uk.sinkhorn_loss(x[1], y[1], return_result=True, **options)
        # torch sums the centre of a batch in another order than that of one problem
        assert distance(one.value, uk.sinkhorn_loss(x, y, **options)[1]) < 1e-14 and one.plan().shape == (
            9,
            7,
        )
    assert distance(got, want) < 1e-10
    for g, w in zip(grads, wants, strict=True):
        assert distance(g, w) < 1e-8


@pytest.mark.long
def test_compiled_costs_form_no_differences(monkeypatch):
    x, y = torch.randn(9, 5).double().requires_grad_(), torch.randn(7, 5).double()
    monkeypatch.setattr(reference, "cost", no_composite_cost)

    def loss(x, y):
        return uk.sinkhorn_loss(x, y, metric="l2", max_iter=6)

    with model():
        want = loss(x, y)
        got = torch.compile(loss, backend="aot_eager", fullgraph=True)(x, y)
        (grad,), (wanted,) = (torch.autograd.grad(z, x) for z in (got, want))
    assert distance(got, want) < 1e-12 and distance(grad, wanted) < 1e-10


RAGGED = {
    "one launch": ((0, 5, 5, 12, 12, 20), (0, 6, 8, 15, 15, 22), 48 * 1024),
    "too unlike": ((0, 1, 2, 3, 4, 20), (0, 1, 2, 3, 4, 22), 48 * 1024),
    "too large for a block": ((0, 45, 56), (0, 50, 61), 18 * 1024),
}


@pytest.mark.parametrize("grad", ["unrolled", "implicit", "envelope"])
@pytest.mark.parametrize("masses", [False, True])
@pytest.mark.parametrize("name", RAGGED)
def test_ragged_lists(name, masses, grad):
    """Against the CPU's kernels; empty problems among them."""
    *starts, shared = RAGGED[name]
    tensors = [torch.randn(start[-1], 4).double() for start in starts]
    if masses:
        for start in starts:
            parts = [(torch.rand(n).double() + 0.1).softmax(0) for n in torch.tensor(start).diff().tolist()]
            tensors.append(torch.cat(parts))
    for t in tensors:
        t.requires_grad_()
    options = {
        "reg": 0.3,
        "max_iter": 150 if grad == "implicit" else 9,
        "grad": grad,
        "objective": "regularized",
    }
    options["offsets"] = tuple(torch.tensor(start) for start in starts)
    want = uk.sinkhorn_loss(*tensors, return_result=True, **options)
    wants = torch.autograd.grad(want.value_regularized.sum(), tensors)
    with model(shared=shared) as module:
        before = module.launches()
        got = uk.sinkhorn_loss(*tensors, return_result=True, **options)
        launches = module.launches() - before
        grads = torch.autograd.grad(got.value_regularized.sum(), tensors)
    assert (
        launches
        == 3
        * {  # scales, costs, iterations
            "one launch": 1,
            "too unlike": 5,
            "too large for a block": 2,
        }[name]
    )
    for g, w in ((got.value, want.value), (got.value_regularized, want.value_regularized)):
        assert distance(g, w) < 1e-12
    for g, w in zip((*got.potentials, *got.plans()), (*want.potentials, *want.plans()), strict=True):
        assert torch.allclose(g, w, rtol=1e-10, atol=1e-12)
    for g, w in zip(grads, wants, strict=True):
        assert distance(g, w) < 1e-8


def test_terms_by_class_in_lists_and_batches():
    x, y = torch.randn(20, 4).double().requires_grad_(), torch.randn(20, 4).double()
    W, labels = torch.rand(20, 3).double().requires_grad_(), torch.arange(20) % 3
    offsets = torch.tensor([0, 8, 20]), torch.tensor([0, 9, 20])

    def both():
        ragged = uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, offsets=offsets, reg=0.3, max_iter=8)
        halves = (z.unflatten(0, (2, 10)) for z in (x, y, W, labels))
        one, other, classes, which = halves
        batch = uk.sinkhorn_loss(one, other, class_cost=classes, y_labels=which, reg=0.3, max_iter=8)
        return torch.cat([ragged, batch])

    want = both()
    wants = torch.autograd.grad(want.sum(), (x, W))
    with model():
        got = both()
        grads = torch.autograd.grad(got.sum(), (x, W))
    for g, w in zip((got, *grads), (want, *wants), strict=True):
        assert distance(g, w) < 1e-9


def test_a_refused_problem_of_a_list_leaves_the_others_alone():
    x, y = torch.randn(12, 4).double().requires_grad_(), torch.randn(12, 4).double()
    offsets = torch.tensor([0, 4, 12]), torch.tensor([0, 5, 12])
    bad = x.detach().clone()
    bad[7] = torch.nan
    bad.requires_grad_()
    with model():
        want = torch.autograd.grad(uk.sinkhorn_loss(x, y, offsets=offsets).sum(), x)[0]
        loss = uk.sinkhorn_loss(bad, y, offsets=offsets)
        (grad,) = torch.autograd.grad(loss.sum(), bad)
    assert loss.isnan().tolist() == [False, True]
    assert torch.equal(grad[:4], want[:4]) and grad[4:].isnan().any()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_is_read_as_it_is(metric, half, monkeypatch):
    """As exact as the same features in float32: nothing is rounded but the gradients handed back."""
    x, y = torch.randn(20, 33).to(half), torch.randn(17, 33).to(half)
    x[1], y[2], x[3, 4] = 0, x[0], 3e-5  # a zero row, a pair at distance 0, a number below half's normal ones
    ours, truth = [z.requires_grad_() for z in (x, y)], [z.detach().double().requires_grad_() for z in (x, y)]
    seen = []
    call = costs.call
    monkeypatch.setattr(costs, "call", lambda f, *more: seen.append(f.x.dtype) or call(f, *more))
    for objective in ("transport", "regularized"):
        options = {"metric": metric, "objective": objective, "reg": 0.5, "max_iter": 12}
        want = reference.sinkhorn_loss(*truth, **options)
        with model(order="random"):
            got = uk.sinkhorn_loss(*ours, **options)
            grads = torch.autograd.grad(got, ours)
        assert got.dtype == torch.float32 and distance(got, want) < 2e-6
        for g, w in zip(grads, torch.autograd.grad(want, truth), strict=True):
            assert g.dtype == half and distance(g, w) < 5e-3
    assert set(seen) == {half}


def test_half_precision_beside_float32_and_overflow():
    x = torch.randn(9, 5).bfloat16().requires_grad_()
    y = torch.randn(8, 5)
    with model():
        loss = uk.sinkhorn_loss(x, y)
        loss.backward()
        assert loss.dtype == torch.float32 and x.grad.dtype == torch.bfloat16
        assert uk.sinkhorn_loss(x.detach().float() * 1e30, y, metric="sqeuclidean").isnan()
    assert distance(loss, reference.sinkhorn_loss(x.double(), y.double()), 1.0) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kappa", ["detached", "live"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (9, 70), (3, 1000)], ids=str)
def test_label_transport(size, smoothing, kappa, order, dtype):
    dtype = DTYPES[dtype]
    n, k = size
    logits = [(3 * torch.randn(n, k)).to(dtype) for _ in range(2)]
    target = torch.randint(k, (n,))
    if n > 2:
        target[1] = -100
    for reduction in ("mean", "sum", "none"):
        options = {"kappa": kappa, "label_smoothing": smoothing, "reduction": reduction}
        ours = [z.clone().requires_grad_() for z in logits]
        truth = [z.double().requires_grad_() for z in logits]
        want = label_reference.label_transport_loss(*truth, target, **options)
        with model(order=order, seed=2):
            got = uk.label_transport_loss(*ours, target, **options)
            weight = torch.rand_like(got)
            grads = torch.autograd.grad((got * weight).sum(), ours)
        assert got.dtype == dtype and distance(got, want, 1.0) < LIMIT[dtype]
        for g, w in zip(grads, torch.autograd.grad((want * weight.double()).sum(), truth), strict=True):
            assert distance(g, w, 1e-2) < LIMIT[dtype]


# A warp, a block and a row read twice; whole packs of logits, parts of one, and rows that start on no alignment.
WIDTHS = (1, 2, 3, 31, 33, 64, 127, 128, 129, 256, 257, 512, 1000, 1023, 1024, 1025, 2052, 5000, 17000, 17001)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [0, 1, 4], ids=lambda gap: f"rows {gap} apart")
@pytest.mark.parametrize("k", WIDTHS)
def test_label_transport_of_every_width(k, gap, dtype):
    """Logits that lie in wider rows, masked classes among them; an ignored row and one with no such class."""
    dtype, n = DTYPES[dtype], 5
    logits = [(3 * torch.randn(n, k + gap)).to(dtype) for _ in range(2)]
    target = torch.randint(k, (n,))
    target[1] = -100
    if k > 2:
        for z in logits:
            z[3, : k // 2] = -torch.inf
        target[3] = k - 1
    options = {"kappa": "live", "label_smoothing": 0.0, "reduction": "none"}
    for smoothing in (0.0, 0.2):
        rows = slice(0, 3) if smoothing else slice(0, n)  # smoothing spreads over masked classes
        options["label_smoothing"] = smoothing
        ours = [z.clone().requires_grad_() for z in logits]
        truth = [z.double().requires_grad_() for z in logits]
        want = label_reference.label_transport_loss(*(z[rows, :k] for z in truth), target[rows], **options)
        weight = torch.rand(n).to(dtype)[rows]
        with model(order="random", seed=k):
            got = uk.label_transport_loss(*(z[rows, :k] for z in ours), target[rows], **options)
            grads = torch.autograd.grad((got * weight).sum(), ours)
        assert distance(got, want, 1.0) < LIMIT[dtype]
        for g, w in zip(grads, torch.autograd.grad((want * weight.double()).sum(), truth), strict=True):
            assert distance(g, w, 1e-2) < LIMIT[dtype]


@pytest.mark.parametrize("k", [3, 1000, 2000, 17000])
def test_gradients_over_the_logits(k):
    """As the linear form has them; a missing gradient, a missing label, and a NaN that reaches all of its row."""
    logits = 3 * torch.randn(6, 2 * k)
    logits[4, 0], logits[5, 2 * k - 1] = torch.inf, torch.nan
    target = torch.tensor([0, k - 1, -100, k, 0, 0])
    options = LabelOptions("live", 0.1, -100, "sum")

    def losses(z, *grads):
        return label.rows(Logits(*z.split(k, 1), target), options, grads).rows

    with model():
        z = logits.clone()
        s, t = z.split(k, 1)
        ds, dt = torch.empty(6, k), torch.empty(6, k)
        loss = losses(z, ds, dt)
        for only in ((s, t), (s.clone(), None), (None, t.clone())):
            assert torch.equal(losses(logits, None, None).nan_to_num(), loss.nan_to_num())
            z = logits.clone()
            over = [
                part if want is not None else None for part, want in zip(z.split(k, 1), only, strict=True)
            ]
            losses(z, *over)
            for got, want in zip(over, (ds, dt), strict=True):
                assert got is None or torch.equal(got.nan_to_num(7), want.nan_to_num(7))
    assert loss.isnan().tolist() == [0, 0, 0, 1, 1, 1] and loss[2] == 0
    for grad in (ds, dt):
        assert grad[3:].isnan().all() and not grad[2].any() and grad[:2].isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_second_backward_and_a_scaled_loss_read_the_logits_again(reduction):
    s, t, target = torch.randn(4, 9).requires_grad_(), torch.randn(4, 9).requires_grad_(), torch.arange(4)
    target[2] = -100
    want = 3 * label_reference.label_transport_loss(s.double(), t.double(), target, reduction=reduction)
    wants = torch.autograd.grad(want, (s, t))
    with model():
        loss = 3 * uk.label_transport_loss(s, t, target, reduction=reduction)
        for keep in (True, False):
            for g, w in zip(torch.autograd.grad(loss, (s, t), retain_graph=keep), wants, strict=True):
                assert distance(g, w, 1e-2) < 1e-6


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("k", [1, 33, 132, 1000, 1025, 17000, 17001])
def test_half_precision_logits_are_read_as_they_are(k, half, monkeypatch):
    """Nothing is rounded but the gradients, once."""
    logits = [(3 * torch.randn(4, k)).to(half).requires_grad_() for _ in range(2)]
    truth = [z.detach().double().requires_grad_() for z in logits]
    target = torch.randint(k, (4,))
    options = {"label_smoothing": 0.1, "kappa": "live", "reduction": "sum"}
    want = label_reference.label_transport_loss(*truth, target, **options)
    seen = []
    rows = label.rows
    monkeypatch.setattr(label, "rows", lambda z, *more: seen.append(z.student.dtype) or rows(z, *more))
    with model(order="random"):
        loss = uk.label_transport_loss(*logits, target, **options)
        grads = torch.autograd.grad(3 * loss, logits)
    assert loss.dtype == torch.float32 and distance(loss, want, 1.0) < 2e-6 and seen == [half]
    rounding = torch.finfo(half).eps / 2
    for g, w in zip(grads, torch.autograd.grad(3 * want, truth), strict=True):
        error = (g.double() - w).abs() - rounding * 1.01 * w.abs()
        assert g.dtype == half and error.max() < 1e-6


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 33, 1024, 2500])
def test_totals_of_many_rows(n, order):
    loss, target = torch.rand(n), torch.arange(n) % 7
    want = loss[target != 3].sum().item(), (target != 3).sum().item()
    loss[target == 3] = 0
    with model(order=order):
        total, mean = (
            label.total((Losses(loss),), target, LabelOptions("live", 0.0, 3, how)) for how in ("sum", "mean")
        )
    (total, _), (mean, kept) = total, mean
    assert kept.item() == want[1] and abs(total.item() - want[0]) <= 1e-6 * want[0]
    assert abs(mean.item() * want[1] - want[0]) <= 1e-6 * want[0]


def test_the_mean_of_no_rows_has_no_gradient():
    s, target = torch.randn(3, 5).requires_grad_(), torch.full((3,), -100)
    with model():
        loss = uk.label_transport_loss(s, torch.randn(3, 5), target)
        assert loss.isnan() and not torch.autograd.grad(loss, s)[0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [4, 11])
@pytest.mark.parametrize("kappa", ["detached", "live"])
def test_linear_label_transport(kappa, rows, dtype, monkeypatch):
    """Of half precision the gradients of the logits are rounded to it, and those of all inputs."""
    monkeypatch.setattr(label, "CHUNK_ROWS", rows)
    monkeypatch.setattr(label, "CHUNK_ELEMENTS", 0)
    feature, sw, tw = torch.randn(11, 6), torch.randn(7, 6), torch.randn(7, 6)
    sb, tb, target = torch.randn(7), torch.randn(7), torch.randint(7, (11,))
    ours = [z.to(dtype).requires_grad_() for z in (feature, sw, sb, tw, tb)]
    truth = [z.detach().double().requires_grad_() for z in ours]
    logits = truth[0] @ truth[1].T + truth[2], truth[0] @ truth[3].T + truth[4]
    want = label_reference.label_transport_loss(*logits, target, kappa=kappa)
    with model():
        got = uk.linear_label_transport_loss(*ours, target, kappa=kappa)
        grads = torch.autograd.grad(got, ours)
    exact = {torch.float64: (1e-12, 1e-10), torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-6, 2e-2)}[dtype]
    assert distance(got, want) < exact[0]
    for g, w in zip(grads, torch.autograd.grad(want, truth), strict=True):
        assert g.dtype == dtype
        assert (g.double() - w).norm() < exact[1] * w.norm()


def test_refused_labels_and_logits(monkeypatch):
    logits, target = torch.randn(3, 4), torch.tensor([0, 9, 1])
    bad = logits.clone()
    bad[0, 1] = torch.nan
    with model():
        assert uk.label_transport_loss(logits, logits, target, reduction="none").isnan().tolist() == [0, 1, 0]
        assert uk.label_transport_loss(bad, logits, target % 4).isnan()
        monkeypatch.setenv("UCMKD_CHECK", "1")
        with pytest.raises(ValueError, match="classes 0 to 3"):
            uk.label_transport_loss(logits, logits, target)
        with pytest.raises(ValueError, match="NaN"):
            uk.label_transport_loss(bad, logits, target % 4)


@pytest.mark.parametrize("result", [False, True], ids=["loss", "result"])
@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
@pytest.mark.parametrize("fault", ["NaN", "label"])
def test_refused_terms_by_class(fault, batch, result):
    """Also of a class that does not occur; a label that is none reads no memory."""
    z, W, labels = torch.randn(9, 4), torch.zeros(9, 3), torch.arange(9) % 2
    if fault == "NaN":
        W[4, 2] = torch.nan
    else:
        labels[3] = 10**6
    if batch:
        z, W, labels = z.expand(2, -1, -1), W.expand(2, -1, -1), labels.expand(2, -1)
    with model():
        got = uk.sinkhorn_loss(z, z, class_cost=W, y_labels=labels, return_result=result)
        assert (got.value if result else got).isnan().all()
        if result:
            with pytest.raises(ValueError, match="class_cost"):
                got.check()
