#!/bin/sh
# Everything that only a GPU can show: builds, then runs modes, each within its time, and prints every result at once.
set -u
usage() {
  cat <<'END'
usage: sh benchmarks/gpu_check.sh [options] [FOLDER] [MODE ...]

  FOLDER        (from the repository's root on; with a slash) for results, runs/gpu where none is named: results.jsonl (a line per result) and log.txt (everything else);
                both grow, so that a mode can be run again
  MODE          smoke     a small problem per regime, dtype, gradient and switch: error and limit
                correct   tests/test_cuda_device.py, tests/test_device_ops.py -k cuda; inductor last
                speed     bandwidth, launches, microseconds per iteration and kernel against the floor, losses, panels;
                          clusters and streamed sweeps beside what runs without them
                peers     GeomLoss, Liger, compiled torch, flash-sinkhorn, POT beside ours; each in its own process
                sanitize  memcheck, racecheck, initcheck of tiny cases, our kernels only
                tune      what a pair costs in a sweep over features; sweeps over overrides, the best per size;
                          TUNE="regime=0,2;own_barrier=False,True" names others, SIZES=64,1024 other sizes
                all of them in this order where none is named; one that fails takes nothing from the others
  --seconds N   for each mode, at most (420)
  --build-only  build and stop; needs no GPU
  --no-build    take the extension that lies in ucmkd_fast/, whatever it was built from

Nothing is fetched and nothing installed. The interpreter (PYTHON, by default python3) needs torch with CUDA, pybind11,
numpy, scipy, accelerate, safetensors, pyyaml, typer, rich; `correct` needs pytest and hypothesis, and uses pytest-xdist
and pytest-timeout where they are. The build needs cmake, ninja or make, and nvcc (PATH or CUDACXX). It is left out where
ucmkd_fast/ holds an extension of this interpreter whose stamp (_C.*.stamp beside it) names these sources and this
architecture. UCMKD_CUDA_ARCHITECTURES names the architecture; else that of the GPU here, or 90 where there is none.

Peers come as wheels of the same Python, in the folder that WHEELS names (by default runs/whl); they are unpacked, not
installed. To fetch them where there is a network (34 MB; their needs, numpy, scipy, torch and triton, are assumed):
  pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 -d runs/whl \
    POT==0.9.7.post1 geomloss==0.3.1 flash-sinkhorn==0.4.1 liger-kernel==0.8.5
END
}

fail() {
  echo "gpu_check: $*" >&2
  exit 1
}

cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
OUT=runs/gpu SECONDS_EACH=420 BUILD=yes MODES=""
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --seconds)
      [ $# -gt 1 ] || fail "--seconds needs a number"
      SECONDS_EACH=$2
      shift
      ;;
    --build-only) BUILD=only ;;
    --no-build) BUILD=no ;;
    smoke | correct | speed | peers | sanitize | tune) MODES="$MODES $1" ;;
    -*) fail "unknown option $1 (--help)" ;;
    */* | .) OUT=$1 ;;
    *)
      [ -d "$1" ] || fail "unknown mode $1 (--help); a folder that is not there yet is named with a slash, ./$1"
      OUT=$1
      ;;
  esac
  shift
done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

build() {
  arch=${UCMKD_CUDA_ARCHITECTURES:-$("$PYTHON" -c '
import torch
print("%d%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else "90")' 2>/dev/null || echo 90)}
  python=$("$PYTHON" -c 'import sys; print(sys.executable)') || fail "$PYTHON does not run"
  suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
  stamp=ucmkd_fast/_C${suffix%.so}.stamp
  now="$arch $(find csrc CMakeLists.txt -type f | LC_ALL=C sort | xargs cat | sha256sum)"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] && (cd ucmkd_fast && "$python" -c 'import _C') 2>/dev/null; then
    echo "build: left out, ucmkd_fast/_C$suffix is of these sources, for sm_$arch"
    return
  fi
  command -v nvcc >/dev/null || [ -n "${CUDACXX:-}" ] || fail "nvcc is needed (PATH or CUDACXX)"
  pybind=$("$PYTHON" -m pybind11 --cmakedir) || fail "$PYTHON lacks pybind11"
  generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
  folder=build/gpu_check$suffix
  begin=$(date +%s)
  echo "build: ucmkd_fast/_C$suffix for sm_$arch, in $folder"
  rm -f "$stamp"
  {
    cmake -S . -B "$folder" -G "$generator" -DCMAKE_BUILD_TYPE=Release -DUCMKD_CUDA=ON \
      -DUCMKD_CUDA_ARCHITECTURES="$arch" -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$pybind" \
      -DSKBUILD_PROJECT_NAME=ucmkd_fast -DSKBUILD_PROJECT_VERSION=0 &&
      cmake --build "$folder" -j "${JOBS:-$(nproc)}" && cp "$folder/_C$suffix" ucmkd_fast/
  } >"$OUT/build.log" 2>&1 || {
    grep -E -A5 'error|FAILED' "$OUT/build.log" | head -n 60 >&2
    fail "the build failed ($OUT/build.log)"
  }
  echo "$now" >"$stamp"
  echo "build: done in $(($(date +%s) - begin)) s"
}

if [ $BUILD != no ]; then
  mkdir -p "$OUT"
  build
fi
[ $BUILD != only ] || exit 0

"$PYTHON" -c 'import torch' 2>/dev/null || fail "$PYTHON has no torch (PYTHON names another interpreter)"
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  fail "torch finds no GPU here; without one the kernels are tested by tests/test_cuda_model*.py"
# shellcheck disable=SC2086
exec "$PYTHON" benchmarks/gpu/run.py --seconds "$SECONDS_EACH" "$OUT" $MODES
