"""The label-transport loss and its linear form against the torch composite, forward and backward.

    python benchmarks/bench_label_transport.py [--json results/label_transport.json]

float32. Memory: growth of the peak resident set, each form in a process of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from harness import Row, compare, peak_growth_mb, report_peak, table, write
from torch import Tensor

import ucmkd_fast as uk
from ucmkd_fast.reference.label_transport import label_transport_loss as torch_composite

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


def rows() -> list[Row]:
    """Every case."""
    found = []
    for case in LOGIT_CASES:
        contenders = {
            "ucmkd_fast": with_gradients(uk.label_transport_loss, 2),
            "torch composite": with_gradients(torch_composite, 2),
        }
        timings = compare(
            contenders, lambda s, c=case: logit_inputs(c, s), error, {"torch composite": LIMIT}, rounds=11
        )
        found.append(Row({"form": "logits", **case}, timings))
        print(table(found[-1:]), flush=True)
    for case in LINEAR_CASES:
        contenders = {
            "ucmkd_fast, chunked": with_gradients(uk.linear_label_transport_loss, 5),
            "torch composite": with_gradients(torch_linear, 5),
        }
        timings = compare(
            contenders, lambda s, c=case: linear_inputs(c, s), error, {"torch composite": LIMIT}, rounds=5
        )
        found.append(Row({"form": "linear", **case}, timings, memory(case)))
        print(table(found[-1:]), flush=True)
    return found


def memory(case: dict) -> dict[str, float]:
    """Peak growth in MB of both forms, and the ratio."""
    sizes = [str(case[k]) for k in ("n", "D", "K")]
    peaks = {form: peak_growth_mb(Path(__file__), ["--peak", form, *sizes]) for form in ("chunked", "torch")}
    return {f"peak MB, {k}": round(v, 1) for k, v in peaks.items()} | {
        "peak ratio": round(peaks["chunked"] / peaks["torch"], 3)
    }


def peak(form: str, n: int, d: int, k: int) -> None:
    """Child process: one loss with all its gradients."""
    inputs = linear_inputs({"n": n, "D": d, "K": k}, 0)
    loss = uk.linear_label_transport_loss if form == "chunked" else torch_linear
    small = linear_inputs({"n": 8, "D": d, "K": k}, 0)
    with_gradients(loss, 5)(*small)  # libraries and threads are there before the measurement
    report_peak(lambda: with_gradients(loss, 5)(*inputs))


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=4, metavar=("FORM", "N", "D", "K"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        form, *sizes = arguments.peak
        peak(form, *map(int, sizes))
        return
    found = rows()
    if arguments.json:
        write(arguments.json, "label_transport", found)


if __name__ == "__main__":
    main()
