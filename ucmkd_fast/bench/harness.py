"""One skeleton for every benchmark: cases as data, agreement before time, peers in the same rounds.

Every round makes fresh inputs and times each implementation once on them, in an order that rotates; a
speed-up is the median of the per-round ratios, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Timing:
    """Milliseconds of one implementation over the rounds, and how it stands to the first one."""

    name: str
    median_ms: float
    low_ms: float
    high_ms: float
    ratio: float  # median over rounds of its time / the first implementation's
    error: float  # disagreement with the first implementation, as the benchmark defines it
    note: str = ""


@dataclass
class Row:
    """One case."""

    case: dict[str, Any]
    timings: list[Timing]
    extra: dict[str, Any] = field(default_factory=dict)


class Disagreement(AssertionError):
    """Two implementations do not compute the same."""


def machine() -> dict[str, Any]:
    """What a reader needs to place the numbers."""
    from .. import __version__
    from .._native import _C

    info = _C.build_info()
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()  # empty where the package is installed and git knows nothing of it
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "level": info["cpu_level"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "version": __version__,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


#: Seconds between two implementations: thread pools keep their cores spinning for a while after a call, and the
#: next implementation, with a pool of its own, would be timed against that.
_SETTLE = 0.05


def disagreements(
    implementations: dict[str, Callable[..., Any]],
    inputs: tuple,
    error: Callable[[Any, Any], float],
    limits: dict[str, float],
) -> dict[str, float]:
    """How far each is from the first on these inputs. Raises Disagreement where one passes its limit."""
    first, *others = implementations
    ours = implementations[first](*inputs)
    errors = {first: 0.0}
    for name in others:
        errors[name] = error(ours, implementations[name](*inputs))
        if not errors[name] <= limits[name]:
            raise Disagreement(f"{name} differs by {errors[name]:.2e}, allowed {limits[name]:.0e}")
    return errors


def compare(
    implementations: dict[str, Callable[..., Any]],
    make_inputs: Callable[[int], tuple],
    error: Callable[[Any, Any], float],
    limits: dict[str, float],
    rounds: int = 7,
    seconds: float = 20.0,
) -> list[Timing]:
    """Time every implementation; the first is ours. Raises Disagreement where one passes its limit.

    Args:
        implementations: name -> function of the inputs; returns what ``error`` compares.
        make_inputs: seed -> fresh inputs.
        error: (ours, theirs) -> disagreement.
        limits: largest disagreement allowed by name.
        rounds: timed rounds at most.
        seconds: stop after a round that ends later than this (three rounds at least).
    """
    names = list(implementations)
    errors = disagreements(implementations, make_inputs(0), error, limits)
    times: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for round_ in range(rounds):
            inputs = make_inputs(round_ + 1)
            for name in random.Random(round_).sample(
                names, len(names)
            ):  # what frees much memory slows the next
                call = implementations[name]
                repeats = _repeats(times[name])
                time.sleep(_SETTLE)
                if repeats > 1:
                    call(*inputs)  # wakes the threads again; where a call is long, that is nothing
                begin = time.perf_counter()
                for _ in range(repeats):
                    call(*inputs)
                times[name].append((time.perf_counter() - begin) / repeats)
            if round_ >= 2 and time.perf_counter() - start > seconds:
                break
    finally:
        gc.enable()
    return [_timing(name, times, names[0], errors[name]) for name in names]


def _repeats(seen: Sequence[float]) -> int:
    """Enough calls for about a tenth of a second, from the rounds before."""
    return max(1, min(50, int(0.1 / statistics.median(seen)))) if seen else 1


def _timing(name: str, times: dict[str, list[float]], first: str, error: float) -> Timing:
    mine = times[name][1:] if len(times[name]) > 3 else times[name]  # the first round warms up
    base = times[first][-len(mine) :]
    ratios = [t / b for t, b in zip(mine, base, strict=True)]
    return Timing(
        name,
        statistics.median(mine) * 1e3,
        min(mine) * 1e3,
        max(mine) * 1e3,
        statistics.median(ratios),
        error,
    )


def peak_growth_mb(module: str, arguments: Sequence[str]) -> float:
    """Growth of the peak resident memory (MB) of a module that calls `report_peak`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def report_peak(work: Callable[[], Any]) -> None:
    """Print by how many MB the peak of resident memory passes what was there before ``work``."""
    work_set = Path("/proc/self/clear_refs")
    if work_set.exists():
        work_set.write_text("5")  # reset the peak to what is resident now
    before = _peak_mb()
    kept = work()
    print(_peak_mb() - before)
    del kept


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmHWM in /proc/self/status")


def in_words(value: Any) -> Any:
    """A figure as it is; several by name in one line."""
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else value


def table(rows: Sequence[Row]) -> str:
    """Rows as text: times in milliseconds, ratio to ours in brackets."""
    lines = []
    for row in rows:
        head = " ".join(f"{k}={v}" for k, v in row.case.items())
        lines.append(head)
        for t in row.timings:
            error = f"  differs by {t.error:.0e}" if t.error else ""
            lines.append(f"  {t.name:34s} {t.median_ms:10.3f} ms  x{t.ratio:7.2f}{error}  {t.note}".rstrip())
        for key, value in row.extra.items():
            value = in_words(value)
            lines.append(f"  {key}: {value}")
    return "\n".join(lines)


def check_output(path: Path) -> None:
    """Raise ValueError or OSError for a file that results cannot be saved to."""
    _kept(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent}: expected a folder that can be written to")


def _kept(path: Path) -> dict[str, Any]:
    """What a file of results holds; nothing where there is none."""
    if not path.exists():
        return {}
    if path.is_dir():
        raise ValueError(f"{path}: expected a JSON file for the results, this is a folder")
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, of an earlier benchmark: {error}") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path}: expected the results of a benchmark, got a {type(results).__name__}")
    return results


def save(path: Path, subject: str, rows: Sequence[dict[str, Any]]) -> None:
    """Put a subject's rows into a JSON file beside those of others, written beside and renamed."""
    results = _kept(path)
    results[subject] = {"machine": machine(), "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    beside.replace(path)
