"""What smoke tries: results and gradients on the device against the reference in float64, beside their limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from overrides import overridden
from torch import Tensor

import ucmkd_fast as uk
from ucmkd_fast.reference import label_transport as label_reference
from ucmkd_fast.reference import sinkhorn as reference

REGIMES = {"auto": 0, "block": 1, "resident": 2, "sweep": 3, "cluster": 6}
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
    **more: Any,
) -> dict[str, Any]:
    """Error at most twice that of plain torch at the same dtype, and a floor: the rule of tests/test_sinkhorn.py."""
    tensors = problem(n, m, dtype, masses)
    options = {
        "reg": 0.5 if grad == "implicit" else 0.1,
        "max_iter": 300 if grad == "implicit" else 30,
        "grad": grad,
        **more,
    }
    wide = [None if z is None else z.double() for z in tensors]
    where = (
        DEVICE if n * m > 100_000 else "cpu"
    )  # torch in double is as good a reference on a GPU, and quick there
    want, wants = solved(reference.sinkhorn, wide, options, where)
    plain, plains = solved(reference.sinkhorn, tensors, options, where)
    with overridden(regime=REGIMES[regime]):
        got, gots = solved(uk.sinkhorn, tensors, options, DEVICE)
    pairs = {"value": (distance(got, want), 2 * distance(plain, want) + FLOOR[dtype])}
    pairs["gradient"] = (
        distance(gots[0], wants[0]), 2 * min(distance(plains[0], wants[0]), 1) + 30 * FLOOR[dtype],
    )  # fmt: skip
    return verdict(**pairs)


def loss(n: int, m: int, dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    """`sinkhorn_loss` of features; ``memory_budget`` takes it through panels."""
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
