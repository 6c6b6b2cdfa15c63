"""Where downloads and computed files are kept, and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """``$UCMKD_CACHE``, or ``ucmkd-fast`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    if own := os.environ.get("UCMKD_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ucmkd-fast"


@contextmanager
def folder_made_beside(path: Path) -> Iterator[Path]:
    """A new folder to fill: renamed to ``path`` when the block ends well, deleted when it does not.

    Where another process was first, its folder stays and this one is dropped: both hold the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
