"""Tests of the tester: kernels with a bug planted in them must fail on the execution model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_harness import OutOfBounds, build, model
from sinkhorn_cases import Case
from test_sinkhorn import distance, gradients, leaves

import ucmkd_fast as uk
from ucmkd_fast.ops._cuda import _device
from ucmkd_fast.reference import sinkhorn as reference
from ucmkd_fast.reference.doubly_stochastic import doubly_stochastic as projection_reference

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the model with")

# (file, text, replacement), and the regime that runs it
BUGS = {
    "barrier between the passes removed": (
        "sinkhorn/team.cuh",
        "      }\n      cuda::sync_block();\n      if constexpr (Step::kColumns) column_pass",
        "      }\n      if constexpr (Step::kColumns) column_pass",
        "block",
    ),
    "grid sync removed": (
        "sinkhorn/team.cuh",
        "    if (Step::kColumns && kGrid && state_shared) publish_state();\n    sync();",
        "    if (Step::kColumns && kGrid && state_shared) publish_state();",
        "resident",
    ),
    "one column too few": (
        "sinkhorn/team.cuh", "j < m; j += slices * kWarp)", "j < m - 1; j += slices * kWarp)", "sweep",
    ),
    "one column too many": (
        "sinkhorn/team.cuh", "for (int j = col_begin + tid; j < col_end; j += threads) {",
        "for (int j = col_begin + tid; j <= col_end; j += threads) {", "block",
    ),
    "output not written": ("sinkhorn/forward_owned.cu", "    p.g()[j] = g;\n", "", "block"),
    "barrier between the groups' sums of columns removed": (
        "sinkhorn/owned.cuh", "wrong = cuda::any_of_block(step.wrong);", "wrong = step.wrong;", "resident",
    ),
    "columns put together before all are there": (
        "sinkhorn/owned.cuh", "    publish(acc);\n    sync();", "    publish(acc);", "sweep",
    ),
    "last row of a turn left out": (
        "sinkhorn/owned.cuh", "if (row >= count) leave_out", "if (row >= count - 1) leave_out", "sweep",
    ),
    "gradient not written": (
        "sinkhorn/gradient.cu", "    Access::write(out + row,", "    if (i > 0) Access::write(out + row,", "block",
    ),
    "rows of a panel not put together": (
        "sinkhorn/panel.cu", "  cuda::sync_block();\n  if (threadIdx.x > 0) return;", "  if (threadIdx.x > 0) return;",
        "panel",
    ),
    "rows of a panel left out": (
        "sinkhorn/panel.cu", "r += int(call.groups)) {", "r += int(call.groups) + 1) {", "panel",
    ),
    "gradient of a panel at the rows of another": (
        "sinkhorn/gradient.cu", "const int first_row = int(batch.first_row), end = first_row + int(batch.rows);",
        "const int first_row = 0, end = first_row + int(batch.rows);", "panel",
    ),
    "barrier of a cluster that is only that of its blocks": (
        "sinkhorn/crew.cuh", "      cuda::wait_for_cluster();", "      cuda::sync_block();",
        "cluster",
    ),
    "sums of a cluster's blocks at places of their own": (
        "sinkhorn/owned_rows.cuh",
        "    if constexpr (kCluster) parts = potential, potential += parts_stride;",
        "    if constexpr (kCluster) potential += in_fours(count), parts = potential, potential += parts_stride;",
        "cluster",
    ),
    "features of a tile read before they are there": (
        "cost/pair_tile.cuh", "ahead);\n      cuda::sync_block();\n", "ahead);\n", "streamed",
    ),
    "sums of a tile put together before all are there": (
        "sinkhorn/streamed.cu", "own[e];\n  cuda::sync_block();\n", "own[e];\n", "streamed",
    ),
    "features of a tensor core's product in the wrong order": (
        "cost/tensor_tile.cuh", "two(of_column), two(of_column + 8)}", "two(of_column + 8), two(of_column)}",
        "tensor cores",
    ),
    "a group of a row's blocks left out": (
        "sinkhorn/streamed.cu", "k < int(call.row_groups); ++k)", "k < int(call.row_groups) - 1; ++k)", "streamed",
    ),
    "a row beyond the last one counted": (
        "sinkhorn/streamed.cu", "terms[r] = row0 + Tile::row(r) < n ?", "terms[r] = row0 + Tile::row(r) <= n ?",
        "streamed",
    ),
    "columns of the registers read before they are there": (
        "sinkhorn/small.cuh", "put_columns(second, turn, 1);\n    cuda::sync_block();",
        "put_columns(second, turn, 1);", "registers",
    ),
    "rows of the registers in the wrong order": (
        "sinkhorn/small.cuh", "return warp * R + (r ^ mine);", "return warp * R + r;", "registers",
    ),
    # In the forward it would go unseen: scalings that are NaN are left to the log domain.
    "barrier in the adjoint of a projection removed": (
        "doubly_stochastic/team.cuh", "of_w, bar_v_[c] = T(0);\n      }\n      cuda::sync_block();",
        "of_w, bar_v_[c] = T(0);\n      }", "projection",
    ),
    "scalings of a step over those of another": (
        "doubly_stochastic/thread.cuh", "(2 * k + which) * apart", "(k + which) * apart", "projection",
    ),
    "barrier that some never reach": (
        "sinkhorn/crew.cuh", "    cuda::sync_block();  // scratch may still",
        "    if (tid > 0) cuda::sync_block();  // scratch may still", "block",
    ),
    "unbalanced rows started before all columns are there": (
        "sinkhorn/forward_unbalanced.cu", "    team.sync();\n    DampedIterate", "    DampedIterate", "unbalanced",
    ),
    "what a shift gives the columns forgotten": (
        "sinkhorn/adjoint_unbalanced.cu", "(sums.sum + given) + T(pulled.columns) * kept : T(0);\n      dg[j]",
        "sums.sum + given : T(0);\n      dg[j]", "unbalanced",
    ),
}  # fmt: skip


def run(module, regime: str) -> None:
    """Two problems in several orders of the threads; raises where anything is wrong."""
    if regime in ("panel", "streamed"):
        return run_panels(module, regime == "streamed")
    if regime == "tensor cores":
        return run_tensor_cores(module)
    if regime == "projection":
        return run_projection(module)
    dtype, limit = (torch.float32, 1e-4) if regime == "registers" else (torch.float64, 1e-9)
    options: dict[str, Any] = {"reg": 0.1, "max_iter": 6}
    if regime == "unbalanced":
        regime, options = "resident", {**options, "unbalanced": (0.2, 1.0), "tol": 1e-30}
    for m, threads in ((20, 96), (140, 32)):  # threads own the columns; they are too few to own them
        C, a, b = leaves(Case(33, m, 0.1, 1, "random"), dtype)
        want = reference.sinkhorn(C, a, b, **options)
        grads = gradients(want.value, (C, a, b))
        for order in ("forward", "reverse", "random"):
            with model(regime, order, 3, module=module, threads=threads):
                got = uk.sinkhorn(C, a, b, **options)
                found = (got.value, *got.potentials, *gradients(got.value, (C, a, b)))
                for g, w in zip(found, (want.value, want.f, want.g, *grads), strict=True):
                    assert distance(g, w) < limit
        if regime == "registers":
            return


def run_panels(module, streamed: bool) -> None:
    """Panels of 40 rows, more than the column pass has groups; or tiles of 64 x 64 that nobody stores."""
    x, y = (torch.randn(n, 4).double().requires_grad_() for n in (110, 80 if streamed else 5))
    want = reference.sinkhorn_loss(x, y, max_iter=4)
    wants = torch.autograd.grad(want, (x, y))
    for order in ("forward", "reverse", "random"):
        with model(order=order, seed=3, module=module, threads=96):
            _device.streamed = streamed
            got = uk.sinkhorn_loss(x, y, max_iter=4, memory_budget=60000 if streamed else 13000)
            for g, w in zip((got, *torch.autograd.grad(got, (x, y))), (want, *wants), strict=True):
                assert distance(g, w) < 1e-9


def run_projection(module) -> None:
    """Of matrices that threads hold, and of larger ones."""
    for size in (4, 33):
        x, weight = torch.randn(2, 70, size, size).double().unbind()
        x.requires_grad_()
        want = projection_reference(x, 4)
        (want_grad,) = torch.autograd.grad(want, x, weight)
        for order in ("forward", "reverse", "random"):
            with model(order=order, seed=3, module=module):
                got = uk.doubly_stochastic(x, 4)
                (grad,) = torch.autograd.grad(got, x, weight)
            for g, w in ((got, want), (grad, want_grad)):
                assert (g - w).abs().max() < 1e-9


def run_tensor_cores(module) -> None:
    x, y = (torch.randn(n, 20).bfloat16() for n in (140, 150))
    want = reference.sinkhorn_loss(x.double(), y.double(), max_iter=4)
    for order in ("forward", "reverse", "random"):
        with model(order=order, seed=3, module=module):
            _device.streamed = _device.tensor_cores = True
            assert distance(uk.sinkhorn_loss(x, y, max_iter=4, memory_budget=60000), want) < 1e-5


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name):
    *planted, regime = BUGS[name]
    module = build.load(tuple(planted))
    expected = RuntimeError if "never reach" in name else (AssertionError, OutOfBounds, RuntimeError)
    with pytest.raises(expected, match="deadlock" if "never reach" in name else None):
        run(module, regime)


@pytest.mark.parametrize("regime", ["block", "resident", "sweep", "registers", "cluster"])
def test_barriers_that_do_nothing_are_caught(regime):
    """The same without a build of its own: the model's block barrier is switched off."""
    dtype, limit = (torch.float32, 1e-4) if regime == "registers" else (torch.float64, 1e-9)
    C, a, b = leaves(Case(33, 20, 0.1, 1, "random"), dtype)
    want = reference.sinkhorn(C, a, b, reg=0.1, max_iter=6).value
    wrong = 0
    for order in ("forward", "reverse", "random"):
        with model(regime, order, 3, threads=96, skip_block_barrier=True):
            try:
                wrong += not distance(uk.sinkhorn(C, a, b, reg=0.1, max_iter=6).value, want) < limit
            except RuntimeError as stuck:  # threads that vote apart
                wrong += "deadlock" in str(stuck)
    assert wrong >= 2


@pytest.mark.filterwarnings("ignore::ucmkd_fast.ConvergenceWarning")
def test_the_sound_kernels_pass():
    for regime in ("block", "resident", "sweep", "registers", "cluster", "unbalanced"):
        run(None, regime)
    for regime in ("panel", "streamed", "tensor cores", "projection"):
        run(None, regime)
