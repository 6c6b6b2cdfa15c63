"""Both losses on a GPU beside its bandwidth and their peers: modes of `gpu_check.sh`, without its build.

Usage:
    python benchmarks/bench_cuda.py [--out runs/gpu] [--seconds 420]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="a folder")
    parser.add_argument("--seconds", type=float, default=420, help="for each of the two")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_cuda.py needs a GPU: torch finds none")
    run = Path(__file__).parent / "gpu/run.py"
    limits = ["--seconds", str(options.seconds)]
    command = [sys.executable, str(run), str(options.out.resolve()), *limits, "speed", "peers"]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
