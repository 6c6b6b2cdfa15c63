"""What was built, what was found here, and whether both ops agree with their reference."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import __version__, _native, processors
from .extras import OPTIONAL, installed
from .ops import cuda_switches
from .ops.arguments import GRADS, OBJECTIVES
from .ops.cost import METRICS
from .ops.label_transport import KAPPAS, label_transport_loss
from .ops.sinkhorn import sinkhorn_loss
from .reference.label_transport import label_transport_loss as reference_label_transport_loss
from .reference.sinkhorn import sinkhorn_loss as reference_sinkhorn_loss
from .terminal import Part, Styled, Terminal

# Of value and gradients, relative to the float64 reference.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}

Loss = Callable[..., Any]


def examine() -> dict[str, Any]:
    """Facts and self-tests as plain values; ``healthy`` is True where every test passed."""
    build = _native._C.build_info()
    tests = {"sinkhorn_loss": _check(_sinkhorn_cases()), "label_transport_loss": _check(_label_cases())}
    if torch.cuda.is_available() and build["cuda_architectures"]:
        tests["sinkhorn_loss on the GPU"] = _check(_sinkhorn_cases(), "cuda")
    return {
        "version": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": _device(),
        "cpu_levels_built": build["cpu_levels_built"],
        "cpu_levels_usable": build["cpu_levels_usable"],
        "cpu_level_used": build["cpu_level"],
        "cuda_architectures": build["cuda_architectures"],
        "cuda_switches": cuda_switches.examine(),
        "threads_from_torch": _native.threads_from_torch,
        "threads": build["threads"],
        "torch_threads": torch.get_num_threads(),
        "processors": _processors(),
        "optional": installed(),
        "tests": tests,
        "healthy": all(test["passed"] for test in tests.values()),
    }


def show(report: dict[str, Any], terminal: Terminal) -> None:
    """The report for people."""
    facts: list[tuple[str, list[Part]]] = [
        ("ucmkd-fast", [report["version"]]),
        ("Python, torch", [f"{report['python']}, {report['torch']}"]),
        ("Platform", [report["platform"]]),
        ("Device", [report["device"]]),
        ("CPU kernels built", [", ".join(report["cpu_levels_built"])]),
        ("  usable here", [", ".join(report["cpu_levels_usable"])]),
        ("  used", [report["cpu_level_used"]]),
        ("CUDA kernels built", [", ".join(report["cuda_architectures"]) or "none in this build"]),
        *(_switches(report["cuda_switches"]) if report["cuda_architectures"] else []),
        ("Threads", [threads_in_words(report)]),
    ]
    purposes = {distribution: (purpose, extra) for distribution, purpose, extra in OPTIONAL.values()}
    for distribution, found in report["optional"].items():
        purpose, extra = purposes[distribution]
        how = found or f"not installed: pip install 'ucmkd-fast[{extra}]'"
        facts.append((distribution, [f"{how} ({purpose})"]))
    for op, test in report["tests"].items():
        verdict = Styled("passed", "green") if test["passed"] else Styled("FAILED", "red")
        text = f", {test['cases']} cases against the reference, values and gradients"
        if not test["passed"]:
            text += f"; largest error {test['worst_error']:.0e} of the tolerance; {test['failed']}"
        facts.append((f"Self-test {op}", [verdict, text]))
    terminal.facts(facts)


def _switches(found: dict[str, dict[str, Any]]) -> list[tuple[str, list[Part]]]:
    facts: list[tuple[str, list[Part]]] = [
        (f"  {name}", [cuda_switches.in_words(one)]) for name, one in found.items()
    ]
    advice = cuda_switches.how_to(found)
    return [*facts, ("  switches", [advice])] if advice else facts


def threads_in_words(report: dict[str, Any]) -> str:
    """How many threads the kernels use, and why not as many as torch."""
    if not report["threads_from_torch"]:
        return "none: kernels run serially"
    threads, of_torch = report["threads"], report["torch_threads"]
    text = f"{threads}, as torch" if threads == of_torch else f"{threads}; torch uses {of_torch}"
    quota, affinity = report["processors"]["quota"], report["processors"]["affinity"]
    if quota is not None:
        text += f"; the control group allows {quota:g} processors ({report['processors']['quota_from']})"
    if threads < of_torch:
        if quota is None or affinity <= quota:
            text += f"; this process may run on {affinity}"
        text += f"; torch.set_num_threads({threads}) or OMP_NUM_THREADS={threads} spares torch the others"
    return text


def _processors() -> dict[str, Any]:
    found = processors.find()
    quota, source = found.quota if found.quota is not None else (None, None)
    return {"affinity": found.affinity, "quota": quota, "quota_from": source}


def _device() -> str:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return f"CPU, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name() if accelerator.type == "cuda" else accelerator.type
    return f"{name} (torch calls it {accelerator})"


def _check(cases: Iterator[tuple[str, Loss, Loss, list[Tensor]]], device: str = "cpu") -> dict[str, Any]:
    """Value and gradients of each case by op and reference; ``worst_error`` is a share of what is allowed."""
    worst, failed, count = 0.0, "", 0
    for name, op, reference, inputs in cases:
        expected = _value_and_gradients(reference, [z.double() for z in inputs])
        for dtype, tolerance in TOLERANCE.items():
            count += 1
            try:
                found = [z.cpu() for z in _value_and_gradients(op, [z.to(device, dtype) for z in inputs])]
            except Exception as error:  # whatever the op does here, the doctor is to say it
                worst, failed = math.inf, failed or f"{name}, {dtype}: {error!r}"
                continue
            for ours, theirs in zip(found, expected, strict=True):
                scale = theirs.norm().clamp_min(1e-3)
                share = ((ours.double() - theirs).norm() / scale / tolerance).item()
                if not share <= 1 and not failed:  # NaN is not <= 1
                    failed = f"first at {name}, {dtype}"
                worst = max(worst, math.inf if math.isnan(share) else share)
    return {"passed": not failed, "cases": count, "worst_error": min(worst, 1e99), "failed": failed}


def _value_and_gradients(loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [z.detach().clone().requires_grad_() for z in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def _sinkhorn_cases() -> Iterator[tuple[str, Loss, Loss, list[Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 9, generator=draw, dtype=torch.float64) for n in (13, 10))
    chosen = [(m, o, "unrolled") for m in METRICS for o in OBJECTIVES] + [
        ("l2", "transport", g) for g in GRADS[1:]
    ]
    for metric, objective, grad in chosen:
        options: dict[str, Any] = {
            "metric": metric, "objective": objective, "grad": grad, "reg": 0.5, "max_iter": 200,
        }  # fmt: skip
        yield (
            f"metric {metric}, objective {objective}, grad {grad}",
            lambda a, b, options=options: sinkhorn_loss(a, b, **options),
            lambda a, b, options=options: reference_sinkhorn_loss(a, b, **options),
            [x, y],
        )


def _label_cases() -> Iterator[tuple[str, Loss, Loss, list[Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    logits = [2 * torch.randn(17, 10, generator=draw, dtype=torch.float64) for _ in range(2)]
    target = torch.randint(10, (17,), generator=draw)
    for kappa in KAPPAS:
        for smoothing in (0.0, 0.1):
            options: dict[str, Any] = {"kappa": kappa, "label_smoothing": smoothing}
            yield (
                f"kappa {kappa}, label_smoothing {smoothing}",
                lambda s, t, options=options: label_transport_loss(s, t, target, **options),
                lambda s, t, options=options: reference_label_transport_loss(s, t, target, **options),
                logits,
            )
