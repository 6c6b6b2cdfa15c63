"""Registers and spills of every kernel, from the compiler's own report, against a recorded budget.

python tests/test_cuda_registers.py        # records tests/cuda_registers.json anew, after a change that is meant
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cuda_compiler import ARCHITECTURES, CSRC, compiler, needs_nvcc, nvcc, readable, register_use

TABLE = Path(__file__).with_name("cuda_registers.json")


def report() -> dict[str, dict[str, dict[str, int]]]:
    """Kernel -> architecture -> registers and spilled bytes."""
    sources = sorted(CSRC.rglob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:

        def one(source: Path) -> str:
            target = Path(folder) / f"{source.parent.name}_{source.stem}.o"
            codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
            return nvcc(source, target, *codes, "-Xptxas", "-v", "-c")

        use = register_use("".join(pool.map(one, sources)))
    names = readable(set(use))
    found: dict[str, dict[str, dict[str, int]]] = {}
    for mangled in sorted(use, key=names.__getitem__):
        found.setdefault(names[mangled], {}).update(use[mangled])
    return found


def record() -> None:
    """Write the table; kernels that spill are named."""
    found = report()
    for kernel, on in found.items():
        if any(use["spilled"] for use in on.values()):
            print(f"spills: {kernel} {on}")
    kernels = {kernel: {a: use["registers"] for a, use in on.items()} for kernel, on in found.items()}
    spills = {
        kernel: {a: use["spilled"] for a, use in on.items() if use["spilled"]} for kernel, on in found.items()
    }
    table = {"compiler": compiler(), "kernels": kernels, "spills": {k: on for k, on in spills.items() if on}}
    beside = TABLE.with_suffix(".partial")
    beside.write_text(json.dumps(table, indent=1) + "\n")
    beside.replace(TABLE)
    print(f"{TABLE}: {len(kernels)} kernels, by nvcc {compiler()}")


@pytest.fixture(scope="module")
def found():
    return report()


@pytest.mark.long
@needs_nvcc
def test_no_kernel_spills_more_than_was_measured_to_be_worth_it(found):
    """Wide problems keep more of a row in registers than there are: what is spilled outside of the loops costs less
    than reading the row twice (docs/gpu.md has their times)."""
    assert found
    table = json.loads(TABLE.read_text())
    for kernel, on in found.items():
        assert set(on) == set(ARCHITECTURES), kernel
        for architecture, use in on.items():
            budget = table["spills"].get(kernel, {}).get(architecture, 0)
            assert use["spilled"] <= budget and use["registers"] <= 255, (kernel, on)


def test_only_kernels_that_own_much_of_a_matrix_may_spill():
    """Many columns, or a tile of it: what is spilled between their loops."""
    kinds = ("owned", "small_adjoint", "stream_rows", "stream_columns", "gradient_kernel<float, 8,")
    assert all(any(kind in kernel for kind in kinds) for kernel in json.loads(TABLE.read_text())["spills"])


@pytest.mark.long
@needs_nvcc
def test_no_kernel_outgrows_its_budget(found):
    table = json.loads(TABLE.read_text())
    assert set(table["kernels"]) == set(found), "kernels came or went: python tests/test_cuda_registers.py"
    if compiler() != table["compiler"]:
        pytest.skip(f"the budget is that of nvcc {table['compiler']}, this is {compiler()}")
    for kernel, on in found.items():
        for architecture, use in on.items():
            budget = table["kernels"][kernel][architecture]
            assert use["registers"] <= budget, (
                f"{kernel} takes {use['registers']} registers on sm_{architecture}, its budget is {budget}; where "
                "that is meant: python tests/test_cuda_registers.py"
            )


if __name__ == "__main__":
    record()
