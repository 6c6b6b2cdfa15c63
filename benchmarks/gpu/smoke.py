"""One small problem per regime, dtype and kind of gradient against the reference in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from worker import Case

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device
from ucmkd_fast.reference import label_transport as label_reference
from ucmkd_fast.reference import sinkhorn as reference

REGIMES = {"auto": 0, "block": 1, "resident": 2, "sweep": 3}
DTYPES = {"f32": torch.float32, "f64": torch.float64}
FLOOR = {torch.float64: 1e-9, torch.float32: 3e-6}
WIDE_LIMIT = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 3e-2}
DEVICE = "cuda"


def distance(got: Tensor, want: Tensor, scale: float = 1e-6) -> float:
    """Largest difference over the largest entry; NaN counts as infinite."""
    error = (got.detach().to(want.device).double() - want.detach().double()).abs().max().item()
    return math.inf if math.isnan(error) else error / max(want.abs().max().item(), scale)


def verdict(**pairs: tuple[float, float]) -> dict[str, Any]:
    """Errors beside their limits; ``failed`` names those beyond."""
    found: dict[str, Any] = {f"{name}_error": error for name, (error, _) in pairs.items()}
    found |= {f"{name}_limit": limit for name, (_, limit) in pairs.items()}
    beyond = [name for name, (error, limit) in pairs.items() if not error <= limit]
    return {**found, "failed": f"beyond the limit: {', '.join(beyond)}"} if beyond else found


def problem(n: int, m: int, dtype: torch.dtype, masses: bool) -> list[Tensor | None]:
    torch.manual_seed(1000 * n + m)
    C = torch.rand(n, m, dtype=torch.float64)
    a, b = torch.rand(n, dtype=torch.float64) + 0.1, torch.rand(m, dtype=torch.float64) + 0.1
    a[1::3], b[2::4] = 0, 0
    found = [C.float().double(), *((z / z.sum() for z in (a, b)) if masses else (None, None))]
    return [None if z is None else z.to(dtype) for z in found]


def solved(solver: Callable[..., Any], tensors: list[Tensor | None], options: dict[str, Any], device: str):
    """Value and gradients of the cost and of the masses."""
    leaves = [None if z is None else z.to(device).requires_grad_() for z in tensors]
    value = solver(*leaves, **options).value_regularized
    return value, torch.autograd.grad(value, [z for z in leaves if z is not None])


def solve(
    n: int,
    m: int,
    regime: str,
    dtype: torch.dtype,
    grad: str,
    masses: bool = False,
    own_barrier: bool = True,
) -> dict[str, Any]:
    """Error at most twice that of plain torch at the same dtype, and a floor: the rule of tests/test_sinkhorn.py."""
    _device.regime = REGIMES[regime]
    _device.own_barrier = own_barrier
    tensors = problem(n, m, dtype, masses)
    options = {
        "reg": 0.5 if grad == "implicit" else 0.1,
        "max_iter": 300 if grad == "implicit" else 30,
        "grad": grad,
    }
    wide = [None if z is None else z.double() for z in tensors]
    where = (
        DEVICE if n * m > 100_000 else "cpu"
    )  # torch in double is as good a reference on a GPU, and quick there
    want, wants = solved(reference.sinkhorn, wide, options, where)
    plain, plains = solved(reference.sinkhorn, tensors, options, where)
    got, gots = solved(uk.sinkhorn, tensors, options, DEVICE)
    pairs = {"value": (distance(got, want), 2 * distance(plain, want) + FLOOR[dtype])}
    pairs["gradient"] = (
        distance(gots[0], wants[0]), 2 * min(distance(plains[0], wants[0]), 1) + 30 * FLOOR[dtype],
    )  # fmt: skip
    return verdict(**pairs)


def loss(n: int, m: int, dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    """`sinkhorn_loss` of features; ``memory_budget`` takes it through panels."""
    _device.regime = 0
    torch.manual_seed(n)
    tensors = [torch.randn(k, 24).to(dtype) for k in (n, m)]
    tensors[1] = tensors[1] + 0.2
    ours, truth = (
        [z.to(DEVICE).requires_grad_() for z in tensors],
        [z.double().requires_grad_() for z in tensors],
    )
    rest = {k: v for k, v in options.items() if k != "memory_budget"}
    got, want = uk.sinkhorn_loss(*ours, **options), reference.sinkhorn_loss(*truth, **rest)
    gots, wants = torch.autograd.grad(got, ours), torch.autograd.grad(want, truth)
    limit = WIDE_LIMIT[dtype]
    worst = max(distance(g, w, 1e-6) for g, w in zip(gots, wants, strict=True))
    return verdict(value=(distance(got, want), limit), gradient=(worst, 10 * limit))


def label(n: int, k: int, dtype: torch.dtype, kappa: str) -> dict[str, Any]:
    torch.manual_seed(k)
    tensors = [(3 * torch.randn(n, k)).to(dtype) for _ in range(2)]
    target = torch.randint(k, (n,))
    target[3] = -100
    ours, truth = (
        [z.to(DEVICE).requires_grad_() for z in tensors],
        [z.double().requires_grad_() for z in tensors],
    )
    options = {"kappa": kappa, "label_smoothing": 0.1}
    got = uk.label_transport_loss(*ours, target.to(DEVICE), **options)
    want = label_reference.label_transport_loss(*truth, target, **options)
    gots = torch.autograd.grad(got, ours, allow_unused=True)
    wants = torch.autograd.grad(want, truth, allow_unused=True)
    pairs = [(g, w) for g, w in zip(gots, wants, strict=True) if w is not None]
    limit = WIDE_LIMIT[dtype]
    worst = max(distance(g, w) for g, w in pairs)
    return verdict(value=(distance(got, want, 1.0), limit), gradient=(worst, 10 * limit))


def linear(n: int, k: int, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(k)
    z, A, B = torch.randn(n, 16, dtype=dtype), *(torch.randn(k, 16, dtype=dtype) for _ in range(2))
    target = torch.randint(k, (n,))
    ours = [t.to(DEVICE).requires_grad_() for t in (z, A, B)]
    truth = [t.double().requires_grad_() for t in (z, A, B)]
    got = uk.linear_label_transport_loss(ours[0], ours[1], None, ours[2], None, target.to(DEVICE))
    want = label_reference.label_transport_loss(truth[0] @ truth[1].T, truth[0] @ truth[2].T, target)
    gots, wants = torch.autograd.grad(got, ours[:2]), torch.autograd.grad(want, truth[:2])
    worst = max(distance(g, w) for g, w in zip(gots, wants, strict=True))
    return verdict(
        value=(distance(got, want, 1.0), WIDE_LIMIT[dtype]), gradient=(worst, 10 * WIDE_LIMIT[dtype])
    )


def batch(count: int, n: int, m: int) -> dict[str, Any]:
    """Problems together are problems one by one."""
    torch.manual_seed(count)
    _device.regime = 0
    C = torch.rand(count, n, m, device=DEVICE)
    leaf = C.clone().requires_grad_()
    value = uk.sinkhorn(leaf, max_iter=30).value
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    worst, of_gradient = 0.0, 0.0
    for k in {0, count // 2, count - 1}:
        one = C[k].cpu().double().requires_grad_()
        want = reference.sinkhorn(one, max_iter=30).value
        worst = max(worst, distance(value[k], want))
        of_gradient = max(of_gradient, distance(grad[k], torch.autograd.grad(want, one)[0]))
    return verdict(value=(worst, 3e-5), gradient=(of_gradient, 3e-4))


def captured(n: int, m: int) -> dict[str, Any]:
    """A graph's replay on other numbers gives the bits of the call."""
    _device.regime = 0
    first, second = (torch.rand(n, m, device=DEVICE) for _ in range(2))
    static = first.clone().requires_grad_()

    def run(C: Tensor) -> tuple[Tensor, Tensor]:
        value = uk.sinkhorn(C, max_iter=20).value
        return value.detach(), torch.autograd.grad(value, C)[0]

    run(static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, grad = run(static)
    with torch.no_grad():
        static.copy_(second)
    graph.replay()
    want, wanted = run(second.requires_grad_())
    same = torch.equal(value, want) and torch.equal(grad, wanted)
    return {"same_bits": same, **({} if same else {"failed": f"differs by {distance(grad, wanted)}"})}


def refused() -> dict[str, Any]:
    C = torch.tensor([[1.0, float("nan")]], device=DEVICE)
    told = uk.sinkhorn(C)
    try:
        told.check()
    except ValueError as error:
        return {"told": str(error)[:80], **({} if told.value.isnan() else {"failed": "the value is not NaN"})}
    return {"failed": "NaN in the cost was taken"}


def environment() -> dict[str, Any]:
    built = {k: str(v) for k, v in uk._native._C.build_info().items()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name, "capability": f"{properties.major}.{properties.minor}", "torch": torch.__version__,
        "multiprocessors": properties.multi_processor_count, **built,
    }  # fmt: skip


def switches() -> list[Case]:
    """What is not the default."""
    found = []
    for n, m in ((33, 20), (130, 257), (1024, 1024), (2100, 2048)):
        for regime in ("resident", "sweep"):
            run = partial(solve, n, m, regime, torch.float32, "unrolled", n < 1000, own_barrier=False)
            found.append(Case(f"{n}x{m} {regime} f32, library barrier", run, 30))
    return found


def cases() -> list[Case]:
    found = [Case("device and build", environment)]
    for name, dtype in DTYPES.items():
        for regime in REGIMES:
            for grad in ("unrolled", "implicit", "envelope"):
                run = partial(solve, 33, 20, regime, dtype, grad, grad == "unrolled")
                found.append(Case(f"33x20 {regime} {name} {grad}", run, 30))
            larger = partial(solve, 130, 257, regime, dtype, "unrolled", True)
            found.append(Case(f"130x257 {regime} {name}", larger, 30))
    sizes = [(64, 64), (128, 128), (256, 256), (512, 512), (1024, 1024), (700, 1001), (2100, 2048)]
    for n, m in sizes:
        found.append(Case(f"{n}x{m} auto f32", partial(solve, n, m, "auto", torch.float32, "unrolled"), 60))
        if n <= 1024:
            found.append(
                Case(f"{n}x{m} sweep f32", partial(solve, n, m, "sweep", torch.float32, "unrolled"), 60)
            )
    for n, m in ((1, 9), (97, 128), (127, 65), (300, 5001), (64, 20_000)):
        found.append(
            Case(f"{n}x{m} auto f32", partial(solve, n, m, "auto", torch.float32, "unrolled", True), 60)
        )
    for count, n, m in ((256, 64, 64), (3, 300, 200), (7, 64, 33)):
        found.append(Case(f"batch of {count}, {n}x{m}", partial(batch, count, n, m)))
    half = {**DTYPES, "bf16": torch.bfloat16}
    for name, dtype in half.items():
        found.append(Case(f"loss 130x96 {name}", partial(loss, 130, 96, dtype, max_iter=20)))
        panels = partial(loss, 300, 257, dtype, max_iter=10, memory_budget=300 * 257 * 8)
        found.append(Case(f"panels 300x257 {name}", panels))
    for metric in ("l2", "sqeuclidean", "l1", "chordal"):
        run = partial(loss, 130, 96, torch.float32, max_iter=20, metric=metric, reg=0.5)
        found.append(Case(f"loss 130x96 {metric}", run))
    for name, dtype in DTYPES.items():
        for k in (1, 10, 1000, 1001, 20_000):
            kappa = "live" if k == 1000 else "detached"
            found.append(Case(f"label 65x{k} {name} {kappa}", partial(label, 65, k, dtype, kappa)))
        found.append(Case(f"linear label 300x501 {name}", partial(linear, 300, 501, dtype)))
    found += [
        Case(f"graph {n}x{m}", partial(captured, n, m)) for n, m in ((64, 64), (300, 411), (2100, 2048))
    ]
    found.append(Case("NaN is refused", refused))
    return found + switches()
