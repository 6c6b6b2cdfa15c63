"""Tiny cases of every kernel for compute-sanitizer, which slows them a hundredfold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from overrides import no_clusters, overridden

import ucmkd_fast as uk

MARK = "\x1e"
CLUSTER = 6


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> None:
    torch.autograd.grad(loss, leaves)
    torch.cuda.synchronize()


def solve(n: int, m: int, regime: int, dtype: torch.dtype, grad: str) -> None:
    C = torch.rand(n, m, device="cuda", dtype=dtype).requires_grad_()
    a = torch.rand(n, device="cuda", dtype=dtype)
    a[0] = 0
    with overridden(regime=regime, clusters=regime == CLUSTER):
        gradients(uk.sinkhorn(C, a / a.sum(), reg=0.2, max_iter=3, grad=grad).value_regularized, C)


def features(n: int, m: int, dtype: torch.dtype = torch.float32, **options) -> None:
    x, y = (torch.randn(k, 9, device="cuda").to(dtype).requires_grad_() for k in (n, m))
    gradients(uk.sinkhorn_loss(x, y, reg=0.2, max_iter=3, **options), x, y)


def large(streamed: bool, tensor_cores: bool, dtype: torch.dtype, metric: str) -> None:
    """A loss whose cost does not fit, by one way or the other."""
    with overridden(streamed=streamed, tensor_cores=tensor_cores):
        features(140, 135, dtype, metric=metric, memory_budget=140 * 135 * 4)


def label(n: int, k: int, dtype: torch.dtype) -> None:
    s, t = (torch.randn(n, k, device="cuda", dtype=dtype).requires_grad_() for _ in range(2))
    gradients(uk.label_transport_loss(s, t, torch.arange(n, device="cuda") % k, kappa="live"), s, t)


def told(name: str, case: Callable[..., None], *args: Any, **options: Any) -> bool:
    """Whether the case ran to its end."""
    try:
        case(*args, **options)
    except Exception as error:  # the other cases go on
        print(MARK + f"{name}: {type(error).__name__}: {error}".splitlines()[0], flush=True)
        return False
    print(MARK + name, flush=True)
    return True


def main() -> int:
    """How many cases raised."""
    torch.manual_seed(0)
    ends: list[bool] = []
    for dtype in (torch.float32, torch.float64):
        regimes = (0, 1, 2, 3) if dtype == torch.float32 else (1, 2)
        for regime in regimes if no_clusters() else (*regimes, CLUSTER):
            for n, m in ((7, 5), (64, 64), (33, 140), (150, 260)):
                for grad in ("unrolled", "implicit") if n == 7 else ("unrolled",):
                    name = f"{n}x{m} regime {regime} {str(dtype)[6:]} {grad}"
                    ends.append(told(name, solve, n, m, regime, dtype, grad))
        for k in (1, 10, 130, 1000, 1100):
            ends.append(told(f"label 5x{k} {str(dtype)[6:]}", label, 5, k, dtype))
    for metric in ("cosine", "l2", "l1"):
        ends.append(told(f"features {metric}", features, 40, 35, metric=metric))
        ends.append(told(f"panels {metric}", large, False, False, torch.float32, metric))
        ends.append(told(f"streamed {metric}", large, True, False, torch.float32, metric))
    for metric in ("cosine", "l2"):
        ends.append(told(f"streamed {metric} bfloat16", large, True, False, torch.bfloat16, metric))
        ends.append(told(f"tensor cores {metric} bfloat16", large, True, True, torch.bfloat16, metric))
    return ends.count(False)


if __name__ == "__main__":
    raise SystemExit(3 if main() else 0)
