#!/bin/sh
# The op tests on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer.
#   tests/sanitizers.sh [pytest arguments]      run by `make sanitize`, in the environment of `make test`
# The module is built beside the installed one; the tests take it from UCMKD_EXTENSION.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
build=build/sanitize
pybind=$("$python" -c 'import pybind11; print(pybind11.get_cmake_dir())')
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DUCMKD_SANITIZE=address,undefined \
  -Dpybind11_DIR="$pybind" -DPython_EXECUTABLE="$(command -v "$python")" -DSKBUILD_PROJECT_VERSION=sanitize >/dev/null
cmake --build "$build" --parallel 2
extension=$(find "$build" -maxdepth 1 -name '_C*.so')
# Python itself is not instrumented: the runtime has to come first, and what Python keeps is no leak of ours.
runtime="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  UCMKD_EXTENSION="$PWD/$extension" \
  "$python" -m pytest -q -p no:cacheprovider -m "not long" tests/test_sinkhorn.py tests/test_sinkhorn_loss.py \
  tests/test_label_transport.py tests/test_linear_label_transport.py tests/test_properties.py "$@"
