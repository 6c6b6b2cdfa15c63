"""How many processors this process may keep busy, as its affinity and its control groups say.

A container limited with ``--cpus`` or by Kubernetes sees every core of its host, and so does torch. A process that runs
more threads than its quota allows uses the quota up early in each period and is stopped for the rest of it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_Read = Callable[[Path], "Quota | None"]


class Quota(NamedTuple):
    """The smallest quota of the control groups that this process is in."""

    processors: float  # processor seconds per second
    source: str  # the file that says so


class Processors(NamedTuple):
    """What this process may use."""

    affinity: int  # processors that it may run on
    quota: Quota | None

    @property
    def usable(self) -> int:
        """Threads that may be busy all the time: whole processors, at least one."""
        allowed = math.inf if self.quota is None else self.quota.processors
        return max(1, math.floor(min(self.affinity, allowed)))


def find(root: Path = Path("/")) -> Processors:
    """The affinity and the quota of this process now; ``root`` is where ``/proc`` and ``/sys`` are."""
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:  # not on every system
        affinity = os.cpu_count() or 1
    return Processors(affinity, quota(root))


def usable() -> int:
    """Threads that this process may keep busy now."""
    return find().usable


def quota(root: Path = Path("/")) -> Quota | None:
    """The smallest quota of this process's control group and of those around it; None where there is none."""
    found = [limit for folder, top, read in _groups(root) for limit in _up(folder, top, read)]
    return min(found, default=None)


def _groups(root: Path) -> Iterator[tuple[Path, Path, _Read]]:
    """This process's group in every hierarchy that limits processors: its folder, where that is mounted, a reader."""
    paths: dict[str, str] = {}  # "" is version 2
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers == "" or "cpu" in controllers.split(","):
            paths["cpu" if controllers else ""] = path
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, kind = line.partition(" - ")
        fields, system = mount.split(), kind.split()
        if len(fields) < 5 or not system or system[0] not in ("cgroup", "cgroup2"):
            continue
        if system[0] == "cgroup" and "cpu" not in system[-1].split(","):
            continue
        key, read = ("", _version_2) if system[0] == "cgroup2" else ("cpu", _version_1)
        if key not in paths:
            continue
        top = root / _plain(fields[4]).lstrip("/")
        yield top / _below(paths[key], _plain(fields[3])), top, read


def _below(path: str, mounted: str) -> str:
    """A group's path relative to the group that is mounted; "" where it is not inside (another namespace)."""
    inside = path.removeprefix(mounted.rstrip("/"))
    known = inside != path or mounted == "/"
    return inside.strip("/") if known and ".." not in path.split("/") and inside[:1] in ("", "/") else ""


def _up(folder: Path, top: Path, read: _Read) -> Iterator[Quota]:
    """Quotas from a group up to the outermost one that can be seen."""
    for group in (folder, *folder.parents):
        limit = read(group)
        if limit is not None:
            yield limit
        if group == top:
            return


def _version_2(group: Path) -> Quota | None:
    file = group / "cpu.max"
    values = " ".join(_lines(file)).split()
    return _quota(values[0], values[1], file) if len(values) == 2 else None


def _version_1(group: Path) -> Quota | None:
    file = group / "cpu.cfs_quota_us"
    values, period = _lines(file), _lines(group / "cpu.cfs_period_us")
    return _quota(values[0], period[0], file) if values and period else None


def _quota(time: str, period: str, file: Path) -> Quota | None:
    """From microseconds of processor time in each period; "max" and -1 are none."""
    if not (time.isdecimal() and period.isdecimal() and int(time) and int(period)):
        return None
    return Quota(int(time) / int(period), str(file))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _plain(text: str) -> str:
    """A path of mountinfo, where blanks are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)
