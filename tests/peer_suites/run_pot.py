"""POT's own public tests with its functions replaced by those of `ucmkd_fast.compat.pot`.

    UCMKD_POT_TESTS=.../POT/test python tests/peer_suites/run_pot.py

UCMKD_POT_TESTS is the folder ``test`` of a checkout of github.com/PythonOT/POT at the installed version: POT's wheels
have no tests, its sdist has those outside subfolders. Prints how many tests pass with the original and with ours, how
many calls were served and refused (a refused call goes on to POT's own function), and every test that fails with ours
alone. The exit status is 1 where one does that is not `EXCUSED`.

As a plugin of pytest (``-p run_pot``) it puts the functions in place.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import _runner

#: Tests that may fail with ours alone, and why.
EXCUSED = {
    "test_bregman.py::test_nan_warning": "waits for a warning of the NaN that reg=0 gives, where ours raise ValueError",
}

SUITE = _runner.Suite(
    "UCMKD_POT_TESTS",
    (
        "test_bregman.py",
        "test_solvers.py",
        "test_ot.py",
        "test_gpu.py",
        "batch/test_solve_batch.py",
        "unbalanced/test_sinkhorn.py",
        "test_unbalanced.py",
    ),
    "run_pot",
    EXCUSED,
)

#: Where POT has each function, by its name with us.
PLACES = {
    "sinkhorn": ("ot", "ot.bregman"),
    "sinkhorn2": ("ot", "ot.bregman"),
    "solve": ("ot", "ot.solvers"),
    "solve_sample": ("ot", "ot.solvers"),
    "solve_batch": ("ot", "ot.batch"),
    "solve_sample_batch": ("ot", "ot.batch"),
    "dist_batch": ("ot", "ot.batch"),
    "batch.loss_linear_batch": ("ot.batch",),
    "batch.loss_linear_samples_batch": ("ot.batch",),
    "batch.entropy_batch": ("ot.batch",),
    "batch.bregman_projection_batch": ("ot.batch",),
    "batch.bregman_log_projection_batch": ("ot.batch",),
    "sinkhorn_unbalanced": ("ot", "ot.unbalanced"),
    "sinkhorn_unbalanced2": ("ot", "ot.unbalanced"),
    "unbalanced.sinkhorn_knopp_unbalanced": ("ot.unbalanced",),
    "unbalanced.sinkhorn_stabilized_unbalanced": ("ot.unbalanced",),
    "unbalanced.sinkhorn_unbalanced_translation_invariant": ("ot.unbalanced",),
}


def replace() -> None:
    """Put ours in place of POT's, for every module that is imported from here on."""
    from ucmkd_fast.compat import pot

    for name, places in PLACES.items():
        owner: ModuleType = pot
        for part in name.split(".")[:-1]:
            owner = getattr(owner, part)
        last = name.rpartition(".")[2]
        ours = getattr(owner, last)
        for place in places:
            module = importlib.import_module(place)
            if hasattr(module, last):
                setattr(module, last, _runner.counted(name, ours, getattr(module, last)))


def pytest_configure() -> None:
    """As a plugin: before any test is imported."""
    replace()


if __name__ == "__main__":
    sys.exit(_runner.main(SUITE))
