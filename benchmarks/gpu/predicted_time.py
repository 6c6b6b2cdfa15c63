"""The model: how long a loop takes on a card, from what a trip of it issues and reads.

A loop is bound by the slots of the schedulers, by the unit that takes exponentials, by memory or by the second-level
cache, whichever takes longest. To that come the barriers of a grid, what passes between them, and launches. Latency
counts only as far as too few warps leave slots empty; conflicts in shared memory do not count at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costs import (
    BARRIER_US,
    EXCHANGE_US,
    ISSUED,
    LATENCY,
    LAUNCH_US,
    MOST_THREADS,
    REGISTERS,
    REGISTERS_AT_ONCE,
    SCHEDULERS,
    SPECIAL_PER_CLOCK,
    WARP,
    Card,
    Known,
)

#: Instructions of a thread before and behind the loops of a projection: loads, 16 exponentials, the range, stores.
AROUND_PROJECTION = 600


@dataclass(frozen=True)
class Time:
    """Microseconds, by what they are spent on."""

    issue: float = 0
    special: float = 0
    memory: float = 0
    cache: float = 0
    fixed: float = 0

    @property
    def bounds(self) -> dict[str, float]:
        """What goes on at the same time."""
        return {
            "issue": self.issue,
            "exponentials": self.special,
            "memory": self.memory,
            "cache": self.cache,
            "barriers": self.fixed,
        }

    @property
    def total(self) -> float:
        """All of it."""
        return max(self.issue, self.special, self.memory, self.cache) + self.fixed

    @property
    def bound_by(self) -> str:
        """What the most of it is spent on."""
        return max(self.bounds, key=self.bounds.__getitem__)


def ceil_div(count: int, by: int) -> int:
    return -(-count // by)


def resident_blocks(threads: int, registers: int) -> int:
    """Blocks of a multiprocessor at a time, as far as threads and registers say."""
    per_thread = ceil_div(registers, REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    return min(MOST_THREADS // threads, REGISTERS // (per_thread * threads))


def filled(warps: float) -> float:
    """Of a multiprocessor's slots, the share that so many warps fill."""
    return min(ISSUED, warps / SCHEDULERS / LATENCY)


def issue_us(card: Card, instructions: float, warps: float) -> float:
    """So many instructions of warps on one multiprocessor, of which `warps` run at a time."""
    return instructions / (SCHEDULERS * filled(warps)) / (card.clock_ghz * 1e3)


def special_us(card: Card, count: float) -> float:
    """So many exponentials and their like, of warps on one multiprocessor."""
    return count * WARP / SPECIAL_PER_CLOCK / (card.clock_ghz * 1e3)


def memory_us(card: Card, size: float) -> float:
    return size / (card.copy_gb_s * 1e3)


def iteration(
    card: Card, n: int, plan: Mapping[str, int | str], own: Mapping[str, int], loop: Mapping[str, int]
) -> Time:
    """One iteration of a square problem whose threads own columns; `own`: of the plan, for the one way or the other."""
    grid = int(plan["grid"])
    rows, warps = ceil_div(n, grid), own["threads"] // WARP
    trips = ceil_div(rows, own["groups"] * own["rows"])
    size = 4.0 * n * n
    passing = 0.0 if own["keeps"] == 1 else 1 - own["held"] / rows
    looks = 2 if loop["exponential"] > loop["units"] else 1  # the second finds the row in the cache
    return Time(
        issue=issue_us(card, trips * warps * loop["instructions"], warps),
        special=special_us(card, trips * warps * loop["special"]),
        memory=memory_us(card, passing * size),
        cache=passing * looks * size / (card.l2_gb_s * 1e3),
        fixed=2 * BARRIER_US + EXCHANGE_US if grid > 1 else 0,
    )


def small_iteration(card: Card, loop: Mapping[str, int], warps: int = 8) -> Time:
    """One iteration of a problem in the registers of one block."""
    return Time(
        issue=issue_us(card, warps * loop["instructions"], warps),
        special=special_us(card, warps * loop["special"]),
    )


def gradient_pass(card: Card, n: int, side: int, loop: Mapping[str, int], iterations: int) -> Time:
    """What dC takes, spread over the iterations: two multiply-adds per element of each, in a square tile per block.

    Then the cost is read and dC written, once.
    """
    warps = 8
    of_one = ceil_div(ceil_div(n, side) ** 2, card.multiprocessors)  # the most that a multiprocessor makes
    trips = 2 * (side // 16) ** 2 / loop["units"]  # of the loop over chunks, per iteration
    at_once = min(of_one, resident_blocks(warps * WARP, loop["registers"]))
    instructions = of_one * warps * trips * loop["instructions"]
    once = memory_us(card, 8.0 * n * n) + LAUNCH_US
    return Time(issue=issue_us(card, instructions, at_once * warps), fixed=once / iterations)


def label_pass(card: Card, rows: int, read: float, written: float, loop: Mapping[str, int]) -> Time:
    """One kernel of the label losses, a warp per row and four of them per block; bytes that it reads and writes."""
    at_once = 4 * resident_blocks(4 * WARP, loop["registers"])
    instructions = ceil_div(rows, card.multiprocessors) * loop["instructions"]
    return Time(
        issue=issue_us(card, instructions, at_once),
        special=special_us(card, ceil_div(rows, card.multiprocessors) * loop["special"]),
        memory=memory_us(card, read + written),
        fixed=LAUNCH_US,
    )


def projection(
    card: Card, matrices: int, iterations: int, loops: Sequence[Mapping[str, int]], size: float
) -> Time:
    """One way of the doubly stochastic projection of 4 x 4 matrices, a thread for each, with ``size`` bytes in all.

    Then the look for matrices that left their range, a launch of its own.
    """
    of_block = 2  # warps
    of_one = ceil_div(ceil_div(matrices, of_block * WARP), card.multiprocessors) * of_block
    registers = max(loop["registers"] for loop in loops)
    at_once = min(of_one, of_block * resident_blocks(of_block * WARP, registers))
    instructions = of_one * (iterations * sum(loop["instructions"] for loop in loops) + AROUND_PROJECTION)
    return Time(
        issue=issue_us(card, instructions, at_once),
        special=special_us(card, of_one * iterations * sum(loop.get("special", 0) for loop in loops)),
        memory=memory_us(card, size),
        fixed=2 * LAUNCH_US,
    )


def known_us(known: Known) -> float:
    """A kernel of others."""
    if not known.instructions:
        return memory_us(known.card, known.bytes)
    of_one = ceil_div(known.blocks, known.card.multiprocessors)
    at_once = min(of_one, resident_blocks(known.warps * WARP, known.registers))
    issued = of_one * known.warps * known.trips * known.instructions
    return max(issue_us(known.card, issued, at_once * known.warps), memory_us(known.card, known.bytes))


def known_rate(known: Known) -> float:
    """In the unit of what was published."""
    per_us = known.work / known_us(known)
    return per_us / 1e6 if known.unit == "TFLOP/s" else per_us / 1e3
