"""`linear_label_transport_loss` beside Liger's losses of linear heads, where liger_kernel is installed.

Liger has no such loss. Here the teacher is sure of class 0, which is nobody's label: kappa is 0, and ours is the plain
cross-entropy of the student's head, made with the work of both heads. So it can be compared before it is timed: on a
CPU with Liger's chunked loss of two heads (its Jensen-Shannon part computed, with weight 0), on a GPU with its Triton
cross-entropy of one head. float32, gradients of the feature and of the student's head.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops.linear_label_transport import linear_label_transport_loss
from . import peers
from .harness import Row, compare, peak_growth_mb, report_peak

CASES = ({"n": 2048, "D": 512, "K": 1000}, {"n": 4096, "D": 512, "K": 4000})
ON_A_GPU = {"n": 8192, "D": 1024, "K": 32000}
#: float32 sums in other orders; on a GPU products of Triton may be in TF32.
LIMITS = {"cpu": 1e-4, "cuda": 2e-2}
OURS, TORCH = "ucmkd_fast, two heads", "torch cross-entropy, one head"
CHUNKED, TRITON = "Liger JSD, two heads", "Liger cross-entropy, one head"

Heads = tuple[Tensor, ...]  # feature, student's weight and bias, teacher's, targets


def inputs(case: dict[str, int], device: str, seed: int) -> Heads:
    """A feature (n, D), two heads, and targets (n,) from 1 on, to which the teacher gives no probability."""
    generator = torch.Generator().manual_seed(seed)
    n, d, k = case["n"], case["D"], case["K"]
    feature = torch.randn(n, d, generator=generator)
    heads = [torch.randn(*size, generator=generator) / d**0.5 for size in ((k, d), (k,), (k, d), (k,))]
    heads[3][0] = 1e4
    target = torch.randint(1, k, (n,), generator=generator)
    return tuple(z.to(device) for z in (feature, *heads, target))


def torch_loss(feature: Tensor, sw: Tensor, sb: Tensor, tw: Tensor, tb: Tensor, target: Tensor) -> Tensor:
    """The student's linear layer and torch's cross-entropy."""
    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(feature, sw, sb), target)


def chunked_loss() -> Callable[..., Tensor]:
    """Liger's distillation of two linear heads (read at 0.8.5): torch's operations, compiled as is its default."""
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=1.0, weight_soft_loss=0.0)
    return lambda x, sw, sb, tw, tb, target: loss(x, sw, x.detach(), tw, target, sb, tb)


def triton_loss() -> Callable[..., Tensor]:
    """Liger's cross-entropy of one linear head in Triton (read at 0.8.5)."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda x, sw, sb, tw, tb, target: loss(sw, x, target, sb)


#: What is made to be called, by name.
MAKERS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    OURS: lambda: linear_label_transport_loss,
    CHUNKED: chunked_loss,
    TRITON: triton_loss,
    TORCH: lambda: torch_loss,
}


def with_gradients(name: str) -> Callable[..., list[Tensor]]:
    """Loss and gradients of the feature and of the student's head; on a GPU they are waited for."""
    loss_of = MAKERS[name]()

    def run(*given: Tensor) -> list[Tensor]:
        leaves = [z.detach().requires_grad_() for z in given[:3]]
        loss = loss_of(*leaves, *given[3:])
        found = [loss.detach(), *torch.autograd.grad(loss, leaves)]
        if given[0].is_cuda:
            torch.cuda.synchronize()
        return found

    return run


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest relative disagreement."""
    return max(((o - t).abs().max() / t.abs().max()).item() for o, t in zip(ours, theirs, strict=True))


def rows(quick: bool) -> Iterator[Row]:
    """Each of them, or a row that says why it is left out."""
    installed = peers.available("liger_kernel")
    left_out = {"Liger": "left out, liger_kernel is not installed"}
    for case in CASES[: 1 if quick else None]:
        names = [OURS, *([CHUNKED] if installed else []), TORCH]
        yield _row({"form": "linear, kappa 0", **case}, case, "cpu", names, {} if installed else left_out)
    if torch.cuda.is_available() and installed and peers.available("triton"):
        yield _row({"form": "linear, kappa 0, GPU", **ON_A_GPU}, ON_A_GPU, "cuda", [OURS, TRITON, TORCH], {})
    else:
        missing = "Triton is not installed" if torch.cuda.is_available() else "torch sees no GPU"
        reason = left_out if not installed else {"Liger": f"left out, {missing}"}
        yield Row({"form": "linear, kappa 0, GPU", **ON_A_GPU}, [], reason)


def _row(
    head: dict[str, Any], case: dict[str, int], device: str, names: list[str], extra: dict[str, Any]
) -> Row:
    calls = {name: with_gradients(name) for name in names}
    limits = dict.fromkeys(names, LIMITS[device])
    timings = compare(calls, partial(inputs, case, device), error, limits, rounds=5)
    peak = _peak_on_a_gpu if device == "cuda" else _peak_on_the_cpu
    peaks = {name: round(peak(name, case), 1) for name in names}
    return Row(head, timings, {f"peak MB, {name}": mb for name, mb in peaks.items()} | extra)


def _peak_on_a_gpu(name: str, case: dict[str, int]) -> float:
    given, call = inputs(case, "cuda", 0), with_gradients(name)
    call(*given)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(*given)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _peak_on_the_cpu(name: str, case: dict[str, int]) -> float:
    return peak_growth_mb(__name__, [name, *(str(case[key]) for key in ("n", "D", "K"))])


def main() -> None:
    """Child process: one loss with its gradients."""
    name, (n, d, k) = sys.argv[1], map(int, sys.argv[2:])
    call = with_gradients(name)
    given = inputs({"n": n, "D": d, "K": k}, "cpu", 0)
    call(*given)  # libraries, threads and what is compiled are there before the measurement
    with suppress(AttributeError):  # of glibc: memory that stays here would hide what the next call takes
        ctypes.CDLL(None).malloc_trim(0)
    report_peak(lambda: call(*given))


if __name__ == "__main__":
    main()
