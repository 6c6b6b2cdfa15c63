"""The machine code of the kernels, loop by loop, against a recorded budget and the targets that were set for it.

python tests/test_cuda_machine_code.py     # records tests/cuda_machine_code.json anew, after a change that is meant
python tests/test_cuda_machine_code.py sinkhorn/gradient.cu      # only the kernels of these files

What an iteration takes on the device is decided by what a trip of the row loop issues, loads and waits for. The report
of registers (tests/test_cuda_registers.py) does not show a load that is no longer wide, a second exponential, or a
spill inside the loop; the machine code does. The long tests compile with nvcc and read with nvdisasm; the others look
at what is recorded.
"""

from __future__ import annotations

import re
import shutil
import sys
from typing import NamedTuple

import pytest
from cuda_compiler import CSRC, compiler, needs_nvcc
from machine_code import table
from machine_code.plans import host_compiler, plans
from machine_code.targets import MOST_SPILLED, WHY_NOT, at_size, rows_of_targets
from machine_code.tools import MISSING, nvdisasm

needs_nvdisasm = pytest.mark.skipif(nvdisasm() is None, reason=MISSING)


class Planted(NamedTuple):
    """A change of one file that must show as more of a kind in the loops of one source."""

    source: str
    file: str
    text: str
    instead: str
    shows: str


PLANTED = (
    Planted(
        "sinkhorn/gradient.cu",
        "core/tile.cuh",
        "kPer * sizeof(T) < 16 ? kPer : 16 / sizeof(T)",
        "1",
        "shared load 4",
    ),
    Planted(
        "label_transport/cuda.cu",
        "label_transport/rows.cuh",
        "sum += x[e] = exp_below(x[e], top);",
        "sum += exp_below(x[e], top), x[e] = exp_below(x[e], top + T(1e-3));",
        "exponential",
    ),
)


@pytest.fixture(scope="module")
def recorded():
    return table.read()


def loops(recorded, *titles):
    """(family, kernel, architecture, figures) of these families, or of all."""
    for title, family in recorded["families"].items():
        for kernel, on in family["kernels"].items() if not titles or title in titles else ():
            for architecture, figures in on.items():
                yield title, kernel, architecture, figures


def shape(kernel):
    """Quads of columns per thread, rows at a time, whether rows are kept: all (1), some (2)."""
    return tuple(map(int, re.findall(r"float, (\d+), (\d+), (\d+)", kernel)[0]))


# ---- What is recorded


def test_every_target_is_met_or_says_why_not(recorded):
    rows = rows_of_targets(recorded)
    assert rows == recorded["targets"], "python tests/test_cuda_machine_code.py"
    missed = {row["what"] for row in rows if row["found"] > row["limit"]}
    assert missed == set(WHY_NOT), "a target is missed without a reason, or a reason is no longer needed"


def test_one_exponential_per_element(recorded):
    """Two where entries do not stay in registers: those of a row are taken again for its columns."""
    seen = 0
    for _, kernel, _, figures in loops(recorded, "forward", "adjoint"):
        quads, seen = shape(kernel)[0], seen + 1
        assert figures["exponential"] == (2 if quads > 8 else 1) * figures["units"], kernel
    assert seen == 56
    for title, kernel, _, figures in loops(recorded, "label, forward", "label, backward"):
        of_row = figures["exponential"] - figures["units"]  # the label's, and kappa
        assert 0 <= of_row <= (3 if "back" in title else 1), kernel


def test_costs_come_sixteen_bytes_at_a_time(recorded):
    """From global memory, or where all rows are kept from shared memory."""
    for _, kernel, _, figures in loops(recorded, "forward", "adjoint"):
        quads, _, keeps = shape(kernel)
        kind = "shared" if keeps == 1 else "global"
        loads = {key: count for key, count in figures.items() if key.startswith(f"{kind} load")}
        assert loads[f"{kind} load 16"] >= figures["units"] // 4, (kernel, loads)
        if kind == "global":  # weights of the widest come the same way; nothing comes in smaller pieces
            assert set(loads) == {"global load 16"}, (kernel, loads)
    for title, kernel, _, figures in loops(recorded, "label, forward", "label, backward"):
        width = 16 if "float, " in kernel else 8  # half precision is computed in float: as many logits
        wide = figures["units"] // 4
        assert figures[f"global load {width}"] >= wide, kernel
        assert title == "label, forward" or figures[f"global store {width}"] == wide, kernel


def test_no_loop_waits_more_often_than_it_must(recorded):
    """One barrier per trip of the row loop: the sums of a group's rows."""
    for _, kernel, _, figures in loops(
        recorded, "forward", "adjoint", "small forward", "small adjoint", "gradient"
    ):
        assert figures["barrier"] == 1, kernel


def test_loops_spill_little_and_only_where_threads_own_many_columns(recorded):
    spilled = [(t, k, f) for t, k, _, f in loops(recorded) if f.get("spill")]
    assert {title for title, _, _ in spilled} == set(MOST_SPILLED)
    for title, kernel, figures in spilled:
        assert 100 * figures["spill"] <= MOST_SPILLED[title] * figures["instructions"], (kernel, figures)
        if title in ("forward", "adjoint"):
            assert shape(kernel)[0] >= 2, kernel
        elif title == "small adjoint":
            assert "<16, 4>" in kernel, kernel


def test_sizes_up_to_2048_run_without_a_spill_in_their_loops(recorded):
    for size in (256, 512, 1024, 2048):
        for way in ("forward", "adjoint"):
            assert not at_size(recorded, way, size).get("spill"), (way, size)


@pytest.mark.skipif(host_compiler() is None, reason="no C++ compiler to ask regime.h with")
def test_the_plans_are_those_of_regime_h(recorded):
    assert plans() == recorded["plans"], (
        "regime.h plans otherwise now: python tests/test_cuda_machine_code.py"
    )


def test_every_family_says_why_it_takes_what_it_takes(recorded):
    for title, family in recorded["families"].items():
        assert len(family["reason"]) > 20 and family["kernels"], title


# ---- The comparison


def test_more_of_anything_is_over_the_budget(recorded):
    families = recorded["families"]
    name = "sinkhorn::gradient_kernel<float, 8, true>"
    assert table.over_budget(families, families) == []
    for kind, change in (("instructions", 1), ("spill", 1), ("global load 4", 1), ("barrier", 1)):
        budget = {**families["gradient"]["kernels"][name]["90"]}
        budget[kind] = budget.get(kind, 0) - change
        kernels = {
            **families["gradient"]["kernels"],
            name: {**families["gradient"]["kernels"][name], "90": budget},
        }
        found = {"gradient": families["gradient"]}
        if budget[kind] < 0:  # none was recorded: give the kernel one
            more = {**families["gradient"]["kernels"][name]["90"], kind: 1}
            found = {"gradient": {"kernels": {**kernels, name: {**kernels[name], "90": more}}}}
            kernels = families["gradient"]["kernels"]
        wrong = table.over_budget(found, {"gradient": {"kernels": kernels}})
        assert len(wrong) == 1 and kind in wrong[0], (kind, wrong)


def test_kernels_that_come_or_go_are_told(recorded):
    families = recorded["families"]
    fewer = {**families["label, forward"], "kernels": {}}
    assert table.over_budget({"label, forward": fewer}, families) == ["label, forward: kernels came or went"]


# ---- What nvcc makes


@pytest.mark.long
@needs_nvcc
@needs_nvdisasm
def test_no_loop_is_over_its_budget(recorded):
    if compiler() != recorded["compiler"]:
        pytest.skip(f"the budget is that of nvcc {recorded['compiler']}, this is {compiler()}")
    found = table.report()
    assert set(found) == set(recorded["families"])
    wrong = table.over_budget(found, recorded["families"])
    assert not wrong, "\n".join([*wrong, "where that is meant: python tests/test_cuda_machine_code.py"])


@pytest.mark.long
@needs_nvcc
@needs_nvdisasm
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.shows)
def test_what_a_change_costs_shows(recorded, tmp_path, planted):
    if compiler() != recorded["compiler"]:
        pytest.skip(f"the budget is that of nvcc {recorded['compiler']}, this is {compiler()}")
    shutil.copytree(CSRC, tmp_path / "csrc")
    path = tmp_path / "csrc" / planted.file
    before = path.read_text()
    assert before.count(planted.text) == 1
    path.write_text(before.replace(planted.text, planted.instead))
    wrong = table.over_budget(table.report(tmp_path / "csrc", {planted.source}), recorded["families"])
    assert any(f"x {planted.shows} per trip" in line for line in wrong), wrong


if __name__ == "__main__":
    table.record(set(sys.argv[1:]) or None)
