"""All runs of the demo, several at a time: a process each, one thread in each.

Every run computes on one thread, so its numbers do not depend on how many run at once.
Plain processes and pipes: concurrent.futures' pool waits for ever where a process dies
while another one starts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from .settings import CONTENDERS, Contender, DemoSettings
from .student import Outcome, Portrait, train_student
from .task import Task

Run = tuple[int, int]  # seed, place in CONTENDERS
Result = tuple[Outcome, Portrait | None]  # the portrait at seed 0 only


def run_all(
    task: Task, settings: DemoSettings, on_done: Callable[[Contender, int], None]
) -> tuple[list[Outcome], dict[str, Portrait]]:
    """Every contender at every seed.

    Args:
        task: the task.
        settings: the demo's.
        on_done: called after each run, with what ran.

    Returns:
        Outcomes, by seed and then in the contenders' order; the portraits of seed 0 by the contender's key.

    Raises:
        ChildProcessError: a process ended without an answer.
    """
    runs = [(seed, place) for seed in range(settings.seeds) for place in range(len(CONTENDERS))]
    jobs = min(settings.jobs or cores(), len(runs))
    results: dict[Run, Result] = {}
    finished = _one_by_one(task, settings, runs) if jobs == 1 else _side_by_side(task, settings, runs, jobs)
    for run, result in finished:
        results[run] = result
        on_done(CONTENDERS[run[1]], run[0])
    outcomes = [results[run][0] for run in runs]
    portraits = {outcome.key: portrait for outcome, portrait in results.values() if portrait is not None}
    return outcomes, portraits


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch, and with it the kernels, on one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_by_one(task: Task, settings: DemoSettings, runs: list[Run]) -> Iterator[tuple[Run, Result]]:
    with one_thread():
        for run in runs:
            yield run, _run(task, settings, run)


def _side_by_side(
    task: Task, settings: DemoSettings, runs: list[Run], jobs: int
) -> Iterator[tuple[Run, Result]]:
    """The runs in the order in which they end."""
    context = multiprocessing.get_context("spawn")  # autograd and torch's threads do not survive a fork
    waiting = iter(runs)
    busy: dict[Connection, Run] = {}
    processes: list[Any] = []
    try:
        ends = []
        for _ in range(jobs):  # all start before the first is waited for
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_work, args=(theirs,), daemon=True))
            processes[-1].start()
            theirs.close()
            ends.append(ours)
        packed = task.pack()
        for end in ends:
            end.send((packed, settings))
            _hand_out(end, waiting, busy)
        while busy:
            for end in _answered(busy):
                answer = end.recv()
                if isinstance(answer, BaseException):
                    raise answer
                yield busy.pop(end), answer
                _hand_out(end, waiting, busy)
    except (EOFError, ConnectionError) as error:
        raise ChildProcessError(
            f"one of {jobs} processes ended without an answer, perhaps for want of memory: try --jobs 1"
        ) from error
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _answered(busy: dict[Connection, Run]) -> list[Connection]:
    return [end for end in wait(list(busy)) if isinstance(end, Connection)]


def _hand_out(end: Connection, waiting: Iterator[Run], busy: dict[Connection, Run]) -> None:
    """Send the next run, if there is one, to the process at the other end."""
    run = next(waiting, None)
    if run is not None:
        end.send(run)
        busy[end] = run


def _work(end: Connection) -> None:
    """A process's life: the task, then one run after the other, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    with suppress(EOFError, ConnectionError):
        packed, settings = end.recv()
        task = Task.unpack(packed)
        while True:
            run = end.recv()
            try:
                answer: Any = _run(task, settings, run)
            except Exception as error:  # the parent's to tell
                answer = error
            end.send(answer)


def _run(task: Task, settings: DemoSettings, run: Run) -> Result:
    seed, place = run
    outcome, portrait = train_student(task, CONTENDERS[place], settings, seed)
    return outcome, portrait if seed == 0 else None
