"""Peers beside ours, each in its own process: the value is compared before anything is timed."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import ITERATIONS, REG, features, kernel_microseconds, milliseconds, ours, peak_megabytes
from page_targets import RATIOS
from worker import Case

import ucmkd_fast as uk
from ucmkd_fast.bench import peers

ROOT = Path(__file__).parents[2]
# Configurations of flash-sinkhorn's tuning, for each of its kernels, up to so many rows: each takes seconds to compile,
# and is run many times.
CONFIGURATIONS = {512: 12, 1024: 3, 1 << 30: 2}


def configurations(n: int) -> int:
    """How many for a problem of n rows."""
    return next(count for rows, count in CONFIGURATIONS.items() if n <= rows)


def unpack() -> None:
    """Put what the wheels hold on the path, once per folder of wheels."""
    wheels = sorted(Path(os.environ.get("WHEELS", ROOT / "runs/whl")).glob("*.whl"))
    for wheel in wheels:
        place = ROOT / "build/peers" / wheel.stem
        if not place.exists():
            beside = place.with_suffix(f".{os.getpid()}")
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(beside)
            beside.rename(place)
        sys.path.append(str(place))


def cut_tuning(count: int) -> None:
    """flash-sinkhorn tries up to 124 configurations at first use: leave some, spread over its list."""
    import triton

    whole = triton.autotune

    def few(configs: Any, key: Any, **options: Any) -> Any:
        step = max(1, len(configs) // count)
        return whole(configs=list(configs)[::step][:count], key=key, **options)

    triton.autotune = few


def geomloss(reg: float, iterations: int) -> Callable[..., peers.Result]:
    """GeomLoss on the same cost, with its own annealing in the place of a number of iterations."""
    return peers.with_gradient(peers.geomloss(reg))


def flash_sinkhorn(reg: float, iterations: int) -> Callable[..., peers.Result]:
    """flash-sinkhorn (read at 0.4.1) on |x^ - y^|^2 / 2, which is the cosine cost, with as many iterations.

    Its value is the dual one and its gradient the plan's, as of `sinkhorn_loss` with ``"regularized"`` and
    ``"envelope"``. Its products are in TF32, its default.
    """
    from flash_sinkhorn import SamplesLoss

    loss = SamplesLoss(
        "sinkhorn", p=2, half_cost=True, backend="alternating", use_epsilon_scaling=False, eps=reg, n_iters=iterations,
    )  # fmt: skip
    return peers.with_gradient(lambda x, y: loss(F.normalize(x, dim=1), F.normalize(y, dim=1)))


DUAL = {"objective": "regularized", "grad": "envelope"}
# name -> (maker, package, what of ours it is the same as, most that the value may differ by)
TRANSPORT: dict[str, tuple[Any, str, dict[str, str], float]] = {
    "published code's call": (peers.pot_sinkhorn2, "ot", {}, 1e-3),
    "flash-sinkhorn": (flash_sinkhorn, "flash_sinkhorn", DUAL, 2e-2),
    "geomloss": (geomloss, "geomloss", DUAL, 5e-2),
    "compiled torch": (peers.compiled, "triton", {}, 1e-3),
}


def transport(name: str, n: int) -> dict[str, Any]:
    """Loss and gradient of x, D = 512; ours as the peer computes it, and as it is by default."""
    unpack()
    make, package, same, limit = TRANSPORT[name]
    if not peers.available(package):
        return {"left_out": f"{package} is not here"}
    x, y = features(n)
    if name == "flash-sinkhorn":
        cut_tuning(configurations(n))
    call = make(REG, ITERATIONS)
    (value, grad), (want, wanted) = call(x, y), ours(x, y, **same)
    found: dict[str, Any] = {
        "value_differs": abs((value / want).item() - 1),
        "gradient_differs": ((grad - wanted).norm() / wanted.norm()).item(),
    }
    if not found["value_differs"] <= limit:
        return {**found, "failed": f"the value differs by more than {limit}: not timed"}
    found["ms"] = milliseconds(lambda: call(x, y), 1.5, warm=2)
    found["ours_ms"] = milliseconds(lambda: ours(x, y))
    found["ratio"] = found["ms"] / found["ours_ms"]
    if target := RATIOS.get(name, {}).get(n):
        found["target"] = target
    if name == "flash-sinkhorn":
        found["configurations"] = configurations(n)
    if same:
        found["ours_alike_ms"] = milliseconds(lambda: ours(x, y, **same))
    found["device_ms"] = sum(kernel_microseconds(lambda: call(x, y), 1).values()) / 1e3
    found["peak_mb"], found["ours_peak_mb"] = (
        peak_megabytes(lambda: call(x, y)),
        peak_megabytes(lambda: ours(x, y)),
    )
    return found


def jensen_shannon(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the Jensen-Shannon divergence of two rows of logits."""
    p, q = s.float().log_softmax(1), t.float().log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.tensor(2.0, device=s.device).log()
    return ((p.exp() * (p - middle) + q.exp() * (q - middle)).sum(1) / 2).mean()


def liger(n: int, d: int, k: int, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Liger's losses of linear heads beside ours: one head, cross-entropy; two heads, Jensen-Shannon."""
    unpack()
    if not peers.available("liger_kernel"):
        yield {"left_out": "liger_kernel is not here"}
        return
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    torch.manual_seed(0)
    z, A, B = (torch.randn(s, d, device="cuda", dtype=dtype) / d**0.25 for s in (n, k, k))
    target = torch.randint(k, (n,), device="cuda")
    leaves = [z.requires_grad_(), A.requires_grad_()]
    entropy, divergence = LigerFusedLinearCrossEntropyLoss(), LigerFusedLinearJSD()
    ways = {
        "Liger cross-entropy, one head": (
            lambda: entropy(A, z, target),
            lambda: F.cross_entropy((z @ A.T).float(), target),
        ),
        "Liger JSD, two heads": (
            lambda: divergence(z, A, z.detach(), B, None),
            lambda: jensen_shannon(z @ A.T, z @ B.T),
        ),
        "our label transport, two heads": (
            lambda: uk.linear_label_transport_loss(z, A, None, B, None, target),
            lambda: uk.label_transport_loss((z @ A.T).float(), (z @ B.T).float(), target),
        ),
    }
    for name, (loss, plain) in ways.items():

        def both(loss=loss) -> Any:
            return torch.autograd.grad(loss(), leaves)

        with torch.no_grad():
            want = plain().item()
        differs = abs(loss().item() - want) / max(abs(want), 1e-3)
        row = {"case": f"{name}, {n} x {d} x {k} {str(dtype)[6:]}", "value_differs": differs}
        if not differs <= 2e-2:
            yield {**row, "failed": "the value differs: not timed"}
            continue
        yield {**row, "ms": milliseconds(both, warm=2), "peak_mb": peak_megabytes(both)}


def of(name: str, *sizes: int, limit: float = 60) -> list[Case]:
    return [Case(f"{name}, N = {n}", partial(transport, name, n), limit, alone=True) for n in sizes]


def cases() -> list[Case]:
    """What has no figures yet comes first, as the mode's time may run out; within it, what takes longest comes last."""
    heads = [
        Case("Liger", partial(liger, 8192, 1024, 32_000, dtype), 90, alone=True)
        for dtype in (torch.bfloat16, torch.float32)
    ]
    return [
        *of("geomloss", 64, 1024, 4096),
        *heads,
        *of("compiled torch", 64, 1024, limit=90),
        *of("flash-sinkhorn", 1024, 2048, 4096, limit=90),
        *of("published code's call", 64, 1024, 2048, 4096),
        *of("flash-sinkhorn", 64, limit=150),
        *of("flash-sinkhorn", 16384, limit=90),
    ]
