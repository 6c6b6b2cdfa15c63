"""The contract of labelled data, in memory and read sample by sample."""

from __future__ import annotations

import pytest
import torch

from ucmkd_fast.data import UNLABELLED, LabelledData, TensorData

X = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 2, 1, 0])


class Lazy(LabelledData):
    """Reads a sample only when it is asked for it, and counts."""

    def __init__(self):
        self.labels, self.classes, self.groups = Y, ["a", "b", "c"], list("uvwuvw")
        self.read: list[int] = []

    def __getitem__(self, index: int):
        self.read.append(index)
        return X[index], self.labels[index]


@pytest.mark.parametrize("make", [lambda: TensorData(X, Y, "abc", "uvwuvw"), Lazy], ids=["memory", "lazy"])
def test_batches_and_subsets_are_the_samples_one_by_one(make):
    data = make()
    assert len(data) == 6 and data.classes == ["a", "b", "c"]
    rows = torch.tensor([4, 0, 4])
    x, y = data.batch(rows)
    assert torch.equal(x, torch.stack([X[i] for i in rows])) and y.tolist() == [1, 0, 1]

    part = data.subset([5, 1, 2])
    assert len(part) == 3 and part.labels.tolist() == [0, 1, 2]
    assert part.groups == ["w", "v", "w"] and part.classes == data.classes
    again = part.subset(torch.tensor([2, 0]))
    x, y = again.batch(torch.tensor([0, 1]))
    assert torch.equal(x, X[[2, 5]]) and y.tolist() == [2, 0]
    assert torch.equal(again[1][0], X[5]) and int(again[1][1]) == 0


def test_a_subset_of_files_reads_none_until_asked():
    data = Lazy()
    part = data.subset([5, 1]).subset([1])
    assert data.read == []
    part.batch(torch.tensor([0]))
    assert data.read == [1]


def test_labels_may_be_left_out_or_replaced():
    data = TensorData(X)
    assert data.labels.tolist() == [UNLABELLED] * 6 and data.classes == []
    noisy = TensorData(X, Y).with_labels(Y.flip(0))
    assert noisy.x is X and noisy.labels.tolist() == Y.flip(0).tolist() and noisy.classes == ["0", "1", "2"]


def test_small_integer_labels_become_int64():
    assert TensorData(X, Y.to(torch.uint8)).labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (([[1.0]], Y), TypeError, "x must be a torch.Tensor"),
        ((X[:0], Y[:0]), ValueError, "n > 0"),
        ((torch.zeros(6), Y), ValueError, r"shape \(6,\)"),
        ((X.clone().index_fill_(0, torch.tensor(3), torch.nan), Y), ValueError, "sample 3"),
        ((X, Y.tolist()), TypeError, "y must be a torch.Tensor"),
        ((X, Y.float()), TypeError, "float32"),
        ((X, Y > 0), TypeError, "bool"),
        ((X, Y[:5]), ValueError, r"\(6,\).*\(5,\)"),
        ((X, Y[:, None]), ValueError, r"\(6, 1\)"),
        ((X, Y, ["a", "b"]), ValueError, "0 to 1 .*got 2"),
        ((X, Y - 1), ValueError, "got -1"),
        ((X, Y - 7), ValueError, "labels from 0 on, .*got -7"),
        ((X, Y + 2**40), ValueError, "at most 1,048,576 classes, got the label 1099511627778"),
        ((X, Y, None, ["u"]), ValueError, "6 samples, got 1"),
    ],
)
def test_what_is_no_data_set_is_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        TensorData(*arguments)


@pytest.mark.parametrize("indices", [[], [6], [-1], [0.5], [True], [[0]]])
def test_wrong_indices_are_refused(indices):
    for data in (TensorData(X, Y), Lazy()):
        with pytest.raises(ValueError, match="indices must be"):
            data.subset(indices)
