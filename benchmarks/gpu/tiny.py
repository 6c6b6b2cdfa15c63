"""Tiny cases of every kernel for compute-sanitizer, which slows them a hundredfold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device

MARK = "\x1e"


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> None:
    torch.autograd.grad(loss, leaves)
    torch.cuda.synchronize()


def solve(n: int, m: int, regime: int, dtype: torch.dtype, grad: str) -> None:
    _device.regime = regime
    C = torch.rand(n, m, device="cuda", dtype=dtype).requires_grad_()
    a = torch.rand(n, device="cuda", dtype=dtype)
    a[0] = 0
    gradients(uk.sinkhorn(C, a / a.sum(), reg=0.2, max_iter=3, grad=grad).value_regularized, C)


def features(n: int, m: int, **options) -> None:
    _device.regime = 0
    x, y = (torch.randn(k, 9, device="cuda").requires_grad_() for k in (n, m))
    gradients(uk.sinkhorn_loss(x, y, reg=0.2, max_iter=3, **options), x, y)


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
        for regime in (0, 1, 2, 3) if dtype == torch.float32 else (1, 2):
            for n, m in ((7, 5), (64, 64), (33, 140), (150, 260)):
                for grad in ("unrolled", "implicit") if n == 7 else ("unrolled",):
                    name = f"{n}x{m} regime {regime} {str(dtype)[6:]} {grad}"
                    ends.append(told(name, solve, n, m, regime, dtype, grad))
        for k in (1, 10, 130, 1000, 1100):
            ends.append(told(f"label 5x{k} {str(dtype)[6:]}", label, 5, k, dtype))
    for metric in ("cosine", "l2", "l1"):
        ends.append(told(f"features {metric}", features, 40, 35, metric=metric))
        ends.append(told(f"panels {metric}", features, 70, 65, metric=metric, memory_budget=70 * 65 * 8))
    return ends.count(False)


if __name__ == "__main__":
    raise SystemExit(3 if main() else 0)
