"""Times on a device: by events, by graph replay, and by kernel."""

from __future__ import annotations

import functools
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ucmkd_fast as uk

REG, ITERATIONS = 0.1, 100


def milliseconds(call: Callable[[], Any], budget: float = 1.0, warm: int = 3) -> float:
    """Median over events around a call, host and all; stops after ``budget`` seconds."""
    for _ in range(warm):
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


def replay_milliseconds(call: Callable[[], Any], budget: float = 1.0) -> float:
    """The same of a captured graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    found = milliseconds(graph.replay, budget)
    del kept
    return found


def kernel_microseconds(call: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """Device time of a call by kernel, ours by their names, the others as ``others``; empty where nothing is traced."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in trace.key_averages():
        spent = getattr(event, "self_device_time_total", 0.0) / repeats
        if spent > 0:
            match = re.search(r"ucmkd::.*?(\w*kernel\w*)", event.key)
            name = match.group(1) if match else "others"
            found[name] = found.get(name, 0.0) + spent
    return found


@functools.cache
def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy of 1 GiB."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / (milliseconds(lambda: target.copy_(source), 0.5) / 1e3)


def peak_megabytes(call: Callable[[], Any]) -> float:
    """The most that a call takes beside what is there."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def features(n: int, d: int = 512) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n)
    centres = torch.randn(10, d, device="cuda")
    x, y = (centres[torch.arange(n, device="cuda") % 10] + torch.randn(n, d, device="cuda") for _ in range(2))
    return x, y + 0.1


def ours(x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient of x."""
    leaf = x.detach().requires_grad_()
    loss = uk.sinkhorn_loss(leaf, y, **{"reg": REG, "max_iter": ITERATIONS, **options})
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def floor_microseconds(n: int, m: int) -> float:
    """An iteration at least: an exponential per element, and one read of a cost that no chip memory holds."""
    device = torch.cuda.get_device_properties(0)
    clock = getattr(device, "clock_rate", 1_755_000) * 1e3  # of kHz
    used = 1 if n * m <= 128 * 128 else device.multi_processor_count  # what is small runs in one block
    issue = n * m / (used * 16 * clock)
    kept = device.multi_processor_count * getattr(device, "shared_memory_per_block_optin", 227 << 10)
    return 1e6 * max(issue, 4 * n * m / copy_bandwidth() if 4 * n * m > kept else 0.0)
