"""What a kernel's work costs on a card: every constant of predict.py, with its source.

They are not fitted to the kernels that predict.py predicts, but for the two of the grid, which say so. A commit that
makes a kernel quicker leaves this file alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A GPU."""

    name: str
    multiprocessors: int
    clock_ghz: float
    copy_gb_s: float  # read and written
    l2_gb_s: float


H100 = Card(
    name="H100 SXM",
    multiprocessors=132,  # docs/gpu.md
    clock_ghz=1.98,  # docs/gpu.md: the most it runs at, and what its floors are reckoned with
    copy_gb_s=2965,  # docs/gpu.md: a copy of 1 GiB, measured
    l2_gb_s=6650,  # github.com/openxla/xla, the cost model of its matrix products: "measured H100 L2 bandwidth"
)
A6000 = Card(
    name="RTX A6000",
    multiprocessors=84,  # NVIDIA's data sheet: 10,752 cores of 128 per multiprocessor
    clock_ghz=1.80,  # the same: 38.7 TFLOP/s / (10,752 x 2); what it ran at for KNOWN is not published
    copy_gb_s=768,  # the same: of the memory; a copy has not been measured
    l2_gb_s=768,
)

# Of a multiprocessor. CUDA C++ Programming Guide, "Compute Capability 8.x" and "9.0": four warp schedulers that issue
# an instruction per clock each; "Arithmetic Instructions": 16 reciprocals, logarithms and exponentials per clock.
SCHEDULERS = 4
SPECIAL_PER_CLOCK = 16
WARP = 32
REGISTERS = 65536  # the same guide, "Technical Specifications per Compute Capability", as are the next two
MOST_THREADS = 2048
REGISTERS_AT_ONCE = 8  # per thread, as they are given out

# Clocks until what an instruction makes may be used: Jia et al., "Dissecting the NVIDIA Volta GPU Architecture via
# Microbenchmarking" (arXiv:1804.06826), and later cards alike. A scheduler with fewer warps than this has gaps.
LATENCY = 4

# Of the slots of the schedulers, how many a good kernel fills: what WARP_TILED below reaches of all.
ISSUED = 0.66

# Microseconds. csrc/sinkhorn/regime.h (Costs), fitted to the forward on an H100 at sizes from 160 to 4,096: a barrier
# of the grid, and what passes between its two barriers whatever the size: sums of columns, by way of the cache.
BARRIER_US = 1.0
EXCHANGE_US = 2.6
LAUNCH_US = 1.26  # docs/gpu.md: a small kernel of torch in a graph


@dataclass(frozen=True)
class Known:
    """A kernel of others: what a trip of its loop issues (counted by tests/machine_code), and what was published."""

    name: str
    source: str
    card: Card
    published: float
    unit: str  # TFLOP/s, or GB/s
    work: float  # flop, or bytes, in all
    instructions: int = 0  # per trip of a warp; 0: not counted, bound by memory
    trips: int = 0
    warps: int = 0  # of a block
    registers: int = 0
    blocks: int = 0
    bytes: float = 0


_SIDE = 4096  # of the matrices that both products are of
_PRODUCT = 2.0 * _SIDE**3
_SGEMM = "github.com/siboehm/SGEMM_CUDA at 60cba6f, counted for sm_86 with nvcc 13.0"
WARP_TILED = Known(
    name="SGEMM, warp tiles",
    source=f"{_SGEMM}: kernel 10, as set for this card",
    card=A6000,
    published=21.779,
    unit="TFLOP/s",
    work=_PRODUCT,
    instructions=2242,  # 2,048 of them multiply-adds
    trips=_SIDE // 16,
    warps=4,
    registers=168,
    blocks=(_SIDE // 128) ** 2,
)
KNOWN = (
    WARP_TILED,
    Known(
        name="SGEMM, vector loads",
        source=f"{_SGEMM}: kernel 6",
        card=A6000,
        published=18.237,
        unit="TFLOP/s",
        work=_PRODUCT,
        instructions=587,  # 512 of them multiply-adds
        trips=_SIDE // 8,
        warps=8,
        registers=102,
        blocks=(_SIDE // 128) ** 2,
    ),
    Known(
        name="softmax, 16,384 x 131,072 float32",
        source="github.com/Dao-AILab/quack, media/2025-07-10-membound-sol.md: each number read and written once",
        card=H100,
        published=3010.0,
        unit="GB/s",
        work=16384 * 131072 * 4 * 2.0,
        bytes=16384 * 131072 * 4 * 2.0,
    ),
)
