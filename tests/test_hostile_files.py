"""Files made to harm: refused with their name, nothing run, no memory taken."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ucmkd_fast.config import parse_yaml, read_yaml
from ucmkd_fast.data.feature_files import open_features, read_npy
from ucmkd_fast.data.waves import read_wave
from ucmkd_fast.training.checkpoint import read_checkpoint, write_checkpoint


@pytest.fixture(autouse=True)
def little_memory():
    """No test here may take more than 64 MB of Python's and NumPy's memory."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20, f"{peak} bytes"


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "billion laughs": (LAUGHS, "unfold to over"),
    "circle": ("a: &a [*a]\n", "an alias inside"),
    "deep": ("[" * 2**19, "nested too deeply"),
    "deep in lines": ("".join(f"{' ' * k}a:\n" for k in range(1000)), "nested too deeply"),
    "wide": ("[" + "a," * 21_000, "over 20000 values"),
    "a number of base 60": (
        "a: 1" + ":1" * 2**14,
        "over 16384 characters",
    ),  # read in the square of its length
    "huge": ("# " + "x" * 2**21, "larger than settings"),
    "an object": ("a: !!python/object/apply:os.system ['true']\n", "python/object"),
    "a bad date": ("a: 2024-13-45\n", "month"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml(tmp_path, name):
    text, says = YAML[name]
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_yaml(path)
    assert "settings.yaml" in str(caught.value)


def test_yaml_with_ordinary_anchors_is_read():
    assert parse_yaml("base: &b {lr: 1e-3}\nother: *b\n") == {"base": {"lr": 1e-3}, "other": {"lr": 1e-3}}
    assert parse_yaml("") is None


def npy_header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (64 - (len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


NPY = {
    "a shape beyond the file": npy_header("(1000000000000, 4)") + b"\0" * 64,
    "a shape beyond all numbers": npy_header("(9223372036854775807, 9223372036854775807)"),
    "a negative shape": npy_header("(-1, 4)") + b"\0" * 64,
    "objects": npy_header("(1,)", "|O") + b"cos\nsystem\n(S'true'\ntR.",
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "a program as the header": b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').abort()       \n",
    "nothing": b"",
}


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy's, on its way to refuse
@pytest.mark.parametrize("name", NPY)
@pytest.mark.parametrize("mapped", [False, True])
def test_npy(tmp_path, name, mapped):
    path = tmp_path / "features.npy"
    path.write_bytes(NPY[name])
    with pytest.raises(ValueError, match=r"features\.npy: not a whole"):
        read_npy(path, mapped=mapped)


def test_an_archive_named_npy(tmp_path):
    path = tmp_path / "features.npy"
    with path.open("wb") as file:
        np.savez_compressed(file, x=np.zeros(10**6))
    with pytest.raises(ValueError, match=r"features\.npy: not a whole"):
        read_npy(path)


SAFETENSORS = {
    "a header beyond the file": struct.pack("<Q", 2**40) + b"{}",
    "offsets beyond the file": (
        lambda head: struct.pack("<Q", len(head)) + head
    )(json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(tmp_path, name):
    path = tmp_path / "features.safetensors"
    path.write_bytes(SAFETENSORS[name])
    with pytest.raises(ValueError, match=r"features\.safetensors: not a whole"):
        open_features(root=path)


def wav(rate=8000, channels=1, bits=16, data_bytes=4, claimed=None, body=None):
    body = b"\1\0" * (data_bytes // 2) if body is None else body
    head = struct.pack(
        "<HHIIHH", 1, channels, rate, rate * channels * bits // 8, channels * bits // 8 % 2**16, bits
    )
    chunks = b"fmt " + struct.pack("<I", 16) + head
    chunks += b"data" + struct.pack("<I", len(body) if claimed is None else claimed) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


WAVES = {
    "a length beyond the file": wav(claimed=2**32 - 1),
    "no channels": wav(channels=0),
    "no bits": wav(bits=0),
    "a rate of a gigahertz": wav(rate=10**9),
    "65,535 channels": wav(channels=65535),
    "no samples": wav(data_bytes=0),
    "half a header": wav()[:20],
    "not a wave": b"#!/bin/sh\ntrue\n",
}


@pytest.mark.parametrize("name", WAVES)
def test_wav(tmp_path, name):
    path = tmp_path / "3_ann_0.wav"
    path.write_bytes(WAVES[name])
    with pytest.raises(ValueError, match=r"3_ann_0\.wav: not a readable recording"):
        read_wave(path)


def test_a_checkpoint_with_another_file_in_it(tmp_path):
    """A pickle beside the tensors is neither listed nor read; a listing that names a path outside is refused."""
    path = write_checkpoint(tmp_path, 1, {"w": torch.ones(3)})
    (path / "weights.pt").write_bytes(b"cos\nabort\n(tR.")
    assert torch.equal(read_checkpoint(path)["w"], torch.ones(3))
    outside = tmp_path / "outside.safetensors"
    save_file({"w": torch.zeros(3)}, outside)
    sums = (path / "SHA256SUMS").read_text().replace("tensors.safetensors", "../outside.safetensors")
    (path / "SHA256SUMS").write_text(sums)
    with pytest.raises(ValueError, match="is damaged"):
        read_checkpoint(path)
