"""Paths that tests share."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

if "UCMKD_EXTENSION" in os.environ:  # another build of the compiled module, as tests/sanitizers.sh makes
    _spec = importlib.util.spec_from_file_location("ucmkd_fast._C", os.environ["UCMKD_EXTENSION"])
    assert _spec is not None and _spec.loader is not None
    sys.modules["ucmkd_fast._C"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["ucmkd_fast._C"])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded runs and recordings; the test is skipped where it is absent."""
    folder = Path(os.environ.get("UCMKD_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder of recorded runs and recordings at {folder} (UCMKD_SHARED names another)")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small problems, and for the serial model of a GPU: there torch's pool would only get in the way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers whichever others run."""
    torch.manual_seed(0)
