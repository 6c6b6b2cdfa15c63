"""The CUDA kernels on a GPU: what the execution model cannot show. `benchmarks/gpu_check.sh` runs it first."""

from __future__ import annotations

import pytest
import test_sinkhorn
import torch
from sinkhorn_cases import CASES, Case
from test_sinkhorn import compare, distance, leaves

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device
from ucmkd_fast.ops._cuda.panels import DeviceFlag
from ucmkd_fast.ops.cost import METRICS
from ucmkd_fast.reference import label_transport as label_reference
from ucmkd_fast.reference import sinkhorn as reference

WHY = "no GPU here"
if torch.cuda.is_available():
    WHY = "this build has no CUDA kernels" if _device.kernels is None else ""
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)

REGIMES = {"block": 1, "resident": 2, "sweep": 3, "registers": 5}
DTYPES = {"f64": torch.float64, "f32": torch.float32}
LIMIT = {torch.float64: 1e-9, torch.float32: 2e-4}


@pytest.fixture(params=[None, *REGIMES], ids=str)
def regime(request, monkeypatch):
    monkeypatch.setattr(_device, "regime", REGIMES.get(request.param, 0))
    return request.param


def on_gpu(case: Case, dtype: torch.dtype):
    return [None if t is None else t.detach().cuda().requires_grad_() for t in leaves(case, dtype)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_regime_agrees_with_the_reference(case, dtype, regime, monkeypatch):
    monkeypatch.setattr(test_sinkhorn, "leaves", on_gpu)
    compare(case, DTYPES[dtype])


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
def test_gradients_at_the_fixed_point(grad, regime, monkeypatch):
    monkeypatch.setattr(test_sinkhorn, "leaves", on_gpu)
    compare(Case(14, 9, 0.5, 500, "zeros"), torch.float64, grad)


@pytest.mark.parametrize("m", [5, 8, 131])  # rows that begin where vectors may, and rows that do not
@pytest.mark.parametrize("grad", ["unrolled", "implicit", "envelope"])
def test_gradients_of_rows_that_are_not_aligned(grad, m, regime, monkeypatch):
    monkeypatch.setattr(test_sinkhorn, "leaves", on_gpu)
    compare(Case(7, m, 0.5, 40, "random"), torch.float32, grad)


@pytest.mark.parametrize("size", [(300, 411), (1000, 777), (2500, 2600)], ids=str)
def test_sizes_that_need_the_whole_device(size):
    x, y = torch.randn(size[0], 32, device="cuda"), torch.randn(size[1], 32, device="cuda") + 0.2
    truth = [z.double().requires_grad_() for z in (x, y)]
    ours = [z.clone().requires_grad_() for z in (x, y)]
    want = reference.sinkhorn_loss(*truth, reg=0.1, max_iter=30)
    got = uk.sinkhorn_loss(*ours, reg=0.1, max_iter=30)
    assert distance(got, want) < 1e-5
    for g, w in zip(torch.autograd.grad(got, ours), torch.autograd.grad(want, truth), strict=True):
        assert distance(g, w, 1e-8) < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("metric", METRICS)
def test_losses_of_features(metric, objective, dtype):
    dtype = DTYPES[dtype]
    ours = [torch.randn(n, 17, dtype=dtype, device="cuda").requires_grad_() for n in (33, 40)]
    truth = [z.detach().double().requires_grad_() for z in ours]
    options = {"metric": metric, "objective": objective, "reg": 0.5, "max_iter": 20}
    want, got = reference.sinkhorn_loss(*truth, **options), uk.sinkhorn_loss(*ours, **options)
    assert distance(got, want, 1.0) < LIMIT[dtype]
    for g, w in zip(torch.autograd.grad(got, ours), torch.autograd.grad(want, truth), strict=True):
        assert distance(g, w, 1e-2) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kappa", ["detached", "live"])
@pytest.mark.parametrize("k", [1, 10, 1000, 20_000])
def test_label_transport(k, kappa, dtype):
    dtype = DTYPES[dtype]
    ours = [(3 * torch.randn(65, k, device="cuda")).to(dtype).requires_grad_() for _ in range(2)]
    truth = [z.detach().double().requires_grad_() for z in ours]
    target = torch.randint(k, (65,), device="cuda")
    target[3] = -100
    options = {"kappa": kappa, "label_smoothing": 0.1}
    want = label_reference.label_transport_loss(*truth, target, **options)
    got = uk.label_transport_loss(*ours, target, **options)
    assert distance(got, want, 1.0) < LIMIT[dtype]
    for g, w in zip(torch.autograd.grad(got, ours), torch.autograd.grad(want, truth), strict=True):
        assert distance(g, w, 1e-6) < 10 * LIMIT[dtype]


def both_losses(x, y, logits, target):
    fa = uk.sinkhorn_loss(x, y, reg=0.1, max_iter=20)
    return fa + uk.label_transport_loss(logits, logits.detach() * 0.5, target)


def inputs(seed: int, n: int = 96):
    torch.manual_seed(seed)
    return (
        torch.randn(n, 24, device="cuda"), torch.randn(n + 5, 24, device="cuda"), torch.randn(n, 11, device="cuda"),
        torch.randint(11, (n,), device="cuda"),
    )  # fmt: skip


@pytest.mark.parametrize("n", [64, 700])
def test_nothing_waits_for_the_device(n):
    x, y, logits, target = inputs(0, n)
    leaf = x.requires_grad_()
    both_losses(leaf, y, logits, target).backward()  # what is set up once is set up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both_losses(leaf, y, logits, target).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("n", [64, 700])
def test_a_graph_of_forward_and_backward(n):
    static = inputs(0, n)
    leaf = static[0].requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            torch.autograd.grad(both_losses(leaf, *static[1:]), leaf)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = both_losses(leaf, *static[1:])
        (grad,) = torch.autograd.grad(loss, leaf)
    for seed in (1, 2):
        fresh = inputs(seed, n)
        with torch.no_grad():
            for s, f in zip(static, fresh, strict=True):
                s.copy_(f)
        graph.replay()
        again = fresh[0].requires_grad_()
        want = both_losses(again, *fresh[1:])
        assert torch.equal(loss, want) and torch.equal(grad, torch.autograd.grad(want, again)[0])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(backend):
    if backend == "inductor":
        pytest.importorskip("triton", reason="inductor needs triton")
    x, y, logits, target = inputs(0)
    leaf = x.requires_grad_()
    want = both_losses(leaf, y, logits, target)
    got = torch.compile(both_losses, backend=backend, fullgraph=True)(leaf, y, logits, target)
    assert torch.allclose(got, want, rtol=1e-4)
    assert distance(torch.autograd.grad(got, leaf)[0], torch.autograd.grad(want, leaf)[0]) < 1e-3


def panels(x, y, **options):
    return uk.sinkhorn_loss(x, y, reg=0.1, max_iter=6, memory_budget=len(x) * len(y) * 8, **options)


def test_panels_do_not_wait_and_can_be_captured():
    x, y, _, _ = inputs(0, 300)
    leaf = x.requires_grad_()
    W = torch.rand(len(x), 3, device=x.device, requires_grad=True)
    labels = torch.arange(len(y), device=x.device) % 3
    panels(leaf, y)
    torch.cuda.synchronize()
    ways = [
        {},
        {"tol": 1e-3},
        {"class_cost": W, "y_labels": labels, "metric": "l2"},
        {"accelerate": "relax", "grad": "envelope", "objective": "regularized", "tol": 1e-3},
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for options in ways:
            torch.autograd.grad(panels(leaf, y, **options), leaf)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for options in ways:
        want = panels(leaf, y, **options)
        (grad,) = torch.autograd.grad(want, leaf)
        want = want.detach()  # its graph would tie the captured backward to the stream of now
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = panels(leaf, y, **options)
            (again,) = torch.autograd.grad(loss, leaf)
        graph.replay()
        assert torch.equal(loss, want) and torch.equal(again, grad)


def test_launches_after_the_last_iteration_do_nothing(monkeypatch):
    x, y, _, _ = inputs(0, 200)
    leaf, found = x.requires_grad_(), []
    for blind in (False, True):
        if blind:
            monkeypatch.setattr(DeviceFlag, "seen", lambda self: False)
        loss = uk.sinkhorn_loss(leaf, y, max_iter=200, tol=1e-4, memory_budget=200 * 205 * 8)
        found.append((loss, *torch.autograd.grad(loss, leaf)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_gradient_that_does_not_converge_warns_later():
    x, y, _, _ = inputs(0)
    leaf = x.requires_grad_()
    options = {"grad": "implicit", "reg": 1e-3, "max_iter": 2, "metric": "sqeuclidean"}
    torch.autograd.grad(uk.sinkhorn_loss(leaf, y, **options), leaf)
    torch.cuda.synchronize()
    with pytest.warns(UserWarning, match="did not reach its tolerance"):
        uk.sinkhorn_loss(leaf, y)


def test_rows_of_one_process_over_nccl(tmp_path):
    if not torch.distributed.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        x, y, _, _ = inputs(0)
        got = uk.sinkhorn_loss(x, y, group=torch.distributed.group.WORLD)
        assert distance(got, uk.sinkhorn_loss(x, y)) < 1e-5
    finally:
        torch.distributed.destroy_process_group()


def test_streams_and_repeats_give_the_same_bits(regime):
    x, y, _, _ = inputs(0)
    want = uk.sinkhorn_loss(x, y, reg=0.05)
    torch.cuda.synchronize()
    found = []
    for stream in [torch.cuda.Stream() for _ in range(4)]:
        with torch.cuda.stream(stream):
            found += [uk.sinkhorn_loss(x, y, reg=0.05) for _ in range(3)]
    torch.cuda.synchronize()
    assert all(torch.equal(f, want) for f in found)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_a_device_that_is_not_current():
    x, y, _, _ = inputs(0)
    assert torch.equal(uk.sinkhorn_loss(x.to("cuda:1"), y.to("cuda:1")).cpu(), uk.sinkhorn_loss(x, y).cpu())
    assert torch.cuda.current_device() == 0


def test_refused_input_is_told_when_it_is_read():
    C = torch.tensor([[1.0, float("nan")]], device="cuda")
    s = uk.sinkhorn(C)
    assert s.value.isnan()
    with pytest.raises(ValueError, match="NaN"):
        s.check()
