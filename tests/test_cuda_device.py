"""The CUDA kernels on a GPU: what the execution model cannot show. `benchmarks/gpu_check.sh` runs it first."""

from __future__ import annotations

import pytest
import test_sinkhorn
import test_unbalanced
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

DEVICE = "cuda"
REGIMES = {"block": 1, "resident": 2, "sweep": 3, "registers": 5, "cluster": 6}
DTYPES = {"f64": torch.float64, "f32": torch.float32}
LIMIT = {torch.float64: 1e-9, torch.float32: 2e-4}


@pytest.fixture(params=[None, *REGIMES], ids=str)
def regime(request, monkeypatch):
    monkeypatch.setattr(_device, "regime", REGIMES.get(request.param, 0))
    if request.param == "cluster":
        request.getfixturevalue("clusters")
    return request.param


@pytest.fixture
def clusters(monkeypatch):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters need compute capability 9.0")
    monkeypatch.setattr(_device, "clusters", True)


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


def unbalanced_on_gpu(monkeypatch):
    made = test_unbalanced.problem

    def problem(case, dtype=torch.float64):
        tensors, unit = made(case, dtype)
        return [None if z is None else z.detach().cuda().requires_grad_() for z in tensors], unit

    monkeypatch.setattr(test_unbalanced, "problem", problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rho", test_unbalanced.RHOS, ids=str)
@pytest.mark.parametrize("case", [*test_unbalanced.HARD, Case(300, 257, 0.1, 20, "zeros")], ids=str)
@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
def test_unbalanced_transport(case, rho, dtype, regime, monkeypatch):
    unbalanced_on_gpu(monkeypatch)
    test_unbalanced.compare(case, rho, DTYPES[dtype])
    test_unbalanced.compare(case, rho, DTYPES[dtype], tol=1e-30)  # shifted between iterations


@pytest.mark.parametrize("rho", [(0.1, 0.1), (1.0, 4.0), (100.0, 100.0), (float("inf"), 0.3)], ids=str)
@pytest.mark.parametrize("grad", ["implicit", "envelope"])
def test_unbalanced_gradients_at_the_fixed_point(grad, rho, regime, monkeypatch):
    unbalanced_on_gpu(monkeypatch)
    test_unbalanced.test_gradients_at_the_fixed_point(grad, rho, "zeros")


def agree(n, m, grad, dtype):
    """Value and gradient of a given cost against the reference in float64."""
    cost = torch.rand(n, m, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(DEVICE, dtype)
    reg, steps = (0.5, 300) if grad == "implicit" else (0.1, 30)
    found = []
    for solver, C in ((reference.sinkhorn, cost.double()), (uk.sinkhorn, cost)):
        leaf = C.clone().requires_grad_()
        value = solver(leaf, reg=reg, max_iter=steps, grad=grad).value_regularized
        found.append((value, *torch.autograd.grad(value, leaf)))
    for want, got in zip(*found, strict=True):
        assert distance(got, want) < (1e-9 if dtype == torch.float64 else 1e-4)


# Where so many blocks have no room for the cost, another regime runs.
@pytest.mark.parametrize("grid", [0, 2, 8, 16])
@pytest.mark.parametrize("grad", ["unrolled", "implicit"])
@pytest.mark.parametrize("size", [(129, 200), (200, 129), (256, 256), (411, 300), (511, 640)], ids=str)
def test_clusters_of_any_size(size, grad, grid, clusters, monkeypatch):
    monkeypatch.setattr(_device, "regime", REGIMES["cluster"])
    monkeypatch.setattr(_device, "tuning", {"grid": grid} if grid else {})
    agree(*size, grad, torch.float32)


@pytest.mark.parametrize("size", [(129, 129), (200, 250)], ids=str)
def test_clusters_of_doubles(size, clusters, monkeypatch):
    monkeypatch.setattr(_device, "regime", REGIMES["cluster"])
    agree(*size, "unrolled", torch.float64)


@pytest.mark.parametrize("count", [1, 5, 40])  # more than run at a time
def test_each_problem_of_a_batch_has_its_cluster(count, clusters, monkeypatch):
    C = torch.rand(count, 200, 256, device=DEVICE)
    found = []
    for regime in (REGIMES["cluster"], REGIMES["resident"]):
        monkeypatch.setattr(_device, "regime", regime)
        leaf = C.clone().requires_grad_()
        value = uk.sinkhorn(leaf, max_iter=30).value
        found.append((value, *torch.autograd.grad(value.sum(), leaf)))
    for got, want in zip(*found, strict=True):
        assert distance(got, want) < 1e-4


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
    """The loss with memory for less than the cost and its gradient."""
    budget = len(x) * len(y) * 4
    return uk.sinkhorn_loss(x, y, **{"reg": 0.1, "max_iter": 6, **options}, memory_budget=budget)


@pytest.fixture
def visits(monkeypatch):
    """Of every streamed sweep, whether tensor cores multiply."""
    found, entry = [], _device.kernels.cuda_streamed

    def run(call, visit, features):
        found.append(visit.tensor_cores)
        entry(call, visit, features)

    monkeypatch.setattr(_device.kernels, "cuda_streamed", run)
    return found


def features(n, m, d, dtype, near=0):
    """Rows in the same places for each type; ``near`` rows of y are rows of x."""
    generator = torch.Generator().manual_seed(n + d)
    x, y = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    y[:near] = x[n - near :]
    return [z.to(DEVICE, dtype).requires_grad_() for z in (x, y)]


def agree_on_features(tensors, limit, grad_limit, **options):
    """Of costs that do not fit: loss and gradients against the reference in float64."""
    options = {"max_iter": 10, **options}
    truth = [z.detach().double().requires_grad_() for z in tensors]
    want, got = reference.sinkhorn_loss(*truth, **options), panels(*tensors, **options)
    assert distance(got, want) < limit
    for g, w in zip(torch.autograd.grad(got, tensors), torch.autograd.grad(want, truth), strict=True):
        assert distance(g, w) < grad_limit


STREAMED = [(300, 257, 3), (129, 1000, 17), (64, 65, 40), (700, 650, 90)]


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "panels"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", STREAMED, ids=str)
def test_costs_that_do_not_fit(size, metric, dtype, streamed, visits, monkeypatch):
    monkeypatch.setattr(_device, "streamed", streamed)
    dtype = DTYPES[dtype]
    limits = (1e-10, 1e-8) if dtype == torch.float64 else (2e-5, 2e-4)
    reg = (0.1 if metric in ("cosine", "chordal") else 2.0) * size[2] / 4
    agree_on_features(features(*size, dtype, near=20), *limits, metric=metric, reg=reg)
    assert set(visits) == ({False} if streamed else set())


@pytest.mark.parametrize("cores", [False, True], ids=["threads", "tensor cores"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("metric", ["cosine", "chordal", "l2", "sqeuclidean"])
@pytest.mark.parametrize("size", [*STREAMED, (256, 256, 512)], ids=str)
def test_streamed_sweeps_of_half_precision(size, metric, half, cores, visits, monkeypatch):
    monkeypatch.setattr(_device, "streamed", True)
    monkeypatch.setattr(_device, "tensor_cores", cores)
    reg = (0.1 if metric in ("cosine", "chordal") else 2.0) * max(size[2] / 4, 4)
    agree_on_features(features(*size, half, near=20), 2e-5, 1e-2, metric=metric, reg=reg)
    assert set(visits) == {cores}


def test_streamed_sweeps_with_a_cost_by_class(visits, monkeypatch):
    monkeypatch.setattr(_device, "streamed", True)
    found = []
    for dtype, loss in ((torch.float64, reference.sinkhorn_loss), (torch.float32, panels)):
        x, y = features(260, 131, 12, dtype)
        W = torch.linspace(0, 2, 260 * 5, dtype=dtype, device=DEVICE).view(260, 5).requires_grad_()
        labels = torch.arange(131, device=DEVICE) % 5
        value = loss(x, y, class_cost=W, y_labels=labels, metric="l2", reg=2.0, max_iter=10)
        found.append((value, *torch.autograd.grad(value, (x, y, W))))
    for want, got in zip(*found, strict=True):
        assert distance(got, want) < 2e-4
    assert set(visits) == {False}


WAYS = {
    "panels": (False, False, torch.float32),
    "streamed": (True, False, torch.float32),
    "tensor cores": (True, True, torch.bfloat16),
}


@pytest.mark.parametrize("way", WAYS)
def test_costs_that_do_not_fit_do_not_wait_and_can_be_captured(way, visits, monkeypatch):
    streamed, cores, dtype = WAYS[way]
    monkeypatch.setattr(_device, "streamed", streamed)
    monkeypatch.setattr(_device, "tensor_cores", cores)
    x, y = (z.to(dtype) for z in inputs(0, 300)[:2])
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
    assert set(visits) == ({cores} if streamed else set())


@pytest.mark.parametrize("streamed", [False, True], ids=["panels", "streamed"])
def test_launches_after_the_last_iteration_do_nothing(streamed, monkeypatch):
    monkeypatch.setattr(_device, "streamed", streamed)
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
