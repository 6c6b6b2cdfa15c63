"""Both losses on a GPU against their peers, and the bandwidth reached against a measured copy.

Times are medians of CUDA events around loss and gradient. Targets are printed beside what was measured.

    python benchmarks/bench_cuda.py --out runs/gpu.json [--seconds 150]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ucmkd_fast as uk
from ucmkd_fast.bench import peers

REG, ITERATIONS = 0.1, 100


def milliseconds(call: Callable[[], Any], budget: float = 2.0) -> float:
    """Median over events; warms up first, and stops after ``budget`` seconds."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 30 and (len(times) < 3 or time.perf_counter() - start < budget):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy of 1 GB."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / (milliseconds(lambda: target.copy_(source)) / 1e3)


def geomloss(reg: float, iterations: int) -> Callable[[Tensor, Tensor], peers.Result]:
    """GeomLoss on the same cost, with its own annealing in the place of a number of iterations."""
    return peers.with_gradient(peers.geomloss(reg))


def flash_sinkhorn(reg: float, iterations: int) -> Callable[[Tensor, Tensor], peers.Result]:
    """flash-sinkhorn (read at 0.4.1) on |x^ - y^|^2 / 2, which is the cosine cost, with as many iterations.

    Its value is the dual one and its gradient the plan's, as of `sinkhorn_loss` with ``"regularized"`` and
    ``"envelope"``. Its products are in TF32, its default.
    """
    from flash_sinkhorn import SamplesLoss

    loss = SamplesLoss(
        "sinkhorn", p=2, half_cost=True, backend="alternating", use_epsilon_scaling=False, eps=reg, n_iters=iterations,
    )  # fmt: skip
    unit = torch.nn.functional.normalize
    return peers.with_gradient(lambda x, y: loss(unit(x, dim=1), unit(y, dim=1)))


PEERS = {
    "published code's call": (peers.pot_sinkhorn2, "ot", 4096),
    "compiled torch": (peers.compiled, "triton", 1024),
    "geomloss": (geomloss, "geomloss", 4096),
    "flash-sinkhorn": (flash_sinkhorn, "flash_sinkhorn", 16384),
}
# N -> least ratio of a peer's time to ours
TARGETS = {
    64: {"published code's call": 40, "flash-sinkhorn": 5},
    1024: {"published code's call": 15, "flash-sinkhorn": 3},
    2048: {"published code's call": 15, "flash-sinkhorn": 3},
    4096: {"published code's call": 5, "flash-sinkhorn": 3},
}


def ours(x: Tensor, y: Tensor, **options: Any) -> peers.Result:
    """Loss and gradient of x."""
    leaf = x.detach().requires_grad_()
    loss = uk.sinkhorn_loss(leaf, y, reg=REG, max_iter=ITERATIONS, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def features(n: int, d: int = 512) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n)
    centres = torch.randn(10, d, device="cuda")
    x, y = (centres[torch.arange(n, device="cuda") % 10] + torch.randn(n, d, device="cuda") for _ in range(2))
    return x, y + 0.1


def transport_rows(deadline: float) -> list[dict[str, Any]]:
    rows = []
    for n in (64, 256, 1024, 2048, 4096):
        x, y = features(n)
        mine = milliseconds(lambda x=x, y=y: ours(x, y))
        row: dict[str, Any] = {"case": f"N = {n}, D = 512", "ms": mine, "peers": {}}
        unrolled, dual = ours(x, y), ours(x, y, objective="regularized", grad="envelope")
        expected = {"geomloss": dual, "flash-sinkhorn": dual}
        for name, (make, package, largest) in PEERS.items():
            if n > largest or not peers.available(package) or time.perf_counter() > deadline:
                continue
            try:
                call = make(REG, ITERATIONS)
                value, other = call(x, y)
                want, grad = expected.get(name, unrolled)
                agrees = abs((value / want).item() - 1)
                spread = ((other - grad).norm() / grad.norm()).item()
                time_ms = milliseconds(lambda call=call, x=x, y=y: call(x, y), 1.0)
            except Exception as error:  # a peer that fails is told, and the others go on
                row["peers"][name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
                continue
            row["peers"][name] = {
                "ms": time_ms, "ratio": time_ms / mine, "target": TARGETS.get(n, {}).get(name),
                "value_differs": agrees, "gradient_differs": spread,
            }  # fmt: skip
        rows.append(row)
    return rows


def bandwidth_rows(copy: float, deadline: float) -> list[dict[str, Any]]:
    """Sweeps of a stored cost (reads only) and the label loss (logits read, gradients written), against a copy."""
    rows = []
    for n in (16384, 32768):
        if time.perf_counter() > deadline or torch.cuda.mem_get_info()[0] < 3 * 4 * n * n:
            continue
        C = torch.rand(n, n, device="cuda")
        few, many = (
            milliseconds(lambda t=t, C=C: uk.sinkhorn(C, reg=REG, max_iter=t, grad="envelope"), 3.0)
            for t in (5, 25)
        )
        reached = 20 * 4 * n * n / ((many - few) / 1e3)
        rows.append(
            {
                "case": f"sweep, N = {n}",
                "ms": (many - few) / 20,
                "of_copy": reached / copy,
                "target_of_copy": 0.8,
            }
        )
        del C
    n, k = 65536, 1000
    logits = [torch.randn(n, k, device="cuda").requires_grad_() for _ in range(2)]
    target = torch.randint(k, (n,), device="cuda")
    with torch.no_grad():
        forward = milliseconds(lambda: uk.label_transport_loss(*logits, target))
    rows.append(
        {"case": f"label loss, {n} x {k}, forward", "ms": forward, "of_copy": 2 * 4 * n * k / (forward / 1e3) / copy,
         "target_of_copy": 0.85}
    )  # fmt: skip

    def both() -> None:
        torch.autograd.grad(uk.label_transport_loss(*logits, target), logits)

    rows.append({"case": f"label loss, {n} x {k}, with gradient", "ms": milliseconds(both)})
    return rows


def panel_rows() -> list[dict[str, Any]]:
    """A cost made panel by panel, of float32 and of bf16 features, beside the one matrix that it replaces."""
    x, y = features(8192)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for budget, how in ((None, "one matrix"), (8192 * 8192 * 8, "panels")):
            leaf, other = x.to(dtype).requires_grad_(), y.to(dtype)

            def run(leaf=leaf, other=other, budget=budget) -> None:
                loss = uk.sinkhorn_loss(leaf, other, reg=REG, max_iter=20, memory_budget=budget)
                torch.autograd.grad(loss, leaf)

            name = str(dtype).removeprefix("torch.")
            rows.append({"case": f"N = 8192, 20 iterations, {name}, {how}", "ms": milliseconds(run)})
    return rows


def batch_row() -> dict[str, Any]:
    """256 problems of 64 x 64 against one wave: as many problems as the device has multiprocessors."""
    wave = torch.cuda.get_device_properties(0).multi_processor_count
    C = torch.rand(256, 64, 64, device="cuda")

    def run(C: Tensor) -> None:
        leaf = C.detach().requires_grad_()
        torch.autograd.grad(uk.sinkhorn(leaf, reg=REG, max_iter=ITERATIONS).value.sum(), leaf)

    many, one = milliseconds(lambda: run(C)), milliseconds(lambda: run(C[:wave]))
    return {
        "case": "256 problems of 64 x 64",
        "ms": many,
        "over_one_wave": many / one,
        "target_over_one_wave": 1.5,
    }


def summary(results: dict[str, Any]) -> str:
    lines = [f"{results['gpu']}, copy {results['copy_gb_s']:.0f} GB/s", f"{'case':40s} {'ours, ms':>10s}"]
    for row in results["rows"]:
        line = f"{row['case']:40s} {row['ms']:10.3f}"
        if "of_copy" in row:
            line += f"   {row['of_copy']:.0%} of copy (target {row['target_of_copy']:.0%})"
        if "over_one_wave" in row:
            line += f"   {row['over_one_wave']:.2f} waves (target {row['target_over_one_wave']})"
        lines.append(line)
        for name, peer in row.get("peers", {}).items():
            if "failed" in peer:
                lines.append(f"    {name:36s} failed: {peer['failed']}")
                continue
            target = f" (target {peer['target']})" if peer["target"] else ""
            differs = f"; differs by {peer['value_differs']:.0e}, {peer['gradient_differs']:.0e}"
            lines.append(
                f"    {name:36s} {peer['ms']:10.3f}   {peer['ratio']:.1f} times ours{target}{differs}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--seconds", type=float, default=150)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_cuda.py needs a GPU: torch finds none")
    deadline = time.perf_counter() + options.seconds
    copy = copy_bandwidth()
    rows = [*transport_rows(deadline), batch_row(), *panel_rows(), *bandwidth_rows(copy, deadline)]
    results = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_gb_s": copy / 1e9,
        "architectures": uk._native._C.build_info()["cuda_architectures"], "rows": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    beside = options.out.with_suffix(".partial")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    beside.replace(options.out)
    print(summary(results))


if __name__ == "__main__":
    main()
