#!/bin/sh
# Writes requirements/ci.txt: what `make test` was last run with in .venv, each file by its hash; for Linux and the
# Python of .venv. Without torch and what comes with its CUDA builds: continuous integration takes torch's CPU build
# from PyTorch's own index, which names no hashes. Needs uv.
set -eu
cd "$(dirname "$0")/.."
held=$(mktemp)
trap 'rm -f "$held"' EXIT
.venv/bin/python -m pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/' > "$held"
for extra in demo speech images models data report export test; do
  set -- "$@" --extra "$extra"
done
uv pip compile pyproject.toml --quiet --constraint "$held" --generate-hashes --no-annotate --no-header \
  --python-version "$(.venv/bin/python -c 'import platform; print(platform.python_version())')" \
  --python-platform x86_64-manylinux_2_28 "$@" --output-file "$held.lock" >/dev/null
{
  echo "# Made by requirements/lock.sh; do not edit."
  awk '/^[a-zA-Z0-9]/ { keep = $0 !~ /^(torch|triton|nvidia-|cuda-)/ } keep' "$held.lock"
} > requirements/ci.txt.part
rm -f "$held.lock"
mv requirements/ci.txt.part requirements/ci.txt
