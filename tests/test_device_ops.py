"""Every op on every device that is here, against the float64 reference on the CPU."""

from __future__ import annotations

import pytest
import torch
from test_sinkhorn import distance

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device
from ucmkd_fast.ops.cost import METRICS
from ucmkd_fast.reference import label_transport as label_reference
from ucmkd_fast.reference import sinkhorn as reference
from ucmkd_fast.reference.doubly_stochastic import doubly_stochastic as projection_reference

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = {torch.float64: 1e-8, torch.float32: 5e-4}


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")
        if _device.kernels is None:
            pytest.skip("this build has no CUDA kernels")
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32], ids=["f64", "f32"])
def dtype(request):
    return request.param


def features(*sizes: int, width: int = 9) -> list[torch.Tensor]:
    """Float64 leaves on the CPU, of numbers that float32 holds."""
    return [torch.randn(n, width).double().requires_grad_() for n in sizes]


def agree(op, truth, inputs, device, dtype, limit=None) -> None:
    """Op on the device against ``truth`` in float64 on the CPU: value and gradients of all inputs (float64 leaves)."""
    limit = limit or LIMIT[torch.float64 if dtype == torch.float64 else torch.float32]
    want = truth(*inputs)
    wants = torch.autograd.grad(want.sum(), inputs)
    ours = [z.detach().to(device, dtype).requires_grad_() for z in inputs]
    got = op(*ours)
    assert got.device.type == device and distance(got.cpu(), want, 1e-2) < limit
    for g, w in zip(torch.autograd.grad(got.sum(), ours), wants, strict=True):
        assert g.device.type == device and g.dtype == dtype
        assert distance(g.cpu(), w, 1e-2) < limit


def masses(n: int) -> torch.Tensor:
    return (torch.rand(n).double() + 0.1).softmax(0).requires_grad_()


@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("metric", METRICS)
def test_losses_of_features(metric, objective, device, dtype):
    options = {"metric": metric, "objective": objective, "reg": 0.5, "max_iter": 15}
    inputs = [*features(33, 20), masses(33), masses(20)]
    agree(
        lambda *t: uk.sinkhorn_loss(*t, **options), lambda *t: reference.sinkhorn_loss(*t, **options), inputs, device,
        dtype,
    )  # fmt: skip


@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("metric", METRICS)
def test_costs_made_by_panels(metric, objective, device, dtype):
    options = {"metric": metric, "objective": objective, "reg": 1.0, "max_iter": 12}
    budget = 33 * 20 * 12
    agree(
        lambda *t: uk.sinkhorn_loss(*t, memory_budget=budget, **options),
        lambda *t: reference.sinkhorn_loss(*t, **options), [*features(33, 20), masses(33), masses(20)], device, dtype,
    )  # fmt: skip


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
@pytest.mark.parametrize("budget", [None, 33 * 20 * 12], ids=["one matrix", "panels"])
def test_gradients_at_the_fixed_point(grad, budget, device):
    options = {"objective": "regularized", "reg": 0.5, "max_iter": 300, "tol": 1e-11}
    agree(
        lambda *t: uk.sinkhorn_loss(*t, grad=grad, memory_budget=budget, **options),
        lambda *t: reference.sinkhorn_loss(*t, **options), features(33, 20), device, torch.float64, 1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("metric", METRICS)
def test_half_precision(metric, half, device):
    options = {"metric": metric, "reg": 0.5, "max_iter": 10}
    inputs = [z.detach().to(half).double().requires_grad_() for z in features(24, 17, width=32)]
    agree(
        lambda *t: uk.sinkhorn_loss(*t, **options), lambda *t: reference.sinkhorn_loss(*t, **options), inputs, device,
        half, 1e-2,
    )  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_batches(metric, device, dtype):
    options = {"metric": metric, "reg": 0.5, "max_iter": 10}
    inputs = [torch.randn(5, n, 6).double().requires_grad_() for n in (14, 11)]

    def loop(x, y):
        return torch.stack([reference.sinkhorn_loss(*pair, **options) for pair in zip(x, y, strict=True)])

    agree(lambda *t: uk.sinkhorn_loss(*t, **options), loop, inputs, device, dtype)


@pytest.mark.parametrize("starts", [(0, 4, 12, 20), (0, 1, 2, 3, 4, 20)], ids=str)
def test_ragged_lists(starts, device, dtype):
    options = {"reg": 0.5, "max_iter": 10}
    offsets = torch.tensor(starts), torch.tensor(starts)

    def loop(x, y):
        parts = (slice(a, b) for a, b in zip(starts, starts[1:], strict=False))
        return torch.stack([reference.sinkhorn_loss(x[at], y[at], **options) for at in parts])

    agree(lambda *t: uk.sinkhorn_loss(*t, offsets=offsets, **options), loop, features(20, 20), device, dtype)


@pytest.mark.parametrize("rows", [None, 4], ids=["one matrix", "panels"])
@pytest.mark.parametrize("metric", METRICS)
def test_terms_by_class(metric, rows, device, dtype):
    options = {"reg": 0.5, "max_iter": 10}
    labels = torch.arange(20) % 3
    budget = None if rows is None else 8 * rows * 20 * dtype.itemsize

    def truth(x, y, W):
        return reference.sinkhorn(reference.cost(x, y, metric) + W[:, labels], **options).value

    def op(x, y, W):
        classes = {"class_cost": W, "y_labels": labels.to(device)}
        return uk.sinkhorn_loss(x, y, metric=metric, memory_budget=budget, **classes, **options)

    agree(op, truth, [*features(14, 20), torch.rand(14, 4).double().requires_grad_()], device, dtype)


def test_results(device):
    x, y = (z.detach() for z in features(20, 15))
    options = {"reg": 0.5, "max_iter": 200, "tol": 1e-9, "return_result": True}
    want, got = (uk.sinkhorn_loss(x.to(d), y.to(d), **options) for d in ("cpu", device))
    assert got.n_iter.item() == want.n_iter.item() and got.converged.item()
    assert distance(got.plan().cpu(), want.plan()) < 1e-9
    again = uk.sinkhorn_loss(x.to(device), y.to(device), init=got.potentials, **options)
    assert again.n_iter.item() == 1


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kappa", ["detached", "live"])
def test_label_transport(kappa, smoothing, reduction, device, dtype):
    target = torch.randint(7, (11,))
    target[3] = -100
    options = {"kappa": kappa, "label_smoothing": smoothing, "reduction": reduction}
    agree(
        lambda s, t: uk.label_transport_loss(s, t, target.to(device), **options),
        lambda s, t: label_reference.label_transport_loss(s, t, target, **options),
        features(11, 11, width=7), device, dtype,
    )  # fmt: skip


@pytest.mark.parametrize("size", [4, 7, 40])
@pytest.mark.parametrize("options", [{}, {"start": "softmax", "order": "rows-columns", "eps": 1e-6}], ids=str)
def test_doubly_stochastic(options, size, device, dtype):
    agree(
        lambda x: uk.doubly_stochastic(x, **options).square(), lambda x: projection_reference(x, **options).square(),
        [torch.randn(70, size, size).double().requires_grad_()], device, dtype,
    )  # fmt: skip


@pytest.mark.parametrize("kappa", ["detached", "live"])
def test_linear_label_transport(kappa, device, dtype):
    feature, sw, tw = features(11, 7, 7)
    sb, tb = (torch.randn(7).double().requires_grad_() for _ in range(2))
    target = torch.randint(7, (11,))

    def truth(feature, sw, sb, tw, tb):
        return label_reference.label_transport_loss(
            feature @ sw.T + sb, feature @ tw.T + tb, target, kappa=kappa
        )

    agree(
        lambda *t: uk.linear_label_transport_loss(*t, target.to(device), kappa=kappa), truth, [feature, sw, sb, tw, tb],
        device, dtype,
    )  # fmt: skip
