"""Sweeps whose costs are made where they are read (csrc/sinkhorn/streamed.cu), on the execution model: tiles at the
edge of the matrix, several tiles and groups of blocks, each way to a distance, and pairs that products lose."""

from __future__ import annotations

import pytest
import torch
from cuda_harness import ORDERS, build, model
from test_offset_features import METRICS as BY_DIFFERENCE
from test_offset_features import check, clouds
from test_panel import METRICS, close, reg_of

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device
from ucmkd_fast.reference import sinkhorn as reference

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with"),
]


@pytest.fixture(autouse=True)
def streamed(monkeypatch):
    monkeypatch.setattr(_device, "streamed", True)


def by_tiles(*tensors, rows=4, **options):
    """The loss with memory for so many rows of the cost in its gradient: of the sweeps none is stored."""
    y = tensors[1]
    return uk.sinkhorn_loss(*tensors, memory_budget=8 * rows * len(y) * max(y.element_size(), 4), **options)


def cloud(n, m, d, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.1 for k in (n, m))
    return [z.to(dtype).requires_grad_() for z in (x, y, a / a.sum(), b / b.sum())]


# A tile is 128 x 128 in float, 64 x 64 in double: less than one, one, a row more, several; and 1 feature, as many as
# are taken at a time, one more, several times as many.
SHAPES = [(1, 70, 1), (63, 64, 3), (65, 129, 16), (130, 127, 17), (150, 66, 40)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n, m, d", SHAPES, ids=str)
def test_agrees_with_the_reference_at_the_edges_of_tiles(n, m, d, metric):
    tensors = cloud(n, m, d)
    options = {"metric": metric, "reg": reg_of(metric) * max(d, 4) / 8, "max_iter": 4}
    want = reference.sinkhorn_loss(*tensors, **options)
    wants = torch.autograd.grad(want, tensors)
    scale = max(float(w.abs().max()) for w in wants)
    order = list(ORDERS)[(METRICS.index(metric) + n) % 3]
    for dtype, limit, grad_limit in ((torch.float64, 1e-12, 1e-10), (torch.float32, 2e-6, 3e-5)):
        own = [z.detach().to(dtype).requires_grad_() for z in tensors]
        with model(order=order, seed=7):
            got = by_tiles(*own, **options)
            grads = torch.autograd.grad(got, own)
        close(got, want, limit)
        for g, w in zip(grads, wants, strict=True):
            assert (g.double() - w).abs().max() <= grad_limit * scale


@pytest.mark.parametrize("multiprocessors", [1, 40])
def test_groups_of_blocks_share_a_tile(multiprocessors):
    """One block per tile, or as many as there are tiles of the other side: the same loss, the same bits each time."""
    tensors = cloud(200, 300, 5)
    want = uk.sinkhorn_loss(*tensors, max_iter=5)
    wants = torch.autograd.grad(want, tensors)
    found = []
    for order in ORDERS:
        with model(order=order, multiprocessors=multiprocessors):
            got = by_tiles(*tensors, max_iter=5)
            found.append((got, *torch.autograd.grad(got, tensors)))
    for mine, theirs in zip(found[0], (want, *wants), strict=True):
        close(mine, theirs, 1e-10)
    assert all(
        torch.equal(one, other) for more in found[1:] for one, other in zip(found[0], more, strict=True)
    )


@pytest.mark.parametrize("d", [8, 24])
@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("metric", BY_DIFFERENCE)
def test_near_pairs_and_pairs_far_from_the_origin(metric, offset, apart, d):
    with model():
        check(by_tiles, metric, *clouds(offset, apart, d=d), limits=(6e-7, 2e-5))


def test_near_pairs_of_double_precision():
    """Products would lose half of the digits."""
    x, y = (z.double() for z in clouds(100.0, 1e-6))
    with model():
        check(by_tiles, "l2", x, y, limits=(1e-12, 1e-8))


@pytest.mark.parametrize("tensor_cores", [False, True], ids=["threads", "tensor cores"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "chordal", "sqeuclidean"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("n, m, d", [(70, 130, 3), (1, 140, 40), (260, 129, 33), (128, 128, 16)], ids=str)
def test_half_precision_is_read_as_it_is(n, m, d, half, metric, tensor_cores, monkeypatch):
    monkeypatch.setattr(_device, "tensor_cores", tensor_cores)
    x, y = (z.detach().to(half).requires_grad_() for z in cloud(n, m, d)[:2])
    full = [z.detach().double().requires_grad_() for z in (x, y)]
    options = {"metric": metric, "reg": reg_of(metric) * max(d, 4) / 4, "max_iter": 5}
    want = reference.sinkhorn_loss(*full, **options)
    wants = torch.autograd.grad(want, full)
    with model(order=list(ORDERS)[n % 3], seed=1):
        got = by_tiles(x, y, **options)
        grads = torch.autograd.grad(got, (x, y))
    close(got, want, 3e-6)
    for g, w in zip(grads, wants, strict=True):
        assert g.dtype == half
        close(g, w, 1e-2)


@pytest.mark.parametrize("tensor_cores", [False, True], ids=["threads", "tensor cores"])
def test_near_pairs_of_half_precision_at_any_address(tensor_cores, monkeypatch):
    """Rows that are equal, and features that begin where no vector may."""
    monkeypatch.setattr(_device, "tensor_cores", tensor_cores)
    memory = torch.randn(2, 1 + 90 * 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    x, y = (z[1:].view(90, 24).requires_grad_() for z in memory)
    y.data[:45] = x.data[45:]
    full = [z.detach().double().requires_grad_() for z in (x, y)]
    options = {"metric": "l2", "reg": 2.0, "max_iter": 5}
    want = reference.sinkhorn_loss(*full, **options)
    wants = torch.autograd.grad(want, full)
    with model():
        got = by_tiles(x, y, **options)
        grads = torch.autograd.grad(got, (x, y))
    close(got, want, 3e-6)
    for g, w in zip(grads, wants, strict=True):
        close(g, w, 1e-2)


def test_tensor_cores_multiply_only_half_precision(monkeypatch):
    """Float32 is multiplied in float32, whatever is asked for."""
    asked = []
    monkeypatch.setattr(_device, "tensor_cores", True)
    monkeypatch.setattr(_device, "streamed", None)
    with model() as module:
        plan = module.cuda_stream_plan
        monkeypatch.setattr(module, "cuda_stream_plan", lambda *args: asked.append(plan(*args)) or asked[-1])
        for dtype, metric, d in (
            (torch.float32, "l2", 8),
            (torch.float64, "l2", 8),
            (torch.float16, "l1", 8),
            (torch.bfloat16, "cosine", 300),
        ):
            x, y = (torch.randn(30, d).to(dtype) for _ in range(2))
            by_tiles(x, y, metric=metric, max_iter=3)
    assert [found[:2] for found in asked] == [(True, False)] * 3 + [(True, True)]


def test_terms_by_class_in_every_tile():
    x, y, a, b = cloud(140, 150, 6)
    generator = torch.Generator().manual_seed(3)
    W = torch.rand(140, 3, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(3, (150,), generator=generator)
    options = {"class_cost": W, "y_labels": labels, "metric": "l2", "reg": 1.0, "max_iter": 5}
    leaves = (x, y, a, b, W)
    want = reference.sinkhorn_loss(x, y, a, b, **options)
    wants = torch.autograd.grad(want, leaves)
    with model(order="random", seed=2):
        got = by_tiles(x, y, a, b, **options)
        grads = torch.autograd.grad(got, leaves)
    close(got, want, 1e-12)
    for g, w in zip(grads, wants, strict=True):
        close(g, w, 1e-9)


@pytest.mark.parametrize("reg", [0.002, 0.02])
def test_small_reg_in_single_precision(reg):
    """Largest cost over reg is a thousand: each sum is taken from its largest term."""
    tensors = cloud(60, 50, 4)
    own = [z.detach().float().requires_grad_() for z in tensors]
    full = [z.detach().double().requires_grad_() for z in own]
    options = {"reg": reg, "max_iter": 30}
    want = reference.sinkhorn_loss(*full, **options)
    wants = torch.autograd.grad(want, full)
    plain = [z.detach().clone().requires_grad_() for z in own]
    torch_loss = reference.sinkhorn_loss(*plain, **options)
    of_torch = torch.autograd.grad(torch_loss, plain)
    with model():
        got = by_tiles(*own, **options)
        grads = torch.autograd.grad(got, own)
    close(got, want, 1e-5)
    for g, w, t in zip(grads, wants, of_torch, strict=True):
        theirs = (t.double() - w).abs().max()
        assert (g.double() - w).abs().max() <= 2 * theirs + 2e-4 * w.abs().max()


def test_features_that_overflow_are_refused():
    x, y, *_ = cloud(70, 70, 20, torch.float32)
    x.data[3] = 3e38
    with model():
        result = by_tiles(x, y, metric="l2", max_iter=3, return_result=True)
        assert result.value.isnan()
        with pytest.raises(ValueError, match="overflows"):
            result.check()


def test_of_many_features_panels_are_stored(monkeypatch):
    """As csrc/sinkhorn/regime.h weighs it: what is chosen where nothing is asked for."""
    monkeypatch.setattr(_device, "streamed", None)
    called = []
    with model() as module:
        for d, dtype, metric, streams in (
            (3, torch.float32, "cosine", True),
            (64, torch.float32, "l2", True),
            (512, torch.float32, "l2", False),
            (8, torch.float64, "l2", True),
            (128, torch.float64, "l2", False),
            (64, torch.float32, "l1", True),
        ):
            x, y = (torch.randn(40, d, dtype=dtype) for _ in range(2))
            before = module.launches()
            by_tiles(x, y, metric=metric, max_iter=10)
            called.append(streams)
            assert (module.launches() - before < 60) is streams, (d, dtype, metric)
    assert set(called) == {True, False}
