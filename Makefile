# Two commands do all the set-up: `make demo` and `make test`. Both work in .venv, which they create.
#
#   PYTHON=python3.12          another interpreter (>= 3.10) for the environment
#   TORCH=torch==2.13.0        another torch (>= 2.10)
#   TORCH_INDEX=https://...    another index to take torch from: PyTorch's own CPU builds are at
#                              https://download.pytorch.org/whl/cpu
#   LOCK=requirements/ci.txt   exactly these packages beside torch, by their hashes (requirements/lock.sh makes it)
#   DEMO_ARGS="--audio DIR"    arguments of `ucmkd demo`

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
LOCK ?=
DEMO_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Without a GPU driver: a CPU build of torch, and no device code to wait for. `UCMKD_CUDA=ON make test` compiles it all
# the same, for two architectures.
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo yes)
ifeq ($(GPU),yes)
TORCH ?= torch>=2.10
else
TORCH ?= torch==2.13.0
export UCMKD_CUDA ?= OFF
$(VENV)/installed-test: export UCMKD_CUDA_ARCHITECTURES ?= 80 90
endif

NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
FORMATTED := $(shell find csrc tests/native tests/cuda_model -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-long sanitize reliability wheel lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed-demo
	$(BIN)/ucmkd demo $(DEMO_ARGS)

test: $(VENV)/installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -m "not long" $(PYTEST_ARGS)

test-long: $(VENV)/installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

sanitize: $(VENV)/installed-test
	PYTHON=$(BIN)/python tests/sanitizers.sh ops
	PYTHON=$(BIN)/python tests/sanitizers.sh races

# docs/reliability.md from counts; needs clang for the fuzzer, about half an hour on two cores.
reliability: $(VENV)/installed-test
	mkdir -p build/reliability
	$(BIN)/python -m pytest -q --junitxml build/reliability/tests.xml
	PYTHON=$(BIN)/python tests/sanitizers.sh ops > build/reliability/ops.log 2>&1
	PYTHON=$(BIN)/python tests/sanitizers.sh races > build/reliability/races.log 2>&1
	PYTHON=$(BIN)/python tests/sanitizers.sh fuzz > build/reliability/fuzz.log 2>&1
	$(BIN)/python benchmarks/reliability.py build/reliability

# Device code for every architecture of CMakeLists.txt.
wheel: $(VENV)/torch
	UCMKD_CUDA=ON $(PIP) wheel --no-deps --wheel-dir dist .

lint: $(VENV)/installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/python -m mypy

# The site, into build/site; a warning is an error. API pages come from the docstrings, read and not run.
docs: $(VENV)/installed-docs
	$(BIN)/python -m mkdocs build --strict

$(VENV)/torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(if $(LOCK),$(PIP) install --require-hashes --no-deps --requirement $(LOCK))
	@touch $@

# Editable: Python changes need no new install, native changes do.
$(VENV)/installed-demo: $(VENV)/torch $(NATIVE)
	$(PIP) install --editable ".[demo,speech]"
	@touch $@

$(VENV)/installed-test: $(VENV)/torch $(NATIVE)
	$(PIP) install --editable ".[demo,speech,images,models,data,report,export,test]"
	@touch $@

# Without the library: its sources are read, so nothing is compiled.
$(VENV)/installed-docs: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) install "mkdocs-material>=9.5" "mkdocstrings[python]>=0.26"
	@touch $@

clean:
	rm -rf $(VENV) build dist
