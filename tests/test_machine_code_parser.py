"""How machine code is read: instructions, loops, the longest way through one, and where functions stand in a source."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from machine_code.flow import Flow
from machine_code.regions import is_of, lines_of
from machine_code.sass import counts, functions
from machine_code.tools import MISSING, disassembled

# As nvdisasm -c -gi prints it: two loops in each other, a rare branch in the outer one, vector loads, guards, a branch
# for threads of a warp that have parted, and behind the end its subroutine and padding.
TEXT = """
	.section	.text._Z4loopPf,"ax",@progbits
.text._Z4loopPf:
	//## File "/src/outer.cu", line 10
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 EXIT ;
.L_x_outer:
.L_x_0:
	//## File "/src/outer.cu", line 12
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/               @P1 LDG.E.64 R8, desc[UR4][R2.64+0x10] ;
        /*0040*/                   LDG.E R9, desc[UR4][R2.64+0x20] ;
        /*0050*/               @P2 BRA `(.L_x_2) ;
	//## File "/src/rare.cuh", line 4 inlined at "/src/outer.cu", line 13
	//## File "/src/outer.cu", line 13
        /*0060*/                   MUFU.EX2 R10, R4 ;
        /*0070*/                   MUFU.EX2 R11, R5 ;
        /*0080*/                   LDL R12, [R1] ;
        /*0090*/                   BSYNC B0 ;
.L_x_2:
	//## File "/src/outer.cu", line 14
        /*00a0*/                   BRA.DIV UR4, `(.L_x_9) ;
.L_x_3:
	//## File "/src/inner.cuh", line 7 inlined at "/src/outer.cu", line 15
	//## File "/src/outer.cu", line 15
        /*00b0*/                   LDS.128 R16, [R3] ;
        /*00c0*/                   FFMA R20, R16, R4, R20 ;
        /*00d0*/               @P3 BRA `(.L_x_3) ;
	//## File "/src/outer.cu", line 16
        /*00e0*/                   SHFL.BFLY PT, R21, R20, 0x10, 0x1f ;
        /*00f0*/                   MUFU.EX2 R22, R21 ;
        /*0100*/                   MUFU.RCP R23, R22 ;
        /*0110*/                   STS [R3], R23 ;
        /*0120*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0130*/              @!P4 BRA `(.L_x_0) ;
	//## File "/src/outer.cu", line 18
        /*0140*/                   STG.E.128 desc[UR4][R2.64], R16 ;
        /*0150*/                   EXIT ;
.L_x_9:
        /*0160*/                   WARPSYNC.COLLECTIVE R84, `(.L_x_10) ;
.L_x_10:
        /*0170*/                   BRA `(.L_x_3) ;
.L_x_11:
        /*0180*/                   BRA `(.L_x_11);
        /*0190*/                   NOP;
.L_x_12:
	.section	.text._Z5otherPf,"ax",@progbits
.text._Z5otherPf:
        /*0000*/                   EXIT ;
"""


@pytest.fixture
def loop():
    found = functions(TEXT.splitlines())
    assert set(found) == {"_Z4loopPf", "_Z5otherPf"}
    return Flow(found["_Z4loopPf"])


def nothing(_):
    return False


def rare(block):
    return any(("rare.cuh", 4) in one.places for one in block.instructions)


def opcodes(instructions):
    return [one.opcode for one in instructions]


def test_guards_opcodes_and_lines_of_instructions(loop):
    move, leave, wide, half, narrow = loop.function.instructions[:5]
    assert (move.guard, move.opcode, move.operands) == ("", "MOV", "R1, c[0x0][0x28]")
    assert (leave.guard, leave.opcode) == ("@!P0", "EXIT")
    assert [one.bytes for one in (wide, half, narrow)] == [16, 8, 4]
    assert wide.places == (("outer.cu", 12),)
    exponential = loop.function.instructions[6]
    assert exponential.places == (("rare.cuh", 4), ("outer.cu", 13)), (
        "where it stands, then where it was inlined"
    )
    assert loop.function.instructions[7].places == exponential.places, "lines hold until others come"


def test_only_wanted_functions_are_read():
    assert set(functions(TEXT.splitlines(), re.compile("other"))) == {"_Z5otherPf"}


def test_loops_are_found_in_each_other(loop):
    inner, outer = (one for one in loop.loops if len(one.blocks) > 1 or len(loop.instructions(one)) > 1)
    assert opcodes(loop.instructions(inner)) == ["LDS.128", "FFMA", "BRA"]
    assert inner.blocks < outer.blocks and outer.inner == [inner]
    first, *_, last = loop.instructions(outer)
    assert first.opcode == "LDG.E.128.CONSTANT" and last.operands == "`(.L_x_0)"
    assert len(loop.instructions(outer)) == 18


def test_the_longest_way_takes_the_longer_branch_and_leaves_out_what_is_rare(loop):
    outer = max(loop.loops, key=lambda one: len(one.blocks))
    everything, usual = loop.longest_trip(outer, nothing), loop.longest_trip(outer, rare)
    assert len(everything) == 18 and len(usual) == 14
    assert counts(everything) - counts(usual) == Counter(instructions=4, special=2, exponential=2, spill=1)


def test_what_is_counted(loop):
    outer = max(loop.loops, key=lambda one: len(one.blocks))
    assert counts(loop.longest_trip(outer, rare)) == {
        "instructions": 14,
        "global load 16": 1,
        "global load 8": 1,
        "global load 4": 1,
        "shared load 16": 1,
        "shared store 4": 1,
        "multiply-add": 1,
        "shuffle": 1,
        "special": 2,
        "exponential": 1,
        "barrier": 1,
    }


def test_trips_of_inner_loops_are_counted_as_often_as_is_said(loop):
    outer = max(loop.loops, key=lambda one: len(one.blocks))
    assert counts(loop.longest_trip(outer, rare, inner_trips=4))["multiply-add"] == 4
    with pytest.raises(ValueError, match="every way through the loop is left out"):
        loop.longest_trip(outer, rare, inner_trips=0)


def test_a_way_through_the_whole_function_ends_where_it_may(loop):
    way = opcodes(loop.longest_way(rare))
    assert way[0] == "MOV" and way[-1] == "EXIT" and "STG.E.128" in way and "LDL" not in way
    short = opcodes(loop.longest_way(lambda block: block.instructions[0].opcode.startswith("LDG")))
    assert short == ["MOV", "EXIT"]


def test_a_loop_all_of_which_is_left_out_is_an_error(loop):
    outer = max(loop.loops, key=lambda one: len(one.blocks))
    with pytest.raises(ValueError, match="every way through the loop is left out"):
        loop.longest_trip(outer, lambda block: block.instructions[0].opcode == "LDS.128")


def test_a_branch_for_parted_threads_is_not_followed(loop):
    assert "WARPSYNC.COLLECTIVE" not in opcodes(loop.longest_way(nothing))


SOURCE = """
struct One {
  float row(int i) const {
    if (i > 0) {
      return 1;
    }
    return twice(i);
  }
};
struct Two {
  float row(int i) const { return 2; }
};
float twice(int i);
float twice(int i) {
  return 2 * i;
}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "some.cuh").write_text(SOURCE)
    return tmp_path


def test_where_functions_stand(folder):
    assert lines_of(folder, ("some.cuh", "row")) == [range(3, 9), range(11, 12)]
    assert lines_of(folder, ("some.cuh", "Two::row")) == [range(11, 12)]
    assert lines_of(folder, ("some.cuh", "twice")) == [range(14, 17)], "a declaration and a call are none"
    with pytest.raises(ValueError, match=r"no file some\.cuh below .* defines thrice"):
        lines_of(folder, ("some.cuh", "thrice"))


def test_an_instruction_is_of_the_functions_that_inlined_it(folder):
    (function,) = functions([
        ".text.f:",
        '	//## File "/a/launch.cuh", line 5 inlined at "/a/some.cuh", line 4',
        '	//## File "/a/some.cuh", line 4',
        "        /*0000*/                   FADD R1, R1, R2 ;",
    ]).values()  # fmt: skip
    (add,) = function.instructions
    assert is_of(add, folder, (("some.cuh", "One::row"),))
    assert not is_of(add, folder, (("some.cuh", "Two::row"), ("some.cuh", "twice")))


def test_without_a_disassembler_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("machine_code.tools.nvdisasm", lambda: None)
    with (
        pytest.raises(FileNotFoundError, match="nvidia-cuda-nvdisasm"),
        disassembled(tmp_path / "no.cu", "90"),
    ):
        raise AssertionError
    assert "nvidia-cuda-nvdisasm" in MISSING
