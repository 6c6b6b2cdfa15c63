"""The kernels whose loops have budgets: where each loop is, and how much of the problem one trip of it does.

A loop is found by the lines of the function that it stands for (`inside`): the smallest one that also holds what
`holds` names. Where there are several, for aligned rows and for others, or for what is left of an unrolled loop, it
is the one of the widest loads, then of the most exponentials, then the shortest. Rare branches (`rare`) are left out of
the longest way through a trip. How many units a trip does follows from the template arguments of the kernel (`units`):
that one exponential is taken per element is found, not assumed. Only where the unrolling is the compiler's choice are
its exponentials the units.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cuda_compiler import CSRC, readable

from .flow import Block, Flow, Loop
from .regions import Region, is_of
from .sass import Function, Instruction, counts, functions
from .tools import disassembled


@dataclass(frozen=True)
class Family:
    """Kernels whose loops do the same, and why they take what they take."""

    title: str
    source: str
    kernel: str  # a pattern of readable names; its groups are the numbers that `units` takes
    unit: str
    units: Callable[..., int] | None  # None: as many as there are exponentials
    inside: tuple[Region, ...]  # empty: the whole kernel, which has no loop
    holds: tuple[str, ...]
    reason: str
    rare: tuple[Region, ...] = ()
    inner_trips: Callable[..., int] = lambda *_: (
        1
    )  # of the loops inside that one; 0: ways through them are left out


def _one(*_: int) -> int:
    return 1


def _columns_by_rows(quads: int, rows: int, *_: int) -> int:
    return 4 * quads * rows


def _logits_of_both(packs: int) -> int:
    return 2 * 4 * packs


def _depth_of_gradient(side: int) -> int:
    return 2 * 32 // side  # of a chunk: two per iteration


def _depth_of_pairs() -> int:
    return 16  # features of a chunk


def _owned(title: str, source: str, kernel: str, reason: str) -> Family:
    rows = (("owned.cuh", "one_look"), ("owned.cuh", "two_looks"))
    holds = ("barrier", "exponential")
    return Family(title, f"sinkhorn/{source}", kernel, "element", _columns_by_rows, rows, holds, reason)


def _small(title: str, file: str, kernel: str, inside: str, rare: tuple[str, ...], reason: str) -> Family:
    unit = "iteration of a warp"
    regions = tuple((file, name) for name in rare)
    return Family(
        title, f"sinkhorn/{file}", kernel, unit, _one, ((file, inside),), ("barrier",), reason, regions
    )


def _label(title: str, rare: tuple[Region, ...], reason: str) -> Family:
    kernel = r"label_transport::(?:warp|block)_kernel<(?:float|__nv_bfloat16), 4, (\d+)>"
    source = "label_transport/cuda.cu"
    return Family(title, source, kernel, "logit", _logits_of_both, (), (), reason, rare)


def _pass(title: str, source: str, kernel: str, step: str, reason: str) -> Family:
    inside = (("steps.cuh", step),)
    return Family(title, f"sinkhorn/{source}", kernel, "element", None, inside, ("exponential",), reason)


def _projection(title: str, backward: bool, inside: str, reason: str) -> Family:
    """A thread per 4 x 4 matrix, so that an iteration of a warp is one of 32 matrices."""
    kernel = rf"doubly_stochastic::thread_kernel<float, (\d+), {str(backward).lower()}>"
    regions = (("thread.cuh", inside),)
    source, unit = "doubly_stochastic/cuda.cu", "iteration of 32 matrices"
    return Family(title, source, kernel, unit, _one, regions, ("multiply-add",), reason)


def _product(title: str, source: str, kernel: str, depth: Callable[..., int], reason: str) -> Family:
    """Multiply-adds of a square per thread, 8 x 8 where the kernel names no side; two depths per inner trip."""

    def units(*sides: int) -> int:
        side = sides[0] if sides else 8
        return side * side * depth(*sides)

    inside = (("tile.cuh", "multiply"),)
    holds = ("barrier", "multiply-add")
    return Family(
        title,
        f"sinkhorn/{source}",
        kernel,
        "multiply-add",
        units,
        inside,
        holds,
        reason,
        inner_trips=lambda *sides: depth(*sides) // 2,
    )


_SMOOTHING = (("rows.cuh", "sum_of"),)  # label smoothing is an option
_WRITES = (("rows.cuh", "store"), ("cuda.cu", "write_label"))
_LOG_SUM = "a log-sum per thread whose largest term may change, and loads of four bytes"

FAMILIES = (
    _owned(
        "forward",
        "forward_owned.cu",
        r"sinkhorn::owned_kernel<float, (\d+), (\d+), \d+, (?:true|false)>",
        "per element a subtraction, a multiply-add, the exponential, an addition, a multiply-add, a quarter of a load; "
        "the rest is the sums of rows over the group and the guard of the range, shared by the columns of a thread",
    ),
    _owned(
        "adjoint",
        "adjoint_owned.cu",
        r"sinkhorn::owned_adjoint_kernel<float, (\d+), (\d+), \d+, (?:true|false), false>",
        "as the forward, with a multiply-add by the column's weight for the addition, and no range to guard",
    ),
    _owned(
        "forward, unbalanced",
        "forward_owned.cu",
        r"sinkhorn::owned_unbalanced_kernel<float, (\d+), (\d+), \d+>",
        "as the forward: damping, and what is kept, are per row and column",
    ),
    _owned(
        "adjoint, unbalanced",
        "adjoint_owned.cu",
        r"sinkhorn::owned_unbalanced_adjoint_kernel<float, (\d+), (\d+), \d+>",
        "as the adjoint, whose softmaxes are of the same log-sums",
    ),
    _small(
        "small forward",
        "small_forward.cu",
        r"sinkhorn::small_forward_kernel<(\d+), (\d+), true>",
        "row_step",
        ("move_base", "exact_row", "exact_columns"),
        "two multiply-adds per element of a lane, two shuffles per row, eight parts per column to add up",
    ),
    _small(
        "small adjoint",
        "small_adjoint.cu",
        r"sinkhorn::small_adjoint_kernel<(\d+), (\d+)>",
        "end_step",
        ("weigh_vanished", "deposit", "set_base", "sum_plan"),
        "makes dC along the way: six multiply-adds per element of a lane where the forward has two, and twice its sums",
    ),
    _product(
        "gradient",
        "gradient.cu",
        r"sinkhorn::gradient_kernel<float, (\d+), true>",
        _depth_of_gradient,
        "loads of two vectors from shared memory for each square of multiply-adds, and the ratios of the next chunk",
    ),
    _label(
        "label, forward",
        (*_SMOOTHING, *_WRITES),
        "per logit a comparison, a subtraction, a multiplication, the exponential, an addition, the -inf past the end; "
        "the rest is per row: shuffles, logarithms, the label's loss",
    ),
    _label(
        "label, backward",
        _SMOOTHING,
        "the forward once more, as its sums are not kept, a multiply-add per logit and a quarter of a store",
    ),
    _projection(
        "projection, forward",
        False,
        "iterate",
        "32 multiply-adds and 8 reciprocals with their guards; eps and the sums to be reached are 16 multiplications",
    ),
    _projection(
        "projection, kept",
        True,
        "iterate",
        "the forward once more, which stores the scalings of each step",
    ),
    _projection(
        "projection, adjoint",
        True,
        "adjoint",
        "32 multiply-adds for the gradients of the scalings and 32 for that of the matrix, and 24 products per step",
    ),
    _pass(
        "general sweep, rows",
        "forward.cu",
        r"sinkhorn::forward_kernel<float, true>",
        "Iterate::row",
        _LOG_SUM,
    ),
    _pass(
        "general sweep, columns",
        "forward.cu",
        r"sinkhorn::forward_kernel<float, true>",
        "Iterate::column",
        _LOG_SUM,
    ),
    _pass(
        "panel, rows",
        "panel.cu",
        r"sinkhorn::rows_kernel<float, sinkhorn::Iterate<float>>",
        "Iterate::row",
        _LOG_SUM,
    ),
    _pass(
        "panel, columns",
        "panel.cu",
        r"sinkhorn::columns_kernel<float, sinkhorn::Iterate<float>>",
        "Iterate::column",
        _LOG_SUM,
    ),
    _product(
        "streamed, products",
        "streamed.cu",
        r"sinkhorn::stream_(?:rows|columns)<float, sinkhorn::Iterate<float>, cost::PairTile<float>>",
        _depth_of_pairs,
        "counted is the longest of its three ways, squares of differences: a subtraction for each multiply-add",
    ),
    Family(
        "streamed, tensor cores",
        "sinkhorn/streamed.cu",
        r"sinkhorn::stream_(?:rows|columns)<float, sinkhorn::Iterate<float>, cost::TensorTile>",
        "multiply-add",
        lambda: 4 * 16 * 32,  # elements of a thread times features of a chunk
        (("tensor_tile.cuh", "multiply"),),
        ("barrier", "tensor product"),
        "64 multiply-adds of a thread per tensor product, whose fragments come from shared memory four bytes at a time",
        inner_trips=lambda: 0,  # the loop inside it is for features that are not aligned
    ),
)


def loop_of(family: Family, flow: Flow, folder: Path) -> Loop:
    """The loop of a kernel that the family is about."""
    found: list[tuple[Loop, list[Instruction]]] = []
    for loop in flow.loops:  # the smallest first
        instructions = flow.instructions(loop)
        held = counts(instructions)
        if any(other.blocks < loop.blocks for other, _ in found) or not all(
            held[kind] for kind in family.holds
        ):
            continue
        if any(is_of(one, folder, family.inside) for one in instructions):
            found.append((loop, instructions))
    if not found:
        raise ValueError(f"{flow.function.name}: no loop of {family.inside} that holds {family.holds}")
    return max(found, key=lambda one: _rank(one[1]))[0]


def _rank(instructions: list[Instruction]) -> tuple[float, int, int]:
    width = 0.0
    for base in ("LDG", "LDS"):  # shared memory counts where nothing comes from global memory
        loads = [one.bytes for one in instructions if one.base == base]
        if loads:
            width = sum(loads) / len(loads)
            break
    return width, counts(instructions)["exponential"], -len(instructions)


def figures(family: Family, function: Function, arguments: tuple[int, ...], folder: Path) -> dict[str, int]:
    """What one trip of the loop comes to, and how many units it does."""
    flow = Flow(function)
    left_out = partial(_is_rare, family=family, folder=folder)
    if family.inside:
        way = flow.longest_trip(loop_of(family, flow, folder), left_out, family.inner_trips(*arguments))
    else:
        way = flow.longest_way(left_out)
    found = counts(way)
    units = family.units(*arguments) if family.units else found["exponential"]
    return {"units": units, **dict(sorted(found.items()))}


def _is_rare(block: Block, family: Family, folder: Path) -> bool:
    """Whether most of it is of what the longest way leaves out: the compiler moves instructions in and out.

    Where ways meet again, the instruction that waits carries the line of either.
    """
    voting = [one for one in block.instructions if one.base not in ("BSYNC", "BSSY", "WARPSYNC")]
    return 2 * sum(is_of(one, folder, family.rare) for one in voting) > len(voting)


def measure(
    source: str, architecture: str, folder: Path = CSRC
) -> Iterator[tuple[Family, str, dict[str, int]]]:
    """Every kernel of one file that is of a family, with its figures."""
    families = [family for family in FAMILIES if family.source == source]
    with disassembled(folder / source, architecture, folder) as (lines, registers):
        found = functions(lines)
    names = readable(set(found))
    for family in families:
        kernels = {
            names[mangled]: (mangled, match)
            for mangled in found
            if (match := re.fullmatch(family.kernel, names[mangled]))
        }
        if not kernels:
            raise ValueError(f"{source} has no kernel {family.kernel}")
        for name in sorted(kernels):
            mangled, match = kernels[name]
            of_loop = figures(family, found[mangled], tuple(map(int, match.groups())), folder)
            yield family, name, {**of_loop, "registers": registers[mangled]}
