"""torch.func's transforms and forward mode of the ops: vmap is the batched op, jvp is the gradient's other side."""

from __future__ import annotations

import itertools

import pytest
import torch
from cuda_harness import build, model
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import ucmkd_fast as uk
from ucmkd_fast.ops import _devices
from ucmkd_fast.ops.cost import METRICS
from ucmkd_fast.reference import sinkhorn as reference

B, N, M, D, K = 3, 6, 5, 4, 3
GRADS = ("unrolled", "implicit", "envelope")
VALUES = ("value", "value_regularized")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masses(seed: int = 1):
    return draw(B, N, seed=seed).softmax(1), draw(B, M, seed=seed + 1).softmax(1)


def parts(z):
    return z if isinstance(z, (tuple, list)) else (z,)


def close(got, want, tolerance=1e-9):
    for g, w in zip(parts(got), parts(want), strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        assert (g - w).abs().max().item() <= tolerance * max(1.0, w.abs().max().item())  # false for NaN


def one_by_one(f, in_dims, *args):
    """F of each problem, stacked."""
    slices = [
        [z if d is None else z.select(d, k) for z, d in zip(args, in_dims, strict=True)] for k in range(B)
    ]
    outputs = [parts(f(*each)) for each in slices]
    stacked = tuple(torch.stack(o) for o in zip(*outputs, strict=True))
    return stacked if len(stacked) > 1 else stacked[0]


def shared(in_dims, *args):
    return [z if d is not None else z[0] for z, d in zip(args, in_dims, strict=True)]


SOME = [dims for dims in itertools.product((0, None), repeat=3) if dims != (None, None, None)]


@pytest.mark.parametrize("in_dims", SOME, ids=str)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("how", GRADS)
def test_vmap_of_sinkhorn(how, value, in_dims):
    def f(cost, a, b):
        return getattr(uk.sinkhorn(cost, a, b, reg=0.2, max_iter=30, grad=how), value)

    args = shared(in_dims, draw(B, N, M).abs(), *masses())
    close(vmap(f, in_dims)(*args), one_by_one(f, in_dims, *args))
    slopes = grad(f, (0, 1, 2))
    close(vmap(slopes, in_dims)(*args), one_by_one(slopes, in_dims, *args))
    leaves = [z.clone().requires_grad_() for z in args]
    want = torch.autograd.grad(one_by_one(f, in_dims, *leaves).sum(), leaves)
    close(grad(lambda *z: vmap(f, in_dims)(*z).sum(), (0, 1, 2))(*args), want)


def test_vmap_is_the_batched_op():
    cost, (a, b) = draw(B, N, M).abs(), masses()
    for options in ({}, {"tol": 1e-3}, {"grad": "implicit", "accelerate": "relax"}):
        want = uk.sinkhorn(cost, a, b, **options)

        def fields(cost, a, b, options=options):
            r = uk.sinkhorn(cost, a, b, **options)
            return r.value, r.value_regularized, *r.potentials, r.marginal_error, r.n_iter, r.plan()

        got = vmap(fields)(cost, a, b)
        for g, w in zip(got, fields(cost, a, b), strict=True):
            assert torch.equal(g, w)
    start = want.potentials

    def again(cost, f, g):
        return uk.sinkhorn(cost, init=(f, g), max_iter=2).value

    close(vmap(again)(cost, *start), uk.sinkhorn(cost, init=start, max_iter=2).value)
    close(
        vmap(again, (0, None, None))(cost, start[0][0], start[1][0]),
        one_by_one(again, (0, None, None), cost, start[0][0], start[1][0]),
    )
    assert vmap(lambda c: uk.sinkhorn(c).value)(cost.half()).dtype == torch.float32


def test_nested_vmap_other_dimensions_and_batches_inside():
    cost, a = draw(2, B, N, M).abs(), masses()[0]

    def value(cost, a):
        return uk.sinkhorn(cost, a, max_iter=20).value

    slopes = grad(value, (0, 1))
    twice = vmap(vmap(slopes, (0, None)), (None, 0))(cost[0], a)
    want = [[slopes(c, m) for c in cost[0]] for m in a]
    for k in (0, 1):
        close(twice[k], torch.stack([torch.stack([pair[k] for pair in row]) for row in want]))
    close(
        vmap(vmap(value, (2, 1)), (0, None))(cost.movedim(1, 3), a.T), vmap(vmap(value), (0, None))(cost, a)
    )
    # A batch (B, N, M) inside vmap, its masses shared, batched, or mapped.
    for mass, dim in ((a[0], None), (a, None), (a[:2], 0), (torch.stack([a, a.flip(0)]), 0)):
        each = [slopes_of_sum(c, mass if dim is None else mass[k]) for k, c in enumerate(cost)]
        got = vmap(slopes_of_sum, (0, dim))(cost, mass)
        for k in (0, 1):
            close(got[k], torch.stack([pair[k] for pair in each]))


def slopes_of_sum(cost, a):
    return grad(lambda c, m: uk.sinkhorn(c, m, max_iter=20).value.sum(), (0, 1))(cost, a)


@pytest.mark.parametrize("how", GRADS)
@pytest.mark.parametrize("value", VALUES)
def test_forward_mode_of_sinkhorn_is_its_gradient(value, how):
    """With a row without mass and a forbidden pair; in float64 against differences too."""
    cost, (a, b) = draw(N, M).abs(), (z[0] for z in masses())
    cost[0, 1] = torch.inf
    a = torch.where(torch.arange(N) == 2, 0, a)
    a = a / a.sum()
    d_cost, d_a, d_b = draw(N, M, seed=5), a * draw(N, seed=6), b * draw(M, seed=7)
    d_a, d_b = d_a - d_a.sum() * a, d_b - d_b.sum() * b

    def f(cost, a, b):
        return getattr(uk.sinkhorn(cost, a, b, reg=0.2, max_iter=300, grad=how), value)

    args, tangents = (cost, a, b), (d_cost, d_a, d_b)
    got, slope = jvp(f, args, tangents)
    close(got, f(*args))
    close(slope, sum((s * t).sum() for s, t in zip(grad(f, (0, 1, 2))(*args), tangents, strict=True)), 1e-8)
    with forward_ad.dual_level():
        dual = f(*(forward_ad.make_dual(z, t) for z, t in zip(args, tangents, strict=True)))
        close(forward_ad.unpack_dual(dual).tangent, slope)
    if how != "envelope" or value == "value_regularized":
        h = 1e-6
        ends = [f(*(z + s * h * t for z, t in zip(args, tangents, strict=True))) for s in (1, -1)]
        close(slope, (ends[0] - ends[1]) / (2 * h), 1e-6)


def test_jacobians_hessians_and_their_refusal():
    cost = draw(B, N, M).abs()

    def plan(cost):
        return uk.sinkhorn(cost, max_iter=20).plan()

    def value(cost, how="unrolled"):
        return uk.sinkhorn(cost, max_iter=20, grad=how).value

    want = torch.autograd.functional.jacobian(lambda c: reference_plan(c, 20), cost[0])
    for jacobian in (jacrev, jacfwd):
        close(jacobian(plan)(cost[0]), want)
        close(vmap(jacobian(plan))(cost)[0], want)
    want = torch.autograd.functional.hessian(
        lambda c: reference.sinkhorn(c, reg=0.1, max_iter=20).value, cost[0]
    )
    for order in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
        close(order(value)(cost[0]), want)
        for how in ("implicit", "envelope"):
            with pytest.raises(NotImplementedError, match="unrolled"):
                order(lambda c, how=how: value(c, how))(cost[0])
    close(vmap(hessian(value))(cost)[0], want)


def reference_plan(cost, iterations):
    s = reference.sinkhorn(cost, reg=0.1, max_iter=iterations)
    return reference.plan(cost, s.f, s.g, 0.1)


@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("metric", METRICS)
def test_losses_of_features(metric, objective):
    x, y, (a, b) = draw(B, N, D), draw(B, M, D, seed=3), masses()
    args, tangents = (x, y, a, b), (draw(B, N, D, seed=4), draw(B, M, D, seed=5), draw(B, N), draw(B, M))

    def f(x, y, a, b):
        return uk.sinkhorn_loss(x, y, a, b, metric=metric, objective=objective, reg=0.3, max_iter=15)

    def truth(x, y, a, b):
        return reference.sinkhorn_loss(x, y, a, b, metric=metric, objective=objective, reg=0.3, max_iter=15)

    close(vmap(f)(*args), f(*args))
    dims = (0, None, None, 0)
    close(vmap(f, dims)(*shared(dims, *args)), one_by_one(f, dims, *shared(dims, *args)))
    leaves = [z.clone().requires_grad_() for z in args]
    want = torch.autograd.grad(sum(truth(*each) for each in zip(*leaves, strict=True)), leaves)
    close(vmap(grad(f, (0, 1, 2, 3)))(*args), want)
    close(grad(lambda *z: vmap(f)(*z).sum(), (0, 1, 2, 3))(*args), want)
    slopes = torch.stack(
        [sum((w[k] * t[k]).sum() for w, t in zip(want, tangents, strict=True)) for k in range(B)]
    )
    close(vmap(lambda *z: jvp(f, z[:4], z[4:])[1])(*args, *tangents), slopes)
    close(jvp(f, args, tangents)[1], slopes)
    one = [z[0] for z in args]
    close(hessian(f)(*one), torch.autograd.functional.hessian(lambda x: truth(x, *one[1:]), one[0]))


def test_terms_by_class_and_transport_class_by_class():
    x, y, W = draw(B, N, D), draw(B, M, D, seed=3), draw(B, N, K, seed=4)
    labels = torch.arange(B * M).view(B, M) % K
    rows = torch.arange(B * N).view(B, N) % K

    def aware(x, y, W, labels):
        return uk.sinkhorn_loss(x, y, class_cost=W, y_labels=labels, metric="l2", max_iter=20)

    args = (x, y, W, labels)
    close(vmap(aware)(*args), aware(*args))
    slopes = grad(aware, (0, 1, 2))
    close(vmap(slopes)(*args), one_by_one(slopes, (0,) * 4, *args))
    close(
        jvp(lambda W: aware(x[0], y[0], W, labels[0]), (W[0],), (W[1],))[1],
        (slopes(*(z[0] for z in args))[2] * W[1]).sum(),
    )

    def apart(x, y, rows, labels):
        return uk.class_conditional_loss(x, y, rows, labels, classes=K, max_iter=200)

    args = (x, y, rows, labels)
    close(vmap(apart)(*args), one_by_one(apart, (0,) * 4, *args), 1e-6)
    close(
        jvp(lambda x: apart(x, y[0], rows[0], labels[0]), (x[0],), (x[1],))[1],
        (grad(apart)(*(z[0] for z in args)) * x[1]).sum(),
        1e-6,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kappa", ["detached", "live"])
def test_label_transport(kappa, reduction):
    n = 7
    s, t, target = draw(B, n, K), draw(B, n, K, seed=2), torch.arange(B * n).view(B, n) % K
    target[:, 0] = -100

    def f(s, t, target):
        return uk.label_transport_loss(s, t, target, kappa=kappa, reduction=reduction, label_smoothing=0.1)

    def total(*args):
        return f(*args).sum()

    for dims in SOME:
        args = shared(dims, s, t, target)
        close(vmap(f, dims)(*args), one_by_one(f, dims, *args))
        slopes = grad(total, (0, 1))
        close(vmap(slopes, dims)(*args), one_by_one(slopes, dims, *args))
        leaves = [z.clone().requires_grad_() for z in args[:2]]
        want = torch.autograd.grad(one_by_one(total, dims, *leaves, args[2]).sum(), leaves)
        close(grad(lambda *z, dims=dims: vmap(total, dims)(*z).sum(), (0, 1))(*args), want)
    one = s[0], t[0]
    jacobians = jacrev(lambda s, t: f(s, t, target[0]), (0, 1))(*one)
    close(jacfwd(lambda s, t: f(s, t, target[0]), (0, 1))(*one), jacobians)
    value, slope = jvp(lambda s, t: f(s, t, target[0]), one, (s[1], t[1]))
    close(value, f(*one, target[0]))
    close(slope, sum((j * d).sum((-1, -2)) for j, d in zip(jacobians, (s[1], t[1]), strict=True)))
    want = torch.autograd.functional.hessian(lambda s: total(s, t[0], target[0]), s[0])
    for order in (hessian, lambda f: jacrev(jacrev(f))):
        close(order(lambda s: total(s, t[0], target[0]))(s[0]), want)

    feature, heads, bias = draw(B, n, D), draw(2, K, D, seed=8), draw(K)

    def linear(feature, student, teacher, target):
        return uk.linear_label_transport_loss(
            feature, student, bias, teacher, None, target, kappa=kappa, reduction=reduction
        ).sum()

    dims = (0, None, None, 0)
    args = (feature, *heads, target)
    close(vmap(linear, dims)(*args), one_by_one(linear, dims, *args))
    slopes = grad(linear, (0, 1, 2))
    close(vmap(slopes, dims)(*args), one_by_one(slopes, dims, *args))
    close(
        jvp(lambda w: linear(feature[0], w, heads[1], target[0]), (heads[0],), (heads[1],))[1],
        (slopes(feature[0], *heads, target[0])[1] * heads[1]).sum(),
    )


def test_gradients_per_sample_of_a_network():
    x, y, target = draw(B, N, D), draw(B, M, D, seed=3), torch.arange(B * N).view(B, N) % D
    layer = torch.nn.Linear(D, D).double()
    losses = (
        lambda z, y, target: uk.FeatureAlignmentLoss()(z, y),
        lambda z, y, target: uk.LabelTransportLoss()(z, z.flip(1), target),
    )
    for loss in losses:
        wanted = []
        for k in range(B):
            layer.zero_grad()
            loss(layer(x[k]), y[k], target[k]).backward()
            wanted.append(layer.weight.grad.clone())
        parameters = {name: p.detach() for name, p in layer.named_parameters()}

        def of(parameters, x, y, target, loss=loss):
            return loss(functional_call(layer, parameters, (x,)), y, target)

        got = vmap(grad(of), (None, 0, 0, 0))(parameters, x, y, target)
        close(got["weight"], torch.stack(wanted))


STEPS = {
    "l2": lambda z, y, k: uk.sinkhorn_loss(z, y, metric="l2", max_iter=15),
    "divergence": lambda z, y, k: uk.sinkhorn_loss(z, y, z[:, 0].softmax(0), objective="divergence", max_iter=15),
    "cost": lambda z, y, k: uk.sinkhorn(z @ y.T, max_iter=15).value_regularized,
    "label": lambda z, y, k: uk.label_transport_loss(z, z.flip(1), k, kappa="live"),
    "linear": lambda z, y, k: uk.linear_label_transport_loss(z, y, None, y.flip(0), None, k % M, kappa="live"),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_step_inside_is_differentiated_from_outside(name):
    """An inner step by ``grad``, under vmap over tasks, with autograd or a transform around it."""
    x, y, target, start = (
        draw(B, N, D),
        draw(B, M, D, seed=3),
        torch.arange(B * N).view(B, N) % D,
        draw(D, D, seed=9),
    )

    def f(weight, x, y, target):
        return STEPS[name](x @ weight, y, target)

    def by_autograd(weight):
        total = weight.new_zeros(())
        for each in zip(x, y, target, strict=True):
            (slope,) = torch.autograd.grad(f(weight, *each), weight, create_graph=True)
            total = total + f(weight - 0.5 * slope, *each)
        return total

    def by_transforms(weight):
        def task(x, y, target):
            return f(weight - 0.5 * grad(f)(weight, x, y, target), x, y, target)

        return vmap(task)(x, y, target).sum()

    found = []
    for outer in (by_autograd, by_transforms):
        leaf = start.clone().requires_grad_()
        found.append(torch.autograd.grad(outer(leaf), leaf)[0])
    close(found[1], found[0])
    close(grad(by_transforms)(start), found[0])
    close(jacfwd(by_transforms)(start), found[0])
    h = 1e-5
    step = draw(D, D, seed=10)
    ends = [by_transforms(start + s * h * step) for s in (1, -1)]
    close((found[0] * step).sum(), (ends[0] - ends[1]) / (2 * h), 1e-6)


ONE = torch.zeros(N, dtype=torch.int64)
TWICE = {
    "x as y": lambda z: uk.sinkhorn_loss(z, z, metric="l2", max_iter=10),
    "divergence": lambda z: uk.sinkhorn_loss(z, z.detach().flip(0) + 1, objective="divergence", max_iter=10),
    "batch": lambda z: uk.sinkhorn_loss(z[None], z[None].flip(1) + 1, objective="divergence", max_iter=10).sum(),
    "masses": lambda z: (lambda m: uk.sinkhorn(z @ z.T, m, m, max_iter=10).value)(z[:, 0].softmax(0)),
    "class": lambda z: uk.sinkhorn_loss(z, z.flip(0), class_cost=z, y_labels=ONE, max_iter=10),
    "logits": lambda z: uk.label_transport_loss(z, z, ONE),
    "heads": lambda z: uk.linear_label_transport_loss(z, z, None, z, None, ONE),
}  # fmt: skip


@pytest.mark.parametrize("name", TWICE)
def test_one_tensor_in_two_places_where_a_graph_is_kept(name):
    z = draw(N, D).requires_grad_()
    want = torch.autograd.grad(TWICE[name](z), z)[0]
    close(torch.autograd.grad(TWICE[name](z), z, create_graph=True)[0].detach(), want)
    close(grad(TWICE[name])(z.detach()), want)


def test_compiled_vmap():
    x, y = draw(B, N, D), draw(B, M, D, seed=3)
    f = torch.compile(lambda x, y: vmap(uk.sinkhorn_loss)(x, y), backend="aot_eager", fullgraph=True)
    close(f(x, y), uk.sinkhorn_loss(x, y))
    s, target = draw(B, N, K), torch.arange(B * N).view(B, N) % K
    f = torch.compile(
        lambda s, t: vmap(uk.label_transport_loss)(s, s.flip(1), t), backend="aot_eager", fullgraph=True
    )
    close(f(s, target), vmap(uk.label_transport_loss)(s, s.flip(1), target))


def test_where_a_device_has_no_kernels(monkeypatch):
    monkeypatch.setattr(_devices, "_cpu", _devices._reference)
    cost, (a, b) = draw(B, N, M).abs(), masses()
    want = [reference.sinkhorn(*each, max_iter=20).value for each in zip(cost, a, b, strict=True)]

    def value(cost, a, b):
        return uk.sinkhorn(cost, a, b, max_iter=20).value

    close(vmap(value)(cost, a, b), torch.stack(want))
    leaf = cost[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(reference.sinkhorn(leaf, a[0], b[0], max_iter=20).value, leaf)
    close(vmap(grad(value))(cost, a, b)[0], slope)


def test_values_are_still_looked_at():
    x, y = draw(B, N, D), draw(B, M, D, seed=3)
    logits = draw(B, N, K)
    for call, words in (
        (lambda: vmap(uk.sinkhorn_loss)(x * torch.nan, y), "finite"),
        (lambda: vmap(uk.sinkhorn)(x - torch.inf), r"got -inf at cost\[0, 0, 0\]"),
        (lambda: vmap(uk.sinkhorn_loss)(x[:0], y[:0]), "size 0"),
        (lambda: vmap(uk.label_transport_loss)(logits, logits, torch.full((B, N), 7)), "classes 0 to 2"),
        (lambda: vmap(uk.sinkhorn_loss)(x[:, :0], y), "at least one row"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with")
@pytest.mark.parametrize("how", GRADS)
def test_on_the_model_of_a_gpu(one_thread, how):
    """A mapped dimension is a batch of one launch there; blocks of memory are divided and joined again."""
    x, y, (a, b) = draw(B, N, D), draw(B, M, D, seed=3), masses()

    def f(x, y, a, b):
        return uk.sinkhorn_loss(x, y, a, b, metric="l2", max_iter=20, grad=how, objective="regularized")

    slopes = grad(f, (0, 1, 2, 3))
    dims = (0, None, None, 0)
    want = vmap(slopes)(x, y, a, b), vmap(slopes, dims)(*shared(dims, x, y, a, b))
    jacobian = jacrev(lambda x: uk.sinkhorn_loss(x, y[0], return_result=True).potentials[0])(x[0])
    with model():
        close(vmap(slopes)(x, y, a, b), want[0])
        close(vmap(slopes, dims)(*shared(dims, x, y, a, b)), want[1])
        close(vmap(vmap(slopes, dims), (0, None, None, None))(x[None], y[0], a[0], b)[0][0], want[1][0])
        close(jacrev(lambda x: uk.sinkhorn_loss(x, y[0], return_result=True).potentials[0])(x[0]), jacobian)
