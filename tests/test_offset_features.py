"""Features far from the origin, or near each other: distances and gradients come from the differences, not from
|x|^2 + |y|^2 - 2 <x, y>, which loses them. The truth is float64 on the same float32 inputs."""

import pytest
import torch

import ucmkd_fast as uk
from tests.cuda_harness import model
from ucmkd_fast.ops._cpu import losses
from ucmkd_fast.reference import sinkhorn as reference

METRICS = ["l2", "chordal", "sqeuclidean"]
OFFSETS = [0.0, 3.0, 100.0, 1000.0]
APART = [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5]
LOSS, GRADIENT = 5e-7, 6e-6  # the largest seen: 2.5e-7 and 4.6e-6


def clouds(offset: float, apart: float, n=20, m=None, d=24, scale=1.0):
    """Rows of x beside those of y; x_1 is y_1 itself."""
    generator = torch.Generator().manual_seed(1)
    y = scale * (torch.randn(m or n, d, generator=generator) + offset)
    x = y[:n] + scale * apart * torch.randn(n, d, generator=generator)
    x[1] = y[1]
    return x, y


def regularisation(metric, x, y):
    """As large as the mean cost: no part of the error is the solver's."""
    return float(reference.cost(x.double(), y.double(), metric).mean())


def check(call, metric, x, y, *, limits=(LOSS, GRADIENT), **options):
    """Loss and gradients of ``call`` beside the truth's, relative to its largest entry."""
    options = {"metric": metric, "reg": regularisation(metric, x, y), "max_iter": 10, **options}
    results = []
    for loss, dtype in ((call, x.dtype), (reference.sinkhorn_loss, torch.float64)):
        inputs = [z.to(dtype).clone().requires_grad_() for z in (x, y)]
        value = loss(*inputs, **options)
        results.append((value.detach(), *torch.autograd.grad(value, inputs)))
    for got, want, limit in zip(*results, (limits[0], limits[1], limits[1]), strict=True):
        assert ((got.double() - want).abs().max() <= limit * want.abs().max()).item(), (got, want)


@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("apart", APART)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("metric", METRICS)
def test_loss_and_gradients_at_any_offset_and_distance(metric, offset, apart, objective):
    check(uk.sinkhorn_loss, metric, *clouds(offset, apart), objective=objective)


def in_panels(x, y, **options):
    return uk.sinkhorn_loss(x, y, memory_budget=32 * len(y) * 4, **options)


def as_a_batch(x, y, **options):
    other = clouds(7.0, 0.5)  # another centre
    return uk.sinkhorn_loss(torch.stack([other[0], x]), torch.stack([other[1], y]), **options)[1]


def ragged(x, y, **options):
    far = clouds(-500.0, 0.5, n=5)
    at = [torch.tensor([0, 5, 5 + len(z), 5 + len(z)]) for z in (x, y)]
    return uk.sinkhorn_loss(torch.cat([far[0], x]), torch.cat([far[1], y]), offsets=tuple(at), **options)[1]


def with_classes(x, y, **options):
    w, k = torch.zeros(len(x), 3, dtype=x.dtype), torch.arange(len(y)) % 3
    return uk.sinkhorn_loss(x, y, class_cost=w, y_labels=k, **options)


def of_a_result(x, y, **options):
    return uk.sinkhorn_loss(x, y, return_result=True, **options).value


ROUTES = {
    "panels": in_panels,
    "batch": as_a_batch,
    "ragged": ragged,
    "classes": with_classes,
    "result": of_a_result,
}


@pytest.mark.parametrize("offset, apart", [(0.0, 1e-5), (3.0, 1e-3), (1000.0, 1.0)])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("route", ROUTES)
def test_every_route(route, metric, offset, apart):
    check(ROUTES[route], metric, *clouds(offset, apart))


@pytest.mark.parametrize("grad", ["unrolled", "implicit", "envelope"])
@pytest.mark.parametrize("metric", METRICS)
def test_products_by_torch(metric, grad, monkeypatch):
    """As large problems are run, a block of rows at a time."""
    monkeypatch.setattr(losses, "OWN_PRODUCTS", 0)
    monkeypatch.setattr(losses, "BLOCK", 1)
    options = {"grad": grad, "tol": 1e-6, "max_iter": 200} if grad == "implicit" else {"grad": grad}
    check(uk.sinkhorn_loss, metric, *clouds(3.0, 1e-3, n=37), **options)


@pytest.mark.parametrize("metric", METRICS)
def test_a_history_in_the_log_domain(metric, monkeypatch):
    """Small reg: dC is made at once, and its weights by a pass of their own."""
    x, y = clouds(30.0, 1e-2)
    reg = 0.02 * regularisation(metric, x, y)
    for own in (losses.OWN_PRODUCTS, 0):
        monkeypatch.setattr(losses, "OWN_PRODUCTS", own)
        check(uk.sinkhorn_loss, metric, x, y, reg=reg, limits=(1e-5, 1e-3))


@pytest.mark.parametrize("metric", METRICS)
def test_rows_of_other_lengths_and_halves(metric):
    """Rectangular; near in direction but not in length; bfloat16 features, which a CPU converts exactly."""
    x, y = clouds(100.0, 1e-3, n=9, m=17)
    check(uk.sinkhorn_loss, metric, 0.5 * x, y)
    x, y = (z.bfloat16() for z in clouds(3.0, 0.1))
    check(lambda x, y, **options: uk.sinkhorn_loss(x, y, **options), metric, x, y, limits=(LOSS, 8e-3))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("metric", METRICS)
def test_features_of_any_scale(metric, scale):
    check(uk.sinkhorn_loss, metric, *clouds(10.0, 1e-3, scale=scale))


@pytest.mark.parametrize("metric", METRICS)
def test_coincident_clouds_have_no_gradient_and_no_nan(metric):
    """All distances 0: from the origin, and far from it."""
    for offset in (0.0, 1000.0):
        x = torch.full((5, 4), offset, requires_grad=True)
        loss = uk.sinkhorn_loss(x, torch.full((6, 4), offset), metric=metric, reg=0.1)
        assert loss.item() == 0 and torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros(5, 4))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("route", ["loss", "panels", "classes", "batch"])
def test_the_kernels_of_a_gpu(route, metric):
    """On their execution model."""
    call = ROUTES.get(route, uk.sinkhorn_loss)
    for offset, apart in ((0.0, 1e-5), (3.0, 1e-3), (1000.0, 1.0)):
        with model(order="random"):
            check(call, metric, *clouds(offset, apart), limits=(5e-7, 2e-5))


def test_what_is_not_finite_is_named_also_where_the_centre_is_lost():
    x, y = torch.zeros(3, 2), torch.zeros(4, 2)
    y[2, 1] = torch.nan
    for metric in METRICS:
        with pytest.raises(ValueError, match="y must be finite"):
            uk.sinkhorn_loss(x, y, metric=metric)
        with pytest.raises(ValueError, match="x must be finite"):
            uk.sinkhorn_loss(y, x, metric=metric)
