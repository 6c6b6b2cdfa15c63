"""Data sets by description: the same as by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from speech_folders import write_folder

from ucmkd_fast.data import data_keys, open_data, split_digits, spoken_digits


def test_digits_are_split_as_by_hand():
    for part, name in zip(split_digits(seed=3), ("train", "val", "test"), strict=True):
        data = open_data({"name": "digits", "split": name, "seed": 3})
        assert torch.equal(data.x, part.x) and torch.equal(data.labels, part.labels)


def test_voices_are_in_one_part_only(tmp_path, monkeypatch):
    monkeypatch.setenv("UCMKD_CACHE", str(tmp_path / "cache"))
    root = write_folder(tmp_path / "speech", speakers=("ann", "bob", "cat", "dan"), takes=2)
    spec = {"name": "spoken_digits", "root": str(root), "shares": [2, 1, 1], "seed": 1}
    parts = [set(open_data({**spec, "split": s}).groups) for s in ("train", "val", "test")]
    assert [len(part) for part in parts] == [2, 1, 1] and len(set.union(*parts)) == 4
    assert len(open_data({k: v for k, v in spec.items() if k != "shares"})) == len(spoken_digits(root))


def test_less_data_and_fewer_labels_are_draws_of_their_seed():
    spec = {"name": "digits", "split": "train", "draw_seed": 5}
    all_of_it, half, third = (open_data({**spec, "keep": share}) for share in (1.0, 0.5, 0.3))
    for part, share in ((half, 0.5), (third, 0.3)):
        expected = torch.bincount(all_of_it.labels).mul(share).round().long()
        assert (torch.bincount(part.labels) - expected).abs().max() <= 1

    def rows(data):
        return {tuple(x.flatten().tolist()) for x in data.x}

    assert rows(third) < rows(half) < rows(all_of_it)
    few = open_data({**spec, "labels_per_class": 4})
    assert torch.bincount(few.labels).tolist() == [4] * 10
    other = open_data({**spec, "labels_per_class": 4, "draw_seed": 6})
    assert not torch.equal(few.x, other.x)


def test_arrays_in_files(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32), np.arange(12) % 3
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    save_file({"features": torch.from_numpy(x), "labels": torch.from_numpy(y)}, tmp_path / "x.safetensors")
    by_npy = open_data(
        {"name": "features", "root": str(tmp_path / "x.npy"), "labels": str(tmp_path / "y.npy")}
    )
    bank = open_data({"name": "features", "root": str(tmp_path / "x.safetensors"), "features": True})
    assert torch.equal(by_npy.x, bank.x) and torch.equal(by_npy.labels, bank.labels)
    assert bank.holds_features and not by_npy.holds_features
    (tmp_path / "bad.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"bad\.npy: not a whole"):
        open_data({"name": "features", "root": tmp_path / "bad.npy", "labels": tmp_path / "y.npy"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "needs a name"),
        ({"name": "digit"}, "did you mean 'digits'"),
        ({"name": "digits", "splitt": "train"}, "did you mean 'split'"),
        ({"name": "digits", "split": "trian"}, "did you mean 'train'"),
        ({"name": "digits", "split": "test", "keep": 0.5}, "choose among training samples"),
        ({"name": "digits", "split": "train", "keep": 0}, "share in"),
        ({"name": "digits", "split": "train", "split_by": "group"}, "its groups are None"),
        ({"name": "features", "root": "x.csv"}, "expected a .npy, .safetensors or .parquet file"),
    ],
)
def test_what_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        open_data(spec)


def test_the_keys_are_told():
    assert {"name", "split", "shares", "keep", "labels_per_class"} <= set(data_keys("digits"))
