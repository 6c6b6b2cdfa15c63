"""Masses near the end of a dtype's range: up to 1e-30 (1e-290 in float64) they take no part, above they are exact."""

import pytest
import torch

import ucmkd_fast as uk
from tests.cuda_harness import model
from ucmkd_fast import compat
from ucmkd_fast.ops.cost import METRICS
from ucmkd_fast.reference import sinkhorn as reference

TINY = [1.4e-45, 2.9e-39, 1.2e-38, 1e-36, 9e-31, 1.1e-30, 1e-28]  # the last two take part
GRADS = ["unrolled", "implicit", "envelope"]


def masses(tiny: float, dtype=torch.float32) -> torch.Tensor:
    """Four masses of sum 1, the first of them tiny."""
    return torch.tensor([tiny, 0.5, 0.3, 0.2], dtype=dtype)


def softmax_masses(dtype=torch.float32) -> torch.Tensor:
    """As a network gives them: the first is 2.9e-39 of the others."""
    return torch.tensor([0.0, 90.0, 89.0, 88.0], dtype=dtype).softmax(0)


def features(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(n, 7, generator=generator).to(dtype) for n in (4, 6))


def agree(got, want, limit=2e-5):
    """Finite, and within ``limit`` of the float64 truth's largest entry; NaN fails."""
    assert torch.isfinite(got).all(), got
    scale = want.abs().max().clamp_min(1e-3)
    assert ((got.double() - want).abs().max() <= limit * scale).item(), (got, want)


def loss_and_gradients(call, x, y, a):
    inputs = [z.clone().requires_grad_() for z in (x, y, a)]
    loss = call(*inputs)
    return loss.detach(), *torch.autograd.grad(loss, inputs, allow_unused=True)


@pytest.mark.parametrize("tiny", TINY)
@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("metric", METRICS)
def test_loss_and_gradients_of_features(metric, objective, side, tiny):
    x, y = features()
    reg = 3.0 if metric == "sqeuclidean" else 0.3
    options = {"metric": metric, "objective": objective, "reg": reg, "max_iter": 15}

    def run(loss, x, y, mass):
        return loss(x, y, mass, **options) if side == "a" else loss(y, x, None, mass, **options)

    got = loss_and_gradients(lambda *z: run(uk.sinkhorn_loss, *z), x, y, masses(tiny))
    counted = masses(tiny).double() if tiny > 1e-30 else masses(0).double()
    want = loss_and_gradients(lambda *z: run(reference.sinkhorn_loss, *z), x.double(), y.double(), counted)
    for g, w in zip(got, want, strict=True):
        agree(g, w)


@pytest.mark.parametrize("tiny", TINY)
@pytest.mark.parametrize("accelerate", [None, "relax"])
@pytest.mark.parametrize("grad", GRADS)
def test_every_output_of_a_given_cost(grad, accelerate, tiny):
    if accelerate and grad == "unrolled":
        accelerate = None
    cost = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for cost_now, sides in ((cost, "a"), (cost.T, "b")):
        mass = masses(tiny).requires_grad_()
        result = uk.sinkhorn(
            cost_now, **{sides: mass}, reg=0.2, max_iter=40, grad=grad, accelerate=accelerate
        )
        assert torch.isfinite(result.value_regularized) and torch.isfinite(result.plan()).all()
        outputs = (
            [result.value_regularized] if grad == "envelope" else [result.value, result.value_regularized]
        )
        for output in outputs:
            for g in torch.autograd.grad(output, (cost, mass), retain_graph=True):
                assert torch.isfinite(g).all(), (sides, grad, g)


@pytest.mark.parametrize(
    "route", ["panels", "batch", "ragged", "func", "second order", "large", "class cost"]
)
def test_masses_of_a_softmax_on_every_route(route, monkeypatch):
    x, y = features()
    a = softmax_masses()
    assert 0 < a[0] < torch.finfo(a.dtype).tiny
    options = {"metric": "sqeuclidean", "reg": 2.0, "max_iter": 15}
    truth = x.double(), y.double(), a.double()
    want = loss_and_gradients(lambda *z: reference.sinkhorn_loss(*z, **options), *truth)

    def call(x, y, a):
        if route == "panels":
            return uk.sinkhorn_loss(x, y, a, memory_budget=32 * 6 * 4, **options)
        if route == "batch":
            return uk.sinkhorn_loss(x[None].repeat(3, 1, 1), y[None].repeat(3, 1, 1), a, **options).mean()
        if route == "ragged":
            at = torch.tensor([0, 4]), torch.tensor([0, 6])
            return uk.sinkhorn_loss(x, y, a, torch.full((6,), 1 / 6), offsets=at, **options)[0]
        if route == "class cost":
            w, k = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1, 0, 1])
            return uk.sinkhorn_loss(x, y, a, class_cost=w, y_labels=k, **options)
        return uk.sinkhorn_loss(x, y, a, **options)

    if route == "large":
        monkeypatch.setattr("ucmkd_fast.ops._cpu.losses.OWN_PRODUCTS", 0)
    if route == "func":
        grads = torch.func.grad(call, (0, 1, 2))(x, y, a)
    elif route == "second order":
        inputs = [z.clone().requires_grad_() for z in (x, y, a)]
        grads = torch.autograd.grad(call(*inputs), inputs, create_graph=True)
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(grads[0].square().sum(), inputs))
    else:
        loss, *grads = loss_and_gradients(call, x, y, a)
        agree(loss, want[0])
    for g, w in zip(grads[:2], want[1:3], strict=True):
        agree(g, w)
    agree(grads[2][1:], want[3][1:])
    assert grads[2][0] == 0


def test_double_precision_has_the_rule_of_its_own_range():
    x, y = features(torch.float64)
    a = masses(1e-300, torch.float64)
    _, *grads = loss_and_gradients(lambda *z: uk.sinkhorn_loss(*z, reg=0.3), x, y, a)
    assert all(torch.isfinite(g).all() for g in grads) and grads[2][0] == 0
    *_, of_float32s_subnormal = loss_and_gradients(
        lambda *z: uk.sinkhorn_loss(*z, reg=0.3), x, y, masses(1e-40, torch.float64)
    )
    assert of_float32s_subnormal[0] != 0  # here it takes part


def test_masses_that_are_all_too_small_are_refused():
    x, y = features()
    with pytest.raises(ValueError, match="masses must not all be 0"):
        uk.sinkhorn_loss(x, y, torch.full((4,), 1e-42), torch.full((6,), 1e-42))


def test_the_drop_in_for_pot():
    cost = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    a = softmax_masses().requires_grad_()
    value = compat.pot.sinkhorn2(a, torch.full((6,), 1 / 6), cost, 0.1)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (cost, a)))


@pytest.mark.parametrize("tiny", TINY)
@pytest.mark.parametrize("route", ["loss", "panels"])
@pytest.mark.parametrize("grad", GRADS)
def test_the_kernels_of_a_gpu(grad, route, tiny):
    """On their execution model: as the CPU's kernels."""
    x, y = features()
    options = {"objective": "regularized", "reg": 0.3, "max_iter": 12, "grad": grad}
    if route == "panels":
        options["memory_budget"] = 32 * 6 * 4
    want = loss_and_gradients(lambda *z: uk.sinkhorn_loss(*z, **options), x, y, masses(tiny))
    with model():
        got = loss_and_gradients(lambda *z: uk.sinkhorn_loss(*z, **options), x, y, masses(tiny))
    for g, w in zip(got, want, strict=True):
        agree(g, w.double(), 1e-4)
