"""For pytest: a process whose device is lost ends, so that the tests behind it run in a fresh one (pytest-xdist)."""

from __future__ import annotations

import os
import re
import sys

LOST = re.compile(
    r"illegal memory access|illegal instruction|misaligned address|unspecified launch failure|device-side assert"
    r"|launch timed out|invalid program counter|hardware stack error|illegal address",
    re.IGNORECASE,
)
NO_STATUS = 70


def pytest_runtest_logreport(report):
    """Called in the process that ran the test, and under xdist once more where the reports are gathered."""
    text = str(report.longrepr or "")
    if report.failed and LOST.search(text) and ("PYTEST_XDIST_WORKER" in os.environ):
        print(f"{report.nodeid}: {text[-1500:]}", file=sys.stderr, flush=True)
        os._exit(NO_STATUS)
