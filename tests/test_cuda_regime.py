"""Which regime runs, and that every launch fits the device: regime.h through the model's module."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_harness import build

from ucmkd_fast import _native

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with")

BLOCK, RESIDENT, SWEEP, REGISTERS, CLUSTER = 1, 2, 3, 5, 6
H100 = (132, 227 * 1024)
A100 = (108, 163 * 1024)
L4 = (58, 99 * 1024)

TABLE = [
    # n, m, batch, element, device -> regime
    (64, 64, 1, 4, H100, REGISTERS),
    (64, 64, 256, 4, H100, REGISTERS),
    (128, 128, 300, 4, A100, REGISTERS),
    (129, 128, 1, 4, H100, BLOCK),
    (64, 64, 1, 8, H100, BLOCK),
    (136, 136, 1, 4, H100, BLOCK),
    (160, 160, 1, 4, H100, RESIDENT),  # measured: 4.8 us per iteration against 5.6
    (160, 160, 2, 4, H100, BLOCK),  # in one launch
    (200, 200, 1, 4, H100, RESIDENT),
    (200, 200, 2, 4, H100, BLOCK),
    (128, 128, 1, 8, H100, RESIDENT),
    (256, 256, 1, 4, H100, RESIDENT),
    (512, 512, 256, 4, H100, BLOCK),  # one block per problem fills the device
    (1024, 1024, 1, 4, H100, RESIDENT),
    (2048, 2048, 1, 4, H100, RESIDENT),
    (512, 512, 4, 4, H100, RESIDENT),  # four launches in turn
    (2048, 2048, 132, 4, H100, RESIDENT),
    (2048, 2048, 1, 8, H100, SWEEP),
    (4096, 4096, 1, 4, H100, RESIDENT),  # 13 of the 32 rows of a block stay
    (4096, 4096, 264, 4, H100, RESIDENT),
    (6144, 6144, 1, 4, H100, SWEEP),  # at 6000: 57 us per iteration, 75 where some rows stay
    (8192, 8192, 1, 4, H100, SWEEP),
    (16384, 16384, 1, 4, H100, SWEEP),
    (64, 16384, 1, 4, H100, RESIDENT),  # a memory bank
    (2048, 2048, 1, 4, L4, RESIDENT),
    (4096, 4096, 1, 4, L4, SWEEP),
    (1024, 1024, 1, 4, L4, RESIDENT),
    (128, 128, 1, 4, L4, REGISTERS),
    (2048, 2048, 1, 4, A100, RESIDENT),
    (2400, 2400, 1, 4, A100, RESIDENT),
    (2400, 2400, 1, 8, A100, SWEEP),
]


@pytest.mark.parametrize("n, m, batch, element, device, regime", TABLE)
def test_the_regime_of_each_size(n, m, batch, element, device, regime):
    assert build.load().choose_regime(n, m, batch, element, *device) == regime


WITH_CLUSTERS = [
    # n, m, batch, element -> regime, blocks: of least predicted time among those whose shared memory holds the cost
    (128, 128, 1, 4, REGISTERS, 1),
    (136, 136, 1, 4, CLUSTER, 8),
    (256, 256, 1, 4, CLUSTER, 8),
    (256, 256, 32, 4, CLUSTER, 4),  # 33 clusters at a time
    (256, 256, 264, 4, CLUSTER, 2),  # no block has room for the cost
    (400, 400, 1, 4, CLUSTER, 8),
    (512, 512, 1, 4, RESIDENT, 132),
    (512, 512, 16, 4, CLUSTER, 8),
    (200, 200, 1, 8, CLUSTER, 8),
    (200, 200, 264, 4, BLOCK, 1),
    (40, 3000, 1, 4, CLUSTER, 8),
    (1024, 1024, 1, 4, RESIDENT, 132),
]


@pytest.mark.parametrize("n, m, batch, element, regime, blocks", WITH_CLUSTERS)
def test_clusters_where_they_are_asked_for(n, m, batch, element, regime, blocks):
    module = build.load()
    plan = module.make_plan(0, n, m, batch, element, *H100, clusters=True)
    assert (plan["regime"], plan["grid"]) == (regime, blocks)
    assert module.choose_regime(n, m, batch, element, *H100, clusters=True) == regime
    assert module.choose_regime(n, m, batch, element, *H100) != CLUSTER
    assert module.make_plan(CLUSTER, n, m, batch, element, *H100)["regime"] != CLUSTER  # a device without


def test_small_problems_take_half_the_grid():
    plan = build.load().make_plan
    grids = [
        plan(RESIDENT, n, m, 1, 4, *H100)["grid"] for n, m in ((256, 256), (512, 512), (200, 8192), (40, 40))
    ]
    assert grids == [66, 132, 132, 40]


def test_every_plan_fits_its_device():
    module = build.load()
    sizes = (1, 2, 31, 33, 64, 200, 257, 1000, 4096, 50_000, 300_000)
    for n, m, batch, element, device in itertools.product(sizes, sizes, (1, 300), (4, 8), (H100, A100, L4)):
        for regime in (0, RESIDENT, SWEEP, REGISTERS, CLUSTER):
            plan = module.make_plan(regime, n, m, batch, element, *device, clusters=regime == CLUSTER)
            case = (n, m, batch, element, device, plan)
            assert plan["shared"] <= device[1] or plan["regime"] == CLUSTER, case
            if plan["regime"] == CLUSTER:  # by threads that own columns, all rows on chip
                assert all(plan[way]["threads"] and plan[way]["kept"] for way in ("owned", "back")), case
            assert 1 <= plan["grid"] <= min(device[0], n) and plan["threads"] % 32 == 0, case
            assert plan["work"] % 2 == 0 and plan["tile_rows"] >= 0, case
            if plan["kept"]:
                assert plan["tile_rows"] * plan["grid"] >= n, case
            for owned in (plan["owned"], plan["back"]):
                if owned["threads"]:
                    assert (
                        owned["threads"] == owned["span"] * owned["groups"] <= (256 if element == 8 else 512)
                    ), case
                    assert owned["span"] % 32 == 0 and 4 * owned["quads"] * owned["span"] >= m, case
                    assert owned["shared"] <= device[1] and plan["work"] % 4 == 0, case
                    assert 0 <= owned["held"] <= n // plan["grid"], case  # rows of the smallest block
                    assert owned["work"] <= plan["work"], case


def test_threads_own_up_to_32_thousand_columns_in_float():
    plan = build.load().make_plan
    for m, quads, kept, held in ((1024, 1, True, 0), (2048, 1, True, 0), (2600, 2, True, 0), (3000, 2, False, 19),
                                 (4096, 2, False, 13), (8192, 4, False, 0), (16384, 8, False, 0),
                                 (32768, 16, False, 0)):  # fmt: skip
        for owned in (plan(0, m, m, 1, 4, *H100)[way] for way in ("owned", "back")):
            assert (owned["quads"], owned["kept"], owned["held"]) == (quads, kept, held), (m, owned)
            assert owned["threads"] >= 352, (m, owned)
    assert plan(0, 40000, 40000, 1, 4, *H100)["owned"]["threads"] == 0
    assert plan(0, 40000, 40000, 1, 4, *H100)["back"]["threads"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_check_says_in_one_line_that_there_is_no_gpu():
    script = Path(__file__).parents[1] / "benchmarks" / "gpu_check.sh"
    done = subprocess.run(
        ["sh", str(script), "--no-build"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
        check=False,
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("gpu_check: torch finds no GPU here") and done.stderr.count("\n") == 1


@pytest.mark.skipif(not _native._C.build_info()["cuda_architectures"], reason="built without nvcc")
def test_the_module_holds_what_it_says():
    """An entry of each kernel family, and machine code in the file for every architecture that build_info names."""
    image = Path(_native._C.__file__).read_bytes()
    assert hasattr(_native._C, "cuda_sinkhorn_forward") and hasattr(_native._C, "cuda_label_transport")
    for architecture in _native._C.build_info()["cuda_architectures"]:
        assert f"sm_{architecture}".encode() in image, architecture
