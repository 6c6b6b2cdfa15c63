"""Paths that tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded runs and recordings; the test is skipped where it is absent."""
    folder = Path(os.environ.get("UCMKD_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder of recorded runs and recordings at {folder} (UCMKD_SHARED names another)")
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers whichever others run."""
    torch.manual_seed(0)
