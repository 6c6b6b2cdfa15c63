"""How fast: the card, its limits, then every kernel of ours beside them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import speed_switches
import torch
from measure import (
    ITERATIONS,
    REG,
    copy_bandwidth,
    features,
    floor_microseconds,
    kernel_microseconds,
    milliseconds,
    ours,
    peak_megabytes,
    replay_milliseconds,
)
from overrides import no_early_end, overridden
from worker import Case

import ucmkd_fast as uk

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def card() -> dict[str, Any]:
    """Name, driver, clocks and power as they are; nothing is set."""
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    ask = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        told = str(error)
    return {"gpu": torch.cuda.get_device_name(), fields: told, "torch": torch.__version__}


def limits() -> Iterator[dict[str, Any]]:
    yield {"case": "copy of 1 GiB", "gb_s": copy_bandwidth() / 1e9}
    small = torch.zeros(32, device="cuda")

    def many() -> None:
        for _ in range(100):
            small.add_(1)

    eager, replayed = 10 * milliseconds(many), 10 * replay_milliseconds(many)
    yield {"case": "a launch of torch", "eager_us": eager, "in_graph_us": replayed}


def by_kind(kernels: dict[str, float]) -> dict[str, float]:
    """Microseconds of forward, adjoint, gradient and the rest; names as in csrc/sinkhorn."""
    found: dict[str, float] = {}
    for name, spent in kernels.items():
        kind = next((k for k in ("adjoint", "gradient", "others") if k in name), "forward")
        found[kind] = found.get(kind, 0.0) + spent
    return found


def value_and_gradient(C: torch.Tensor, iterations: int) -> torch.Tensor:
    """Gradient of a given cost."""
    leaf = C.detach().requires_grad_()
    return torch.autograd.grad(uk.sinkhorn(leaf, reg=REG, max_iter=iterations).value, leaf)[0]


def forward_only(C: torch.Tensor, iterations: int) -> float:
    """Microseconds of the forward without a gradient, by events."""
    with torch.no_grad():
        return 1e3 * milliseconds(lambda: uk.sinkhorn(C, reg=REG, max_iter=iterations), 0.5, warm=1)


def iteration(n: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Microseconds per iteration, (t(many) - t(1)) / (many - 1), forward and adjoint, and of the gradient pass."""
    many = 101 if n <= 8192 else 21
    C = torch.rand(n, n, device="cuda", dtype=dtype)
    floor = floor_microseconds(n, n)
    found: dict[str, Any] = {"floor_us": floor}
    plain = (forward_only(C, many) - forward_only(C, 1)) / (many - 1)
    found["forward_by_events_us"] = plain
    with no_early_end():
        few, all_of_it = (replay_milliseconds(partial(value_and_gradient, C, t), 0.3) for t in (1, many))
        one, more = (by_kind(kernel_microseconds(partial(value_and_gradient, C, t))) for t in (1, many))
    found["whole_by_replay_us"] = 1e3 * (all_of_it - few) / (many - 1)
    if not more:
        return {**found, "note": "the profiler saw no kernel"}
    for kind in ("forward", "adjoint"):
        if kind in more:
            found[f"{kind}_us"] = (more[kind] - one.get(kind, 0.0)) / (many - 1)
    found["gradient_pass_us"] = {"1": one.get("gradient"), str(many): more.get("gradient")}
    found["forward_of_1_us"] = one.get("forward")
    size = C.element_size() * n * n
    if size > 60e6:  # beyond the chip's memory: what a read of the cost per iteration comes to
        rate = size / copy_bandwidth() * 1e6
        found["of_copy"] = {
            k: rate / found[f"{k}_us"] for k in ("forward", "adjoint") if found.get(f"{k}_us")
        }
    return found


def as_called(n: int) -> dict[str, Any]:
    """Loss and gradient of x, D = 512, 100 iterations: eager, a graph's replay, each kernel."""
    x, y = features(n)
    found: dict[str, Any] = {"eager_ms": milliseconds(lambda: ours(x, y))}
    found["kernels_us"] = kernel_microseconds(lambda: ours(x, y))
    found["kernels_ms"] = sum(found["kernels_us"].values()) / 1e3
    found["graph_ms"] = replay_milliseconds(lambda: ours(x, y))
    found["floor_ms"] = 2 * ITERATIONS * floor_microseconds(n, n) / 1e3
    found["peak_mb"] = peak_megabytes(lambda: ours(x, y))
    return found


def label(n: int, k: int, dtype: torch.dtype = torch.float32) -> Iterator[dict[str, Any]]:
    """The forward reads both logits; with gradients, it writes as much."""
    logits = [torch.randn(n, k, device="cuda", dtype=dtype).requires_grad_() for _ in range(2)]
    target = torch.randint(k, (n,), device="cuda")
    name, size = f"label {n} x {k} {str(dtype)[6:]}", n * k * logits[0].element_size()

    def told(what: str, call: Any, moved: int) -> dict[str, Any]:
        spent = milliseconds(call)
        found = {"case": f"{name}, {what}", "ms": spent, "of_copy": moved / (spent / 1e3) / copy_bandwidth()}
        return {**found, "kernels_us": kernel_microseconds(call), "peak_mb": peak_megabytes(call)}

    def forward() -> None:
        with torch.no_grad():
            uk.label_transport_loss(*logits, target)

    yield told("forward", forward, 2 * size)
    for kappa, count in (("detached", 1), ("live", 2)):
        wanted, other = logits[:count], logits[1] if count == 2 else logits[1].detach()

        def both(wanted=wanted, kappa=kappa, other=other) -> None:
            torch.autograd.grad(uk.label_transport_loss(logits[0], other, target, kappa=kappa), wanted)

        yield told(f"{count} gradient(s), kappa {kappa}", both, (2 + count) * size)


def linear(n: int, d: int, k: int, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """The linear label loss beside the same by stored logits."""
    z, A, B = (torch.randn(s, d, device="cuda", dtype=dtype) / d**0.25 for s in (n, k, k))
    target = torch.randint(k, (n,), device="cuda")
    leaves = [z.requires_grad_(), A.requires_grad_()]
    ways = {
        "chunks": lambda: uk.linear_label_transport_loss(z, A, None, B, None, target),
        "stored logits": lambda: uk.label_transport_loss(z @ A.T, z @ B.T, target),
    }
    for how, loss in ways.items():

        def both(loss=loss) -> None:
            torch.autograd.grad(loss(), leaves)

        name = f"linear label {n} x {d} x {k} {str(dtype)[6:]}, {how}"
        yield {"case": name, "ms": milliseconds(both, warm=1), "peak_mb": peak_megabytes(both)}


def batch() -> dict[str, Any]:
    """256 problems of 64 x 64 against as many as the device has multiprocessors."""
    wave = torch.cuda.get_device_properties(0).multi_processor_count
    C = torch.rand(256, 64, 64, device="cuda")

    def run(C: torch.Tensor) -> None:
        leaf = C.detach().requires_grad_()
        torch.autograd.grad(uk.sinkhorn(leaf, reg=REG, max_iter=ITERATIONS).value.sum(), leaf)

    many, one = replay_milliseconds(lambda: run(C)), replay_milliseconds(lambda: run(C[:wave]))
    kernels = kernel_microseconds(lambda: run(C))
    return {"graph_ms": many, "one_wave_ms": one, "waves": many / one, "kernels_us": kernels}


def panels(dtype: torch.dtype, budget: int | None, how: str) -> dict[str, Any]:
    """20 iterations at 8192, D = 512: a cost made panel by panel beside the one matrix that it replaces."""
    x, y = (z.to(dtype) for z in features(8192))

    def run() -> Any:
        return ours(x, y, max_iter=20, memory_budget=budget)

    with overridden(streamed=False):
        return {
            "ms": milliseconds(run, 1.0, warm=1), "peak_mb": peak_megabytes(run),
            "kernels_us": kernel_microseconds(run, 1),
        }  # fmt: skip


def cases() -> list[Case]:
    found = [Case("card", card), Case("limits", limits), *speed_switches.cases()]
    found += [Case(f"iteration, N = {n}", partial(iteration, n), 60) for n in SIZES[:8]]
    found += [Case(f"loss and gradient, N = {n}, D = 512", partial(as_called, n), 60) for n in SIZES[:8]]
    found += [
        Case("label", partial(label, 65536, 1000)),
        Case("label", partial(label, 65536, 1000, torch.bfloat16)),
    ]
    found += [Case("label", partial(label, 4096, 50_000)), Case("label", partial(label, 65536, 10))]
    found += [Case("256 problems of 64 x 64", batch)]
    found += [Case(f"iteration, N = {n}", partial(iteration, n), 90) for n in SIZES[8:]]
    for dtype in (torch.float32, torch.bfloat16):
        for budget, how in ((None, "one matrix"), (8192 * 8192 * 8, "panels")):
            name = f"N = 8192, 20 iterations, {str(dtype)[6:]}, {how}"
            found.append(Case(name, partial(panels, dtype, budget, how), 60))
        found.append(Case("linear label", partial(linear, 8192, 1024, 32_000, dtype), 60))
    found += [
        Case(f"iteration, N = {n}, double", partial(iteration, n, torch.float64), 60) for n in (64, 1024)
    ]
    return found
