"""Basic blocks of a function, its loops, and the longest way through one trip of a loop.

The longest way is what a warp issues at most whose threads stay together: of two branches the longer one, an inner loop
as `inner_trips` trips of it (0: no way through it), and nothing of blocks that are left out. A jump that is only taken
where threads of a warp have parted (BRA.DIV, WARPSYNC.COLLECTIVE) is not followed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .sass import Function, Instruction

_TARGET = re.compile(r"`\((\S+)\)")
_ALWAYS = ("", "@PT", "@UPT")


@dataclass
class Block:
    """Instructions that run one after the other, and which blocks may follow."""

    number: int
    instructions: list[Instruction]
    after: list[int] = field(default_factory=list)


@dataclass
class Loop:
    """A natural loop: its first block, all its blocks, those of inner loops among them, and these."""

    head: int
    blocks: set[int]
    inner: list[Loop] = field(default_factory=list)


class Flow:
    """Blocks and loops of one function."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.blocks = _blocks(function)
        self.loops = _loops(self.blocks)

    def instructions(self, loop: Loop) -> list[Instruction]:
        return [one for number in sorted(loop.blocks) for one in self.blocks[number].instructions]

    def longest_trip(
        self, loop: Loop, left_out: Callable[[Block], bool], inner_trips: int = 1
    ) -> list[Instruction]:
        """The instructions of the longest way from a loop's first block back to it."""
        way = self._longest(loop, left_out, inner_trips)
        if not way:
            raise ValueError(f"{self.function.name}: every way through the loop is left out")
        return way

    def longest_way(self, left_out: Callable[[Block], bool]) -> list[Instruction]:
        """The instructions of the longest way through the function."""
        outer = [loop for loop in self.loops if not any(loop in other.inner for other in self.loops)]
        way = self._longest(Loop(0, set(range(len(self.blocks))), outer), left_out, 1, to_the_end=True)
        if not way:
            raise ValueError(f"{self.function.name}: every way through it is left out")
        return way

    def _longest(
        self, loop: Loop, left_out: Callable[[Block], bool], inner_trips: int, to_the_end: bool = False
    ) -> list[Instruction]:
        """The longest way from the head of a loop back to it, or from there to where the function ends."""
        of_loop = {number: inner for inner in loop.inner for number in inner.blocks}
        best: dict[int, list[Instruction] | None] = {}
        open_nodes: set[int] = set()

        def own_of(at: int) -> tuple[list[Instruction] | None, set[int]]:
            """What is at a block, or in the inner loop that begins there, and which blocks follow."""
            if at not in of_loop:
                block = self.blocks[at]
                return (None if left_out(block) else block.instructions), set(block.after)
            inner = of_loop[at]
            trip = self._longest(inner, left_out, inner_trips)
            after = {b for number in inner.blocks for b in self.blocks[number].after} - inner.blocks
            return (trip * inner_trips or None), after

        def from_block(number: int) -> list[Instruction] | None:
            """None: there is no way on from here."""
            at = of_loop[number].head if number in of_loop else number
            if at in best:
                return best[at]
            if at in open_nodes:
                raise ValueError(f"{self.function.name}: a loop with two entries at block {at}")
            open_nodes.add(at)
            own, after = own_of(at)
            found: list[Instruction] | None = None
            if own is not None:
                ways: list[list[Instruction] | None] = []
                for b in after:
                    if b == loop.head and not to_the_end:
                        ways.append([])
                    elif b in loop.blocks:
                        ways.append(from_block(b))
                if (
                    to_the_end
                    and at not in of_loop
                    and self.blocks[at].instructions[-1].base in ("EXIT", "RET")
                ):
                    ways.append([])
                for way in ways:
                    if way is not None and (found is None or len(own) + len(way) > len(found)):
                        found = own + way
            open_nodes.discard(at)
            best[at] = found
            return found

        return from_block(loop.head) or []


def _blocks(function: Function) -> list[Block]:
    instructions = function.instructions
    starts = {0, *function.labels.values()}
    starts |= {k + 1 for k, one in enumerate(instructions) if _leaves(one)}
    order = sorted(start for start in starts if start < len(instructions))
    number_of = {start: number for number, start in enumerate(order)}
    blocks = []
    for number, start in enumerate(order):
        end = order[number + 1] if number + 1 < len(order) else len(instructions)
        block = Block(number, instructions[start:end])
        last = block.instructions[-1]
        target = _jump(last)
        if target is not None and function.labels.get(target, len(instructions)) < len(instructions):
            block.after.append(number_of[function.labels[target]])
        if _goes_on(last) and end < len(instructions):
            block.after.append(number_of[end])
        blocks.append(block)
    return blocks


def _leaves(one: Instruction) -> bool:
    return one.base in ("BRA", "EXIT", "RET", "JMP", "BRX")


def _jump(one: Instruction) -> str | None:
    """The label of a jump within the function."""
    if one.base not in ("BRA", "JMP") or one.opcode.startswith("BRA.DIV"):
        return None
    match = _TARGET.search(one.operands)
    return match[1] if match else None


def _goes_on(one: Instruction) -> bool:
    """Whether the next instruction may follow."""
    if not _leaves(one) or one.opcode.startswith("BRA.DIV") or one.guard not in _ALWAYS:
        return True
    return one.base == "BRA" and not one.operands.lstrip().startswith("`")  # a condition before the label


def _dominators(blocks: list[Block]) -> list[set[int]]:
    """Which blocks come before each on every way to it, itself among them; of the unreachable: none."""
    order, seen, stack = [], {0}, [(0, iter(blocks[0].after))]
    while stack:
        at, after = stack[-1]
        for b in after:
            if b not in seen:
                seen.add(b)
                stack.append((b, iter(blocks[b].after)))
                break
        else:
            order.append(at)
            stack.pop()
    order.reverse()
    before: dict[int, list[int]] = {b: [] for b in order}
    for a in order:
        for b in blocks[a].after:
            before[b].append(a)
    found: list[set[int]] = [set() for _ in blocks]
    everything = set(order)
    for b in order:
        found[b] = set(everything)
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for b in order[1:]:
            now = set.intersection(*(found[a] for a in before[b])) | {b}
            if now != found[b]:
                found[b], changed = now, True
    return found


def _loops(blocks: list[Block]) -> list[Loop]:
    """Natural loops, the smallest first; two that begin at one block are one."""
    dominators = _dominators(blocks)
    before: dict[int, set[int]] = {block.number: set() for block in blocks}
    for block in blocks:
        for b in block.after:
            before[b].add(block.number)
    bodies: dict[int, set[int]] = {}
    for block in blocks:
        for head in block.after:
            if head not in dominators[block.number]:
                continue
            body = bodies.setdefault(head, {head})
            stack = [block.number]
            while stack:
                at = stack.pop()
                if at not in body:
                    body.add(at)
                    stack += [a for a in before[at] if dominators[a]]
    loops = sorted((Loop(head, body) for head, body in bodies.items()), key=lambda loop: len(loop.blocks))
    for k, loop in enumerate(loops):
        around = next((other for other in loops[k + 1 :] if loop.blocks < other.blocks), None)
        if around is not None:
            around.inner.append(loop)
    return loops
