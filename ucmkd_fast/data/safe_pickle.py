"""One NumPy array out of a pickle, without running what the pickle says.

Loading a pickle calls whatever it names. Here nothing real is ever called: the opcodes are first read
without being executed, and of the names only those that NumPy itself writes for an array are known, each
replaced by a stand-in that keeps its arguments. The array is then made from its bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 64 * 2**20  # bytes; a spectrogram of 257 x 1004 in float64 has 2 MB

_MOST_OPCODES = 1000  # an array has about fifty
_OPCODES = frozenset(
    """PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE
    BUILD NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8""".split()
)
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")  # the C unpickler makes room for the index that these name


def read_pickled_array(path: Path, largest: int = LARGEST) -> np.ndarray:
    """The array of numbers that a pickle file holds.

    Args:
        path: the file.
        largest: in bytes; a larger file is refused unread.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: too large, damaged, or anything but one array of numbers; the message starts
            with the file's name. Nothing that the pickle names has been run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a pickled array, there is none")
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
        if len(data) > largest:
            raise ValueError(f"over {largest} bytes")
        _check_opcodes(data)
        found = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(found, _Array):
            raise ValueError(f"it holds a {type(found).__name__.lstrip('_')}")
        return found.array()
    # A hostile file makes the unpickler fail in many ways.
    except Exception as error:
        raise ValueError(f"{path}: not a pickled array of numbers: {error}") from error


def _check_opcodes(data: bytes) -> None:
    """Read the opcodes without executing them; no length or index goes beyond the file."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name not in _OPCODES:
            raise ValueError(f"opcode {opcode.name} has no place in an array")
        if opcode.name in _MEMO and (argument or 0) > _MOST_OPCODES:
            raise ValueError(f"memo index {argument}")
        if count > _MOST_OPCODES:
            raise ValueError(f"over {_MOST_OPCODES} opcodes")


class _DType:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, kind: Any, align: Any = False, copy: Any = False):
        self.kind, self.order = _text(kind), "="

    def __setstate__(self, state: tuple) -> None:
        self.order = _text(state[1])
        if any(part is not None for part in state[2:5]):
            raise ValueError("a structured dtype")

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.kind)
        if dtype.kind not in "biuf":
            raise ValueError(f"its elements are {dtype}, expected numbers")
        return dtype.newbyteorder(">" if self.order == ">" else "<" if self.order == "<" else "=")


class _Array:
    """Stands in for an array under construction."""

    def __setstate__(self, state: tuple) -> None:
        version, self.shape, self.kind, self.fortran, self.data = state

    def array(self) -> np.ndarray:
        if not isinstance(self.kind, _DType) or not isinstance(self.data, (bytes, bytearray)):
            raise ValueError("an array without its bytes")
        dtype, shape = self.kind.dtype(), tuple(self.shape)
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"shape {shape}")
        if math.prod(shape) * dtype.itemsize != len(self.data):
            raise ValueError(f"shape {shape} of {dtype} does not fit its {len(self.data)} bytes")
        flat = np.frombuffer(self.data, dtype)
        array = flat.reshape(shape, order="F" if self.fortran else "C")
        return np.array(array, dtype=dtype.newbyteorder("="))  # a copy of its own, in the machine's order


class _ArrayType:
    """Stands in for ``numpy.ndarray``, which is only ever an argument here."""

    def __init__(self) -> None:
        raise ValueError("numpy.ndarray is called")


def _reconstruct(subtype: Any, shape: Any, kind: Any) -> _Array:
    if subtype is not _ArrayType:
        raise ValueError("a subclass of numpy.ndarray")
    return _Array()  # the shape here is a placeholder; the real one comes with the state


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, _text(order) == "F", data))
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or _text(encoding) != "latin1":
        raise ValueError("_codecs.encode of something else than latin1 text")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,  # how old protocols write an empty array's bytes
}
for _package in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_package}.multiarray", "_reconstruct"] = _reconstruct
    _STAND_INS[f"{_package}.numeric", "_frombuffer"] = _frombuffer


class _ArraysOnly(pickle.Unpickler):
    """Knows the names of an array's pickle and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise ValueError(f"it names {module}.{name}, which an array does not")
        return _STAND_INS[module, name]
