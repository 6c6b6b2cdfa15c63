#!/bin/sh
# The kernels under sanitizers, in the environment of `make test`:
#   tests/sanitizers.sh ops      the op tests on AddressSanitizer and UndefinedBehaviorSanitizer
#   tests/sanitizers.sh races    ThreadSanitizer: several threads in the entry functions (tests/native/races.cpp)
#   tests/sanitizers.sh fuzz     libFuzzer on the entry functions for FUZZ_SECONDS, 600 (needs clang)
# `make sanitize` runs the first two. Builds go to build/, beside the installed module.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

build() { # name, sanitizers, target, further arguments of cmake
  cmake -S . -B "build/$1" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DUCMKD_CUDA=OFF -DUCMKD_SANITIZE="$2" \
    -Dpybind11_DIR="$("$python" -c 'import pybind11; print(pybind11.get_cmake_dir())')" \
    -DPython_EXECUTABLE="$(command -v "$python")" -DSKBUILD_PROJECT_VERSION=sanitizers "$4" >/dev/null 2>&1
  cmake --build "build/$1" --target "$3" --parallel 2
}

case ${1:-} in
ops)
  shift
  build sanitize address,undefined _C -DUCMKD_NATIVE_TESTS=OFF
  extension=$(find "$PWD/build/sanitize" -maxdepth 1 -name '_C*.so')
  # Python itself is not instrumented: the runtime has to come first, and what Python keeps is no leak of ours.
  runtime="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
  under() {
    env LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 \
      UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 UCMKD_EXTENSION="$extension" "$python" "$@"
  }
  # A planted read past the end of a tensor must be seen, or the rest proves nothing.
  planted='import sys; sys.path.insert(0, "tests")
import conftest, torch, ucmkd_fast as uk
x, y = torch.zeros(1000), torch.zeros(1000)
uk._native._C.exp(False, "baseline", x.data_ptr(), y.data_ptr(), 1001)'
  if under -c "$planted" 2>build/planted.log || ! grep -q heap-buffer-overflow build/planted.log; then
    echo "expected AddressSanitizer to see a planted overflow; see build/planted.log" >&2
    exit 1
  fi
  under -m pytest -q -p no:cacheprovider -m "not long" tests/test_sinkhorn.py tests/test_sinkhorn_loss.py \
    tests/test_ragged.py tests/test_label_transport.py tests/test_linear_label_transport.py tests/test_assign.py \
    tests/test_properties.py tests/test_unbalanced.py tests/test_doubly_stochastic.py \
    tests/test_compat_geomloss_native.py "$@"
  ;;
races)
  build races thread races -DUCMKD_NATIVE_TESTS=ON
  # As above: a planted race must be seen.
  if build/races/tests/native/races planted 2>build/planted.log || ! grep -q 'data race' build/planted.log; then
    echo "expected ThreadSanitizer to see a planted race; see build/planted.log" >&2
    exit 1
  fi
  build/races/tests/native/races
  ;;
fuzz)
  CXX=clang++ build fuzz address,undefined,fuzzer-no-link fuzz -DUCMKD_NATIVE_TESTS=ON
  mkdir -p build/corpus
  UBSAN_OPTIONS=print_stacktrace=1 build/fuzz/tests/native/fuzz build/corpus -max_total_time="${FUZZ_SECONDS:-600}" \
    -max_len=4096 -len_control=0 -print_final_stats=1 -artifact_prefix=build/
  ;;
*)
  echo "expected ops, races or fuzz, got '${1:-}'" >&2
  exit 2
  ;;
esac
