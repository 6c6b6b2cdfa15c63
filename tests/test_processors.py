"""How many processors a process may keep busy: control groups of both versions, nested, from inside and outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast import _native, doctor, processors
from ucmkd_fast._native import _C
from ucmkd_fast.compare import pool


def mount(root: str, point: str, kind: str, controllers: str = "rw") -> str:
    return f"30 23 0:26 {root} {point} rw,relatime shared:4 - {kind} cgroup {controllers}\n"


def machine(tmp_path: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A root with /proc and /sys of one process."""
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"
HOST = mount("/", "/" + V2, "cgroup2")
CASES = {
    # what a container sees: its own group is the top
    "a container": ("0::/\n", HOST, {f"{V2}/cpu.max": "200000 100000\n"}, 2.0),
    "no quota": ("0::/\n", HOST, {f"{V2}/cpu.max": "max 100000\n"}, None),
    "no file": ("0::/\n", HOST, {}, None),
    "a service": ("0::/a.slice/b.service\n", HOST, {f"{V2}/a.slice/b.service/cpu.max": "150000 100000\n"}, 1.5),
    "a smaller one around it": (
        "0::/pod/box\n", HOST,
        {f"{V2}/pod/box/cpu.max": "max 100000\n", f"{V2}/pod/cpu.max": "300000 100000\n"}, 3.0,
    ),
    "a larger one around it": (
        "0::/pod/box\n", HOST,
        {f"{V2}/pod/box/cpu.max": "50000 100000\n", f"{V2}/pod/cpu.max": "300000 100000\n"}, 0.5,
    ),
    "a group that is not to be seen": ("0::/../other\n", HOST, {f"{V2}/cpu.max": "400000 100000\n"}, 4.0),
    "mounted from the group on": (
        "0::/docker/f00\n", mount("/docker/f00", "/" + V2, "cgroup2"), {f"{V2}/cpu.max": "200000 100000\n"}, 2.0,
    ),
    "mounted from a group around it on": (
        "0::/docker/f00/task\n", mount("/docker/f00", "/" + V2, "cgroup2"),
        {f"{V2}/task/cpu.max": "100000 50000\n"}, 2.0,
    ),
    "mounted from another group on": (
        "0::/docker/f00bar\n", mount("/docker/f00", "/" + V2, "cgroup2"),
        {f"{V2}/bar/cpu.max": "100000 100000\n", f"{V2}/cpu.max": "600000 100000\n"}, 6.0,
    ),
    "a blank in the path": (
        "0::/\n", mount("/", r"/sys/fs/c\040group", "cgroup2"), {"sys/fs/c group/cpu.max": "200000 100000\n"}, 2.0,
    ),
    "a colon in the path": ("0::/a:b\n", HOST, {f"{V2}/a:b/cpu.max": "200000 100000\n"}, 2.0),
    "version 1": (
        "5:memory:/box\n4:cpu,cpuacct:/box\n0::/\n", mount("/", "/" + V1, "cgroup", "rw,cpu,cpuacct"),
        {f"{V1}/box/cpu.cfs_quota_us": "250000\n", f"{V1}/box/cpu.cfs_period_us": "100000\n"}, 2.5,
    ),
    "version 1, none in the group": (
        "4:cpu,cpuacct:/box\n", mount("/", "/" + V1, "cgroup", "rw,cpu,cpuacct"),
        {
            f"{V1}/box/cpu.cfs_quota_us": "-1\n", f"{V1}/box/cpu.cfs_period_us": "100000\n",
            f"{V1}/cpu.cfs_quota_us": "100000\n", f"{V1}/cpu.cfs_period_us": "100000\n",
        }, 1.0,
    ),
    "version 1, cpuset alone": (
        "4:cpuset:/box\n", mount("/", "/sys/fs/cgroup/cpuset", "cgroup", "rw,cpuset"),
        {"sys/fs/cgroup/cpuset/box/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpuset/box/cpu.cfs_period_us": "100000"},
        None,
    ),
    "both versions": (
        "4:cpu:/box\n0::/box\n",
        mount("/", "/" + V1, "cgroup", "rw,cpu") + mount("/", "/sys/fs/cgroup/unified", "cgroup2"),
        {
            f"{V1}/box/cpu.cfs_quota_us": "300000\n", f"{V1}/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/unified/box/cpu.max": "700000 100000\n",
        }, 3.0,
    ),
    "files of something else": ("nonsense\n\n0::\n", "nonsense\n - \n" + HOST, {f"{V2}/cpu.max": "much\n"}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_quota_of_all_groups_around_counts(tmp_path, name):
    groups, mounts, files, want = CASES[name]
    found = processors.quota(machine(tmp_path, groups, mounts, files))
    assert (found and found.processors) == want
    if found:
        assert Path(found.source).read_text()


def test_no_proc_is_no_quota(tmp_path):
    assert processors.quota(tmp_path) is None


@pytest.mark.parametrize(("affinity", "quota", "want"), [
    (64, None, 64), (64, 2.0, 2), (64, 2.9, 2), (64, 0.5, 1), (2, 8.0, 2), (1, None, 1),
])  # fmt: skip
def test_whole_processors_are_usable_and_at_least_one(affinity, quota, want):
    limit = None if quota is None else processors.Quota(quota, "cpu.max")
    assert processors.Processors(affinity, limit).usable == want


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity of processes")
def test_the_affinity_counts():
    all_of_them = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(all_of_them)})
        assert processors.find().affinity == processors.usable() == 1
    finally:
        os.sched_setaffinity(0, all_of_them)


@pytest.fixture
def quota_of_two(monkeypatch):
    """As in a container that sees 64 cores and may use two."""
    found = processors.Processors(64, processors.Quota(2.0, "/sys/fs/cgroup/cpu.max"))
    monkeypatch.setattr(processors, "find", lambda: found)
    before = torch.get_num_threads()
    torch.set_num_threads(64)
    _native.use_threads(least_work=0)
    yield
    monkeypatch.undo()
    torch.set_num_threads(before)
    _native.use_threads()


def test_kernels_keep_a_quota_that_torch_does_not(quota_of_two):
    assert torch.get_num_threads() == 64 and _C.build_info()["threads"] == 2
    x, y = (torch.randn(300, 64, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    teams = _C.thread_counts()[0]
    got = [uk.sinkhorn_loss(x, y).item() for _ in range(3)]
    torch.set_num_threads(2)  # torch's own pool from here on
    assert got == [uk.sinkhorn_loss(x, y).item()] * 3, "the bits are those of two threads"
    torch.set_num_threads(1)
    assert _C.build_info()["threads"] == 1 and _C.thread_counts()[0] > teams


def test_the_doctor_names_the_quota(quota_of_two):
    report = doctor.examine()
    assert report["threads"] == 2 and report["torch_threads"] == 64
    assert report["processors"] == {"affinity": 64, "quota": 2.0, "quota_from": "/sys/fs/cgroup/cpu.max"}
    text = doctor.threads_in_words(report)
    assert "2" in text and "/sys/fs/cgroup/cpu.max" in text and "torch.set_num_threads(2)" in text


def test_jobs_side_by_side_keep_it_too(quota_of_two, monkeypatch):
    started = []
    monkeypatch.setattr(pool, "_side_by_side", lambda *args: started.append(args[-1]) or iter(()))
    assert list(pool.run_all(lambda shared: None, None, [1, 2, 3])) == []
    assert started == [2]
