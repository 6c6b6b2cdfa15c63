"""Work done several at a time: a process each, one thread in each.

Everything computes on one thread, so numbers do not depend on how many run at once.
Plain processes and pipes: concurrent.futures' pool waits for ever where a process dies
while another one starts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from .. import processors

Run = TypeVar("Run")
Prepare = Callable[[Any], Callable[[Any], Any]]


def run_all(
    prepare: Prepare, shared: Any, runs: Sequence[Run], jobs: int | None = None
) -> Iterator[tuple[Run, Any]]:
    """Every run with its result, in the order in which they end.

    Args:
        prepare: a function of a module; called once in each process with ``shared``, it gives the function
            that does a run.
        shared: what all runs need; as runs and results, it is pickled, and should hold no tensors.
        runs: what to do.
        jobs: processes; None: one for each core, or one where there is a GPU. With one, all is done here.

    Raises:
        ChildProcessError: a process ended without an answer.
        Exception: what a run raised.
    """
    jobs = min(jobs or (1 if torch.cuda.is_available() else processors.usable()), len(runs))
    if jobs > 1:
        yield from _side_by_side(prepare, shared, runs, jobs)
    elif runs:
        with one_thread():
            do = prepare(shared)
            for run in runs:
                yield run, do(run)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch, and with it the kernels, on one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _side_by_side(prepare: Prepare, shared: Any, runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, Any]]:
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
        for end in ends:
            end.send((prepare, shared))
            _hand_out(end, waiting, busy)
        while busy:
            for end in _answered(busy):
                answer, warned = end.recv()
                for sentence, category in warned:
                    warnings.warn(sentence, category, stacklevel=2)
                if isinstance(answer, BaseException):
                    raise answer
                yield busy.pop(end), answer
                _hand_out(end, waiting, busy)
    except (EOFError, ConnectionError) as error:
        raise ChildProcessError(
            f"one of {jobs} processes ended without an answer, perhaps for want of memory: try jobs=1"
        ) from error
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _answered(busy: dict[Connection, Any]) -> list[Connection]:
    return [end for end in wait(list(busy)) if isinstance(end, Connection)]


def _hand_out(end: Connection, waiting: Iterator[Any], busy: dict[Connection, Any]) -> None:
    """Send the next run, if there is one, to the process at the other end."""
    run = next(waiting, None)
    if run is not None:
        end.send(run)
        busy[end] = run


def _work(end: Connection) -> None:
    """A process's life: what is shared, then one run after the other, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, ConnectionError):
        prepare, shared = end.recv()
        do: Callable[[Any], Any] | None = None
        while True:
            run = end.recv()
            with warnings.catch_warnings(record=True) as warned:  # these, too, are the parent's to tell
                try:
                    do = do or prepare(shared)
                    answer: Any = do(run)
                except Exception as error:
                    answer = error
            end.send((answer, [(str(one.message), one.category) for one in warned]))


def _end_with_the_parent() -> None:
    """A parent that was killed may be started again: nobody else must be writing its files then."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
