"""Arrays that stay on the disk: same samples, no warning, nothing written, nothing loaded whole."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from ucmkd_fast import Distiller
from ucmkd_fast.data import FeatureBank, TensorData, UnpairedLoader, open_data
from ucmkd_fast.data.extract import extract
from ucmkd_fast.data.mapped import MappedRows
from ucmkd_fast.models import mlp

N, D = 60, 8


@pytest.fixture
def files(tmp_path):
    x = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(N) % 3)
    (tmp_path / "x.npy").chmod(0o444)
    spec = {"name": "features", "root": str(tmp_path / "x.npy"), "labels": str(tmp_path / "y.npy")}
    return spec, torch.from_numpy(x)


@pytest.fixture
def no_whole_read(monkeypatch):
    """The most rows of a map that were read together."""
    most = [0]
    own = MappedRows.__getitem__

    def read(self, indices):
        found = own(self, indices)
        most[0] = max(most[0], len(found) if np.ndim(indices) else 1)
        return found

    monkeypatch.setattr(MappedRows, "__getitem__", read)
    return most


@pytest.mark.parametrize("features", [False, True])
def test_a_map_gives_what_memory_gives(files, features):
    spec, x = files
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that cannot be written to
        data = open_data({**spec, "features": features})
        own = (FeatureBank if features else TensorData)(x, torch.arange(N) % 3)
        assert type(data) is type(own) and data.holds_features == features
        rows = torch.tensor([5, 0, 5, 59])
        assert all(torch.equal(a, b) for a, b in zip(data.batch(rows), own.batch(rows), strict=True))
        assert torch.equal(data[7][0], x[7]) and torch.equal(data.x, x)
        part, expected = data.subset([9, 4, 2]).subset([2, 0]), own.subset([2, 9])
        assert type(part) is type(own) and torch.equal(part.x, expected.x)
        assert torch.equal(part.labels, expected.labels) and torch.equal(part[1][0], x[9])
        assert data.with_labels(data.labels.flip(0)).labels.tolist() == data.labels.flip(0).tolist()
        data.batch(rows)[0].zero_()  # a batch is one's own
        data[0][0].zero_()
        data.x.zero_()
    assert torch.equal(data.x, x)
    assert np.array_equal(np.load(spec["root"]), x.numpy())


def test_parts_of_a_map_stay_on_the_disk(files, monkeypatch):
    spec, x = files
    opened = open_data({**spec, "features": True})
    monkeypatch.setattr(MappedRows, "__getitem__", lambda self, indices: pytest.fail("read"))
    part = opened.subset(torch.arange(50)).with_labels(opened.labels[:50])
    monkeypatch.undo()
    assert torch.equal(part.batch(torch.tensor([49]))[0], x[49:50])
    train = open_data({**spec, "features": True, "split": "train", "keep": 0.5})
    assert isinstance(train, FeatureBank) and isinstance(train._samples, MappedRows)


def test_a_distillation_reads_a_batch_at_a_time(files, tmp_path, no_whole_read):
    spec, x = files
    student = TensorData(torch.randn(N, 5), torch.arange(N) % 3)
    teacher = mlp(D, 3, width=D)
    extract(teacher, TensorData(x, torch.arange(N) % 3), tmp_path / "bank", {})
    bank = FeatureBank.load(tmp_path / "bank")
    batch = next(iter(UnpairedLoader(student, bank, batch_size=16)))
    assert batch.teacher_feature.shape == (16, D) and batch.teacher_x is None
    results = []
    for kept in (bank, FeatureBank(bank.x, bank.labels, bank.classes)):
        no_whole_read[0] = 0
        torch.manual_seed(0)
        run = Distiller(mlp(5, 3, width=D), teacher, "ucmkd", epochs=2, batch_size=16, lr=0.1)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not writable.*")
            run.fit(student, kept)
        if kept is bank:
            assert 0 < no_whole_read[0] <= 16
        results.append([p.detach().clone() for p in run.student.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [">f4", "<f2", "<f8", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_plain_numbers(tmp_path, dtype, order):
    x = np.asarray(np.arange(24).reshape(6, 4), dtype=dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    data = TensorData(np.load(tmp_path / "x.npy", mmap_mode="r"), torch.arange(6))
    expected = torch.from_numpy(np.ascontiguousarray(x.astype(x.dtype.newbyteorder("="))))
    assert data.x.dtype == expected.dtype and torch.equal(data.x, expected)
    assert torch.equal(data.batch(torch.tensor([3, 1]))[0], expected[[3, 1]])


def test_what_cannot_be_samples_is_refused(files, tmp_path, monkeypatch):
    spec, x = files
    monkeypatch.setattr("ucmkd_fast.data.mapped._BLOCK", 7 * D * 4)  # seven rows
    bad = x.numpy().copy()
    bad[37, 2] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    with pytest.raises(ValueError, match=r"bad\.npy: x must be finite, got (NaN|[+-]inf) in sample 37"):
        open_data({**spec, "root": str(tmp_path / "bad.npy")})
    np.save(tmp_path / "bad.npy", np.full((N, 2), "a"))
    with pytest.raises(ValueError, match=r"bad\.npy: "):
        open_data({**spec, "root": str(tmp_path / "bad.npy")})
    np.save(tmp_path / "bad.npy", np.zeros((N, 2, 2), np.float32))
    with pytest.raises(ValueError, match=r"bad\.npy: features must be floating, of shape \(n, D\)"):
        open_data({**spec, "root": str(tmp_path / "bad.npy"), "features": True})
