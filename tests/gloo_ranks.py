"""Gloo processes of a test: a worker script is started once per rank, and writes what it found to ``rank{rank}.pt``."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

# What a test does


def start(worker: Path, size: int, folder: Path, *before: str) -> list[subprocess.Popen]:
    """A process per rank, with arguments ``before``, its rank, ``size`` and ``folder``; skips without gloo."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    return [
        subprocess.Popen(
            [sys.executable, str(worker), *before, str(rank), str(size), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        for rank in range(size)
    ]


def outcomes(worker: Path, size: int, folder: Path, *before: str) -> list[dict]:
    """What every rank wrote, once all have ended well."""
    processes = start(worker, size, folder, *before)
    said = [p.communicate(timeout=240)[0] for p in processes]
    assert all(p.returncode == 0 for p in processes), said
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(size)]


# What a worker does


@contextmanager
def joined(rank: int, size: int, folder: Path, seconds: int) -> Iterator[None]:
    """In the group of all ranks, with one thread each; nobody waits for another longer than ``seconds``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size,
        timeout=datetime.timedelta(seconds=seconds),
    )  # fmt: skip
    yield
    dist.destroy_process_group()


def refused(calls: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """What each call's ValueError says."""
    said = {}
    for name, call in calls.items():
        try:
            call()
            said[name] = "no error"
        except ValueError as error:
            said[name] = str(error)
    return said
