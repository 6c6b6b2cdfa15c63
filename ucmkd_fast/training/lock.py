"""One process at a time writes to a folder.

The kernel holds the lock (``flock``), so it is gone with its process, however that ended. Where a file system has no
such locks, a file stands for it, and its owner keeps it fresh: it is taken over where its process is gone, or, of
another machine, where nobody has touched it for a minute.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK, STAND_IN = ".lock", ".lock-held"
_BEAT, _STALE = 10.0, 60.0  # seconds
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}

#: Folders that this thread of execution has locked: what it calls may write to them.
_ours: ContextVar[frozenset[Path]] = ContextVar("_ours", default=frozenset())


class FolderInUse(OSError):
    """Another process, or another thread of this one, is writing to the folder."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """A context in which nobody else is in this context with the folder, which is made where it is not there.

    It may be entered again inside. A folder that was made for the lock, and is empty in the end, goes again.

    Raises:
        FolderInUse: somebody else is.
        OSError: the folder cannot be made or written to.
    """
    place = folder.resolve()
    if place in _ours.get():
        yield
        return
    made = _make(folder)
    try:
        with _kernel_lock(folder) if fcntl is not None else _file_lock(folder):
            before = _ours.set(_ours.get() | {place})
            try:
                yield
            finally:
                _ours.reset(before)
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make the folder; those that were not there, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "that is a file" if folder.is_file() else error.strerror
        raise FileNotFoundError(f"expected a readable folder at {folder}: {reason}") from error
    return missing


@contextmanager
def _kernel_lock(folder: Path) -> Iterator[None]:
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)  # the one before may have removed it just now
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                path.unlink(missing_ok=True)
                break  # where it does not work, nobody goes by this file
            raise FolderInUse(_in_use(folder, _read(path))) from None
        if _is_at(descriptor, path):
            try:
                with contextlib.suppress(OSError):  # the disk is full: it is a lock all the same
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, _about_us())
                yield
            finally:
                path.unlink(
                    missing_ok=True
                )  # before the lock goes: whoever opens it after that makes a new one
                os.close(descriptor)
            return
        os.close(descriptor)  # its owner has just removed it
    with _file_lock(folder):
        yield


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def _file_lock(folder: Path) -> Iterator[None]:
    """A lock by the existence of a file, for file systems and machines without kernel locks."""
    path = folder / STAND_IN
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            break
        except FileExistsError:
            owner = _read(path)
            if _lives(path, owner):
                raise FolderInUse(_in_use(folder, owner)) from None
            _remove_stale(path, owner)
    ended = threading.Event()
    beat = threading.Thread(target=_keep_fresh, args=(path, ended), daemon=True, name="ucmkd-lock")
    try:
        os.write(descriptor, _about_us())
        os.close(descriptor)
        beat.start()
        yield
    finally:
        ended.set()
        path.unlink(missing_ok=True)


def _keep_fresh(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _remove_stale(path: Path, owner: dict[str, object]) -> None:
    """Remove a lock file, but for a new one of somebody who found it stale a moment before."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        os.rename(aside, path) if _read(aside) != owner else os.unlink(aside)


def _lives(path: Path, owner: dict[str, object]) -> bool:
    """Whether the owner of a lock file may still be at work."""
    if owner.get("host") == socket.gethostname() and owner.get("began") is not None:
        return _started(int(str(owner.get("process", 0)))) == owner.get("began")
    try:
        return time.time() - path.stat().st_mtime < _STALE
    except FileNotFoundError:
        return False


def _started(process: int) -> str | None:
    """Something that tells a process from a later one of its number; None where there is none of it."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return fields[19]  # since boot, in ticks
    except (OSError, IndexError):
        pass
    if os.name != "posix" or Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "alive"


def _about_us() -> bytes:
    process = os.getpid()
    about = {
        "process": process,
        "host": socket.gethostname(),
        "began": _started(process),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    return json.dumps(about).encode()


def _read(path: Path) -> dict[str, object]:
    """What a lock says of its owner; empty where it has not said it yet, or is gone."""
    try:
        about = json.loads(path.read_text())
        return about if isinstance(about, dict) else {}
    except (OSError, ValueError):
        return {}


def _in_use(folder: Path, owner: dict[str, object]) -> str:
    who = "another process"
    if owner:
        who = f"process {owner.get('process')} on {owner.get('host')}, since {owner.get('since')}"
        if owner.get("process") == os.getpid() and owner.get("host") == socket.gethostname():
            who = "another thread of this process"
    return f"{folder} is being written to by {who}: wait until that has ended, or stop it, or name another folder"
