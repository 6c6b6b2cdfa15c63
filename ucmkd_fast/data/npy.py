"""Arrays in .npy files: plain numbers, never pickled objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_npy(path: Path, *, mapped: bool = False) -> np.ndarray:
    """A ``.npy`` file's array, never a pickled object; ``mapped``: a read-only memory map of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole array of plain numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an array in a .npy file, there is none")
    try:
        # Mapped first: what the header says is then held against the file's size before memory is asked for.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("several arrays in one file")
        return array if mapped else np.array(array)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise ValueError(f"{path}: not a whole .npy array of plain numbers: {error}") from error
