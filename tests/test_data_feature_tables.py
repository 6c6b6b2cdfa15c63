"""Features in parquet: a column of lists or columns of numbers, and a column of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ucmkd_fast.data import FeatureBank, open_data

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

X = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
KINDS = ["owl", "cat", "cat", "dog", "owl", "dog", "cat", "dog", "owl"]
LABELS = [2, 0, 0, 1, 2, 1, 0, 1, 2]


def write(path, columns, **options):
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, **options)
    return {"name": "features", "root": str(path), "label": "kind"}


LISTS = {
    "lists of float": pyarrow.array(X.tolist(), pyarrow.list_(pyarrow.float32())),
    "lists of double": pyarrow.array(X.astype(np.float64).tolist(), pyarrow.list_(pyarrow.float64())),
    "large lists": pyarrow.array(X.tolist(), pyarrow.large_list(pyarrow.float32())),
    "lists of fixed size": pyarrow.array(X.tolist(), pyarrow.list_(pyarrow.float32(), 4)),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_column_of_lists(tmp_path, kind):
    spec = write(tmp_path / "bank.parquet", {"z": LISTS[kind], "kind": KINDS}, row_group_size=4)
    bank = open_data({**spec, "features": True})
    assert isinstance(bank, FeatureBank) and bank.holds_features
    assert bank.x.dtype == torch.float32 and torch.equal(bank.x, torch.from_numpy(X))
    assert bank.classes == ["cat", "dog", "owl"] and bank.labels.tolist() == LABELS


def test_columns_of_numbers_groups_and_order_of_classes(tmp_path):
    columns = {f"f{k}": X[:, k] for k in range(4)} | {"kind": KINDS, "who": list("aabbccddd")}
    spec = write(tmp_path / "bank.parquet", columns)
    bank = open_data({**spec, "features": True, "group": "who", "classes": ["owl", "dog", "cat"]})
    assert torch.equal(bank.x, torch.from_numpy(X)) and bank.groups == list("aabbccddd")
    assert bank.labels.tolist() == [2 - label for label in LABELS]
    some = open_data({**spec, "columns": ["f3", "f1"]})
    assert not some.holds_features and torch.equal(some.x, torch.from_numpy(X[:, [3, 1]]))
    train = open_data({**spec, "group": "who", "split": "train", "features": True})
    assert isinstance(train, FeatureBank) and set(train.groups) < set("abcd")


def test_integers_are_the_labels_themselves(tmp_path):
    labels = [10, 0, 0, 2, 10, 2, 0, 2, -1]
    spec = write(tmp_path / "bank.parquet", {"z": LISTS["lists of float"], "kind": labels})
    bank = open_data({**spec, "features": True})
    assert bank.labels.tolist() == [*labels[:-1], -100] and bank.classes == [str(k) for k in range(11)]
    with pytest.raises(ValueError, match=r"bank\.parquet: y must hold labels from 0 to 1 .*got 10"):
        open_data({**spec, "classes": ["cat", "dog"]})


RAGGED = pyarrow.array([[1.0, 2.0]] * 8 + [[1.0]])
HOLES = pyarrow.array([[1.0, 2.0]] * 8 + [[1.0, None]])
EMPTY = pyarrow.array([[1.0, 2.0]] * 8 + [None])


@pytest.mark.parametrize(
    ("z", "change", "message"),
    [
        (RAGGED, {}, r"'z' must hold lists of one length, got \[1, 2\]"),
        (HOLES, {}, "'z' has empty cells"),
        (EMPTY, {}, "'z' has empty cells"),
        (KINDS, {}, "'z' must hold numbers or lists of numbers, it holds string"),
        (X[:, 0], {"label": "sort"}, "no column 'sort'; it has z, kind"),
        (X[:, 0], {"columns": ["y"]}, "no column 'y'; it has z, kind"),
        (X[:, 0], {"columns": []}, "expected columns of features"),
        (X[:, 0], {"classes": ["cat", "dog"]}, "class 'owl' in column 'kind' is none of cat, dog"),
        (X[:, 0], {"labels": "y.npy"}, "labels no other file"),
        (X[:, 0] * np.inf, {}, "x must be finite"),
    ],
)
def test_what_is_refused(tmp_path, z, change, message):
    spec = write(tmp_path / "bank.parquet", {"z": z, "kind": KINDS})
    with pytest.raises(ValueError, match=rf"bank\.parquet: .*{message}"):
        open_data({**spec, **change})


def test_files_that_are_no_tables(tmp_path):
    spec = {"name": "features", "root": str(tmp_path / "bank.parquet"), "label": "kind"}
    with pytest.raises(FileNotFoundError, match=r"bank\.parquet"):
        open_data(spec)
    (tmp_path / "bank.parquet").write_bytes(b"PAR1 and no more PAR1")
    with pytest.raises(ValueError, match=r"bank\.parquet: "):
        open_data(spec)
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ValueError, match=r"x\.npy: label names columns of a \.parquet table"):
        open_data({**spec, "root": str(tmp_path / "x.npy")})
