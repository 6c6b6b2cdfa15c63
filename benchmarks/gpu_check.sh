#!/bin/sh
# Everything that only a GPU can show, in one command: build for it, test on it, sanitize, measure.
#
#   sh benchmarks/gpu_check.sh [folder for results, default runs/gpu]
#
# Needs Python with torch (a CUDA build), nvcc, pytest, pybind11, scikit-build-core, cmake, ninja and what the package itself
# needs, for nothing is fetched: no network.
# PYTHON names another interpreter. The package is built into it, editable, for this GPU's architecture only.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${1:-runs/gpu}

fail() {
  echo "gpu_check: $*" >&2
  exit 1
}

"$PYTHON" -c 'import torch' 2>/dev/null || fail "$PYTHON has no torch (PYTHON names another interpreter)"
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  fail "torch finds no GPU here; without one the kernels are tested by tests/test_cuda_model*.py"
command -v nvcc >/dev/null || [ -n "${CUDACXX:-}" ] || fail "nvcc is needed (PATH or CUDACXX)"

missing=$("$PYTHON" -c '
from importlib.util import find_spec
needed = "pytest pybind11 scikit_build_core numpy scipy safetensors accelerate yaml rich typer".split()
print(*(name for name in needed if find_spec(name) is None))')
[ -z "$missing" ] || fail "$PYTHON lacks $missing"

mkdir -p "$OUT"
arch=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
failed=""

# step NAME COMMAND...: runs, keeps the output, and goes on where it fails.
step() {
  name=$1
  shift
  begin=$(date +%s)
  if "$@" >"$OUT/$name.log" 2>&1; then verdict=passed; else verdict=FAILED failed="$failed $name"; fi
  echo "$name: $verdict in $(($(date +%s) - begin)) s ($OUT/$name.log)"
  [ "$verdict" = passed ] || tail -n 15 "$OUT/$name.log"
}

step build env UCMKD_CUDA=ON UCMKD_CUDA_ARCHITECTURES="$arch" "$PYTHON" -m pip install --no-build-isolation \
  --no-deps --editable .
[ -z "$failed" ] || fail "the build failed"
step doctor "$PYTHON" -c 'from ucmkd_fast.cli import main; main()' doctor
step device_tests timeout 150 "$PYTHON" -m pytest -q tests/test_cuda_device.py
step op_tests timeout 90 "$PYTHON" -m pytest -q tests/test_device_ops.py -k cuda
if command -v compute-sanitizer >/dev/null; then
  step memcheck timeout 100 compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" -m pytest -q -x \
    tests/test_cuda_device.py -k "(7x5-reg0.1 or 33x20-reg0.05) and zeros or refused"
  step racecheck timeout 100 compute-sanitizer --tool racecheck --error-exitcode 9 "$PYTHON" -m pytest -q -x \
    tests/test_cuda_device.py -k "7x5-reg0.1 and f32"
else
  echo "memcheck, racecheck: left out, compute-sanitizer is not on PATH"
fi
step benchmark timeout 200 "$PYTHON" benchmarks/bench_cuda.py --out "$OUT/benchmark.json" --seconds 120
cat "$OUT/benchmark.log"
[ -z "$failed" ] || fail "failed:$failed"
