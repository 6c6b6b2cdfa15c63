"""The label-transport loss and its linear form against the torch composite, forward and backward.

float32. The plain cross-entropy of the student logits alone shows what the loss costs beyond the usual one.
Memory: growth of the peak resident set, each form in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..ops.label_transport import label_transport_loss
from ..ops.linear_label_transport import linear_label_transport_loss
from ..reference.label_transport import label_transport_loss as torch_composite
from . import liger
from .harness import Row, compare, peak_growth_mb, report_peak

LOGIT_CASES = [{"n": 64, "K": 8}, {"n": 512, "K": 100}, {"n": 4096, "K": 1000}]
LINEAR_CASES = [{"n": 2048, "D": 512, "K": 1000}, {"n": 16384, "D": 512, "K": 1000}]
LIMIT = 1e-4


def logit_inputs(case: dict, seed: int) -> tuple[Tensor, ...]:
    """Student logits, teacher logits, targets."""
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(case["n"], case["K"], generator=generator) for _ in range(2))
    return s, t, torch.randint(case["K"], (case["n"],), generator=generator)


def linear_inputs(case: dict, seed: int) -> tuple[Tensor, ...]:
    """Feature, two heads, targets."""
    generator = torch.Generator().manual_seed(seed)
    n, d, k = case["n"], case["D"], case["K"]
    feature = torch.randn(n, d, generator=generator)
    heads = [torch.randn(*size, generator=generator) / d**0.5 for size in ((k, d), (k,), (k, d), (k,))]
    return feature, *heads, torch.randint(k, (n,), generator=generator)


def with_gradients(loss_of, count: int):
    """Loss and gradients of the first ``count`` inputs."""

    def run(*inputs: Tensor) -> list[Tensor]:
        leaves = [z.detach().requires_grad_() for z in inputs[:count]]
        loss = loss_of(*leaves, *inputs[count:])
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    return run


def torch_linear(feature, sw, sb, tw, tb, target) -> Tensor:
    """Two linear layers and the torch composite."""
    student = torch.nn.functional.linear(feature, sw, sb)
    return torch_composite(student, torch.nn.functional.linear(feature, tw, tb), target)


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest relative disagreement."""
    return max(((o - t).abs().max() / t.abs().max()).item() for o, t in zip(ours, theirs, strict=True))


def cross_entropy(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Of the student alone."""
    return torch.nn.functional.cross_entropy(student, target) + 0 * teacher[0, 0]


def agree_but_for_the_plain(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """`error`, where both compute the same; the gradient of the student's logits agrees with plain cross-entropy."""
    if theirs[2].count_nonzero():
        return error(ours, theirs)
    return error(ours[1:2], theirs[1:2])


def rows(quick: bool) -> Iterator[Row]:
    """Every case."""
    for case in LOGIT_CASES[: 2 if quick else None]:
        contenders = {
            "ucmkd_fast": with_gradients(label_transport_loss, 2),
            "torch composite": with_gradients(torch_composite, 2),
            "torch cross-entropy (student only)": with_gradients(cross_entropy, 2),
        }
        yield Row(
            {"form": "logits", **case},
            compare(
                contenders,
                partial(logit_inputs, case),
                agree_but_for_the_plain,
                dict.fromkeys(contenders, LIMIT),
                rounds=11,
            ),
        )
    for case in LINEAR_CASES[: 1 if quick else None]:
        contenders = {
            "ucmkd_fast, chunked": with_gradients(linear_label_transport_loss, 5),
            "torch composite": with_gradients(torch_linear, 5),
        }
        timings = compare(
            contenders, partial(linear_inputs, case), error, {"torch composite": LIMIT}, rounds=5
        )
        yield Row({"form": "linear", **case}, timings, memory(case))
    yield from liger.rows(quick)


def memory(case: dict) -> dict[str, float]:
    """Peak growth in MB of both forms, and the ratio."""
    sizes = [str(case[k]) for k in ("n", "D", "K")]
    peaks = {form: peak_growth_mb(__name__, [form, *sizes]) for form in ("chunked", "torch")}
    return {f"peak MB, {k}": round(v, 1) for k, v in peaks.items()} | {
        "peak ratio": round(peaks["chunked"] / peaks["torch"], 3)
    }


def peak(form: str, n: int, d: int, k: int) -> None:
    """Child process: one loss with all its gradients."""
    inputs = linear_inputs({"n": n, "D": d, "K": k}, 0)
    loss = linear_label_transport_loss if form == "chunked" else torch_linear
    small = linear_inputs({"n": 8, "D": d, "K": k}, 0)
    with_gradients(loss, 5)(*small)  # libraries and threads are there before the measurement
    report_peak(lambda: with_gradients(loss, 5)(*inputs))


if __name__ == "__main__":
    peak(sys.argv[1], *map(int, sys.argv[2:]))
