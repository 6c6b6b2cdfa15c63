"""Runs the modes of `gpu_check.sh`: each in processes of its own, every result printed and written as it comes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODES = ("smoke", "correct", "speed", "peers", "sanitize", "tune")
MARK = "\x1e"  # begins a worker's line that is a message to this process
START_LIMIT = 150.0  # seconds until a worker names its first case: torch is read, a device set up
NEXT_PLEASE = 71  # a worker's exit status: go on in a fresh process
OURS = "ucmkd"  # in the name of every kernel of ours, as the compiler writes it


class Report:
    """results.jsonl and log.txt of a folder."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = (folder / "results.jsonl").resolve()
        self.rows = self.path.open("a")
        self.log_file = (folder / "log.txt").open("a")
        self.failures: list[str] = []

    def log(self, text: str) -> None:
        """Everything that is no result."""
        self.log_file.write(text)
        self.log_file.flush()

    def row(self, mode: str, case: str, **figures: Any) -> None:
        """One result, printed and written at once; ``failed`` among its figures makes the whole a failure."""
        self.failures += [f"{mode}: {case}"] if "failed" in figures else []
        self.rows.write(json.dumps({"mode": mode, "case": case, **figures}) + "\n")
        self.rows.flush()
        print(f"{mode:8s} {case:44s} " + "  ".join(f"{k} {short(v)}" for k, v in figures.items()), flush=True)


def short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} {short(v)}" for k, v in value.items()) + "}"
    return str(value)


class Process:
    """A child in a process group of its own; its lines, until it ends or a limit passes."""

    def __init__(self, command: list[str], **environment: str):
        self.child = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )  # fmt: skip
        self.limit = time.monotonic() + START_LIMIT
        self.killed = False

    def lines(self, deadline: float) -> Iterator[str]:
        """What it prints, until it ends; it is killed at the earlier of its own limit and the deadline."""
        assert self.child.stdout is not None
        os.set_blocking(self.child.stdout.fileno(), False)
        pending = b""
        ended = False
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(self.child.stdout, selectors.EVENT_READ)
                while (left := min(self.limit, deadline) - time.monotonic()) > 0 and ready.select(left):
                    data = os.read(self.child.stdout.fileno(), 1 << 16)
                    ended = not data
                    if ended:
                        break
                    *whole, pending = (pending + data).split(b"\n")
                    yield from (line.decode(errors="replace") for line in whole)
            if pending:
                yield pending.decode(errors="replace")
        finally:  # also where this process is told to end
            if not ended:
                self.kill()

    def kill(self) -> None:
        """End it and what it started."""
        self.killed = True
        os.killpg(self.child.pid, signal.SIGKILL)

    def status(self) -> str:
        """How it ended, in words; empty where all went well."""
        try:
            code = self.child.wait(20)
        except subprocess.TimeoutExpired:
            return "does not end, though killed"
        if self.killed:
            return "killed at its time limit"
        return "" if code == 0 else f"signal {-code}" if code < 0 else f"exit status {code}"


def cases(report: Report, mode: str, deadline: float) -> None:
    """All cases of a mode, by workers: where one dies or hangs, the next goes on behind the case that did it."""
    at, names = 0, []
    while time.monotonic() < deadline:
        worker = Process([sys.executable, str(HERE / "worker.py"), mode, str(at)], RESULTS=str(report.path))
        name, busy, tail = "", False, ""
        for line in worker.lines(deadline):
            if not line.startswith(MARK):
                report.log(line + "\n")
                tail = line if line.strip() else tail
                continue
            message = json.loads(line[1:])
            if "cases" in message:
                names = message["cases"]
            elif "start" in message:
                at, name, busy = message["start"], message["name"], True
                worker.limit = time.monotonic() + message["limit"]
            elif "row" in message:
                report.row(mode, **message["row"])
            elif "end" in message:
                at, busy = message["end"] + 1, False
                worker.limit = time.monotonic() + START_LIMIT
        ended = worker.status()
        if not ended:
            return
        if ended == f"exit status {NEXT_PLEASE}":
            continue
        report.row(mode, name or "the start of a worker", failed=ended + (f": {tail[-300:]}" if tail else ""))
        if not name:
            return
        at += busy
    for name in dict.fromkeys(names[at:]):
        report.row(mode, name, left_out="out of time")


def pytest_part(report: Report, name: str, arguments: list[str], deadline: float, workers: int) -> None:
    """One run of pytest; a row for each test that fails, then one for the count."""
    if time.monotonic() >= deadline:
        report.row("correct", name, left_out="out of time")
        return
    have = {p: importlib.util.find_spec(p) is not None for p in ("xdist", "pytest_timeout")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "--tb=short",
        "-rfE",
        "-p",
        "sticky",
        "--maxfail=25",
        *arguments,
    ]
    if have["xdist"] and workers > 1:
        command += ["-n", str(workers), "--dist=worksteal", "--max-worker-restart=20"]
    if have["pytest_timeout"]:
        command += ["--timeout=90", "--timeout-method=thread"]
    paths = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    part = Process(command, PYTHONPATH=paths, OMP_NUM_THREADS="1")
    part.limit = deadline
    counts, told, count_line = {"PASSED": 0, "FAILED": 0, "ERROR": 0, "SKIPPED": 0}, set(), ""
    for line in part.lines(deadline):
        report.log(line + "\n")
        verdict = next((w for w in counts if re.search(rf"(^|\s){w}(\s|$)", line) and "::" in line), None)
        if line.startswith(("FAILED ", "ERROR ")):  # the summary: with its reason
            test, _, why = line.partition(" - ")
            report.row("correct", test.split("::", 1)[-1], failed=why[:300] or "see the log")
        elif verdict:
            counts[verdict] += 1
            if verdict in ("FAILED", "ERROR") and line not in told:
                told.add(line)
                print(f"correct  {line.strip()}", flush=True)
        elif re.search(r"\d+ (passed|failed|skipped|error)", line):
            count_line = line.strip("= ")
    ended = part.status() or ("" if counts["PASSED"] else "nothing passed")
    counts = {
        f"tests_{k.lower()}": v for k, v in counts.items()
    }  # "failed" alone would be this row's own verdict
    report.row("correct", name, **counts, summary=count_line, **({"failed": ended} if ended else {}))


def correct(report: Report, deadline: float) -> None:
    device = "tests/test_cuda_device.py"
    apart = "inductor or nccl or not_current or wait or captured or graph"
    workers = min(8, os.cpu_count() or 1)
    pytest_part(report, "device: agreement", [device, "-k", f"not ({apart})"], deadline, workers)
    pytest_part(
        report, "device: capture, streams", [device, "-k", f"({apart}) and not inductor"], deadline, 1
    )
    pytest_part(report, "ops", ["tests/test_device_ops.py", "-k", "cuda"], deadline, workers)
    pytest_part(report, "inductor", [device, "-k", "inductor"], deadline, 1)


def sanitize(report: Report, deadline: float) -> None:
    tool = shutil.which("compute-sanitizer") or next(
        (str(p) for p in Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None
    )
    if tool is None:
        report.row("sanitize", "compute-sanitizer", left_out="not on PATH nor below /usr/local/cuda*/bin")
        return
    for check in ("memcheck", "racecheck", "initcheck"):
        parts = {"memcheck": 3, "racecheck": 2, "initcheck": 1}[check]
        share = time.monotonic() + (deadline - time.monotonic()) / parts
        command = [tool, "--tool", check]
        if check != "initcheck":  # which must see who writes what ours read
            command += ["--kernel-regex", f"kns={OURS}"]
        command += ["--error-exitcode", "9", "--print-limit", "20"]
        run = Process([*command, sys.executable, str(HERE / "tiny.py")], PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        run.limit = share
        done, errors, begin = 0, [], time.monotonic()
        for line in run.lines(share):
            report.log(line + "\n")
            if line.startswith(MARK):
                done += 1
                print(f"sanitize {check} {line[1:]}", flush=True)
            elif line.startswith("========= ") and re.search(
                r"Invalid|Error:|Race|hazard|Uninitialized|SUMMARY", line
            ):
                errors.append(line[10:].strip())
                print(f"sanitize {check} {line}", flush=True)
        ended = run.status()
        report.row(
            "sanitize", check, cases=done, seconds=time.monotonic() - begin,
            told="; ".join(errors[:3] + errors[3:][-1:]),
            **({"failed": ended} if ended else {}),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("modes", nargs="*")
    parser.add_argument("--seconds", type=float, default=420)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report(options.folder)
    for mode in options.modes or MODES:
        begin = time.monotonic()
        print(f"== {mode}, at most {options.seconds:.0f} s", flush=True)
        deadline = begin + options.seconds
        try:
            if mode in ("correct", "sanitize"):
                globals()[mode](report, deadline)
            else:
                cases(report, mode, deadline)
        except Exception as error:  # the other modes go on
            report.row(mode, "the mode itself", failed=f"{type(error).__name__}: {error}")
        failed = [name for name in report.failures if name.startswith(f"{mode}: ")]
        report.row(mode, "all", seconds=time.monotonic() - begin, failures=len(failed))
        print("\n".join(f"FAILED {name}" for name in failed[:40]), flush=True)
    raise SystemExit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
