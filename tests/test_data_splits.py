"""Splits: who is in which part."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ucmkd_fast.data import TensorData, few_labels, split_by_group, split_digits, split_stratified

SPEAKERS = ["ann", "bob", "cat", "dan", "eve", "fay"]


def voices(takes: int = 4, classes: int = 3) -> TensorData:
    """Sample i holds the number i; every speaker says every class ``takes`` times."""
    who = [s for s in SPEAKERS for _ in range(classes * takes)]
    y = torch.arange(len(who)) % classes
    return TensorData(torch.arange(float(len(who)))[:, None], y, groups=who)


def numbers(data) -> list[int]:
    return data.x.flatten().long().tolist()


def test_stratified_parts_share_every_class_out_alike_and_lose_nobody():
    data = TensorData(torch.arange(90.0)[:, None], torch.arange(90) % 3)
    parts = split_stratified(data, (0.6, 0.2, 0.2), seed=1)
    assert sorted(sum(map(numbers, parts), [])) == list(range(90))
    assert [Counter(p.labels.tolist()) for p in parts] == [{k: n for k in range(3)} for n in (18, 6, 6)]
    assert list(map(numbers, split_stratified(data, (0.6, 0.2, 0.2), seed=1))) == list(map(numbers, parts))
    assert numbers(split_stratified(data, (0.6, 0.2, 0.2), seed=2)[0]) != numbers(parts[0])


@pytest.mark.parametrize("shares", [(), (0.5, 0.6), (1.0, 0.0), (1.2, -0.2)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="sum to 1"):
        split_stratified(voices(), shares)


def test_a_class_too_small_to_share_is_named():
    data = TensorData(torch.randn(5, 1), torch.tensor([0, 0, 0, 0, 1]), ["many", "one"])
    with pytest.raises(ValueError, match="'one' has 1 samples"):
        split_stratified(data, (0.5, 0.5))
    with pytest.raises(ValueError, match="'none' has no sample"):
        split_stratified(TensorData(data.x, data.labels, ["many", "one", "none"]), (0.5, 0.5))


def test_parts_by_name_hear_no_voice_twice():
    data = voices()
    train, val, test = split_by_group(data, ["bob", "ann"], "fay", ["cat"])
    assert [set(p.groups) for p in (train, val, test)] == [{"ann", "bob"}, {"fay"}, {"cat"}]
    assert len(train) == 24 and len(val) == len(test) == 12
    assert all(
        data.groups[i] == g for p in (train, val, test) for i, g in zip(numbers(p), p.groups, strict=True)
    )


def test_parts_by_number_are_drawn_by_the_seed_and_the_rest_is_for_testing():
    data = voices()
    seen = set()
    for seed in range(20):
        parts = [set(p.groups) for p in split_by_group(data, 3, 1, seed=seed)]
        assert list(map(len, parts)) == [3, 1, 2] and set().union(*parts) == set(SPEAKERS)
        assert parts == [set(p.groups) for p in split_by_group(data, 3, 1, seed=seed)]
        seen.add(frozenset(parts[0]))
    assert len(seen) > 5
    train, val, test = split_by_group(data, 2, "dan", 1, seed=3)
    assert "dan" not in {*train.groups, *test.groups} and set(val.groups) == {"dan"}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ((["ann"], ["zoe"], None), "no sample is of zoe; the groups are ann, bob"),
        ((["ann", "bob"], ["bob"], None), "bob must be in one part only"),
        ((3, 3, None), "test must be one or more"),
        ((5, 2, None), "val must be one or more"),
        ((0, 1, None), "train must be one or more"),
        ((-1, 1, None), "train must be one or more"),
    ],
)
def test_parts_that_cannot_be_are_refused(parts, says):
    with pytest.raises(ValueError, match=says):
        split_by_group(voices(), *parts)


def test_data_without_groups_cannot_be_split_by_them():
    with pytest.raises(ValueError, match="groups are None"):
        split_by_group(TensorData(torch.randn(4, 1), torch.arange(4)), 1, 1)


@pytest.mark.parametrize("per_class", [1, 2, 5, 12])
def test_few_labels_are_spread_over_classes_and_voices(per_class):
    data = voices()
    chosen, rest = few_labels(data, per_class, seed=7)
    assert Counter(chosen.labels.tolist()) == {k: per_class for k in range(3)}
    for k in range(3):
        heard = Counter(g for g, y in zip(chosen.groups, chosen.labels.tolist(), strict=True) if y == k)
        counts = [heard[s] for s in SPEAKERS]
        assert max(counts) - min(counts) <= 1
    assert sorted(numbers(chosen) + numbers(rest)) == list(range(len(data)))
    assert numbers(few_labels(data, per_class, seed=7)[0]) == numbers(chosen)
    assert numbers(few_labels(data, per_class, seed=8)[0]) != numbers(chosen)


def test_one_label_a_class_comes_from_another_voice_each():
    chosen, _ = few_labels(voices(), 1)
    assert len(set(chosen.groups)) == 3


def test_all_labels_leave_no_rest_and_more_are_refused():
    chosen, rest = few_labels(voices(takes=1), 6)
    assert len(chosen) == 18 and rest is None
    with pytest.raises(ValueError, match="'0' has 6 samples, fewer than per_class=7"):
        few_labels(voices(takes=1), 7)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="per_class must be"):
            few_labels(voices(), wrong)


def test_handwritten_digits():
    pytest.importorskip("sklearn", reason="scikit-learn carries the handwritten digits")
    from sklearn.datasets import load_digits

    train, val, test = split_digits(seed=5)
    assert len(train) + len(val) + len(test) == 1797 and train.x.shape[1:] == (1, 8, 8)
    assert train.classes == [str(k) for k in range(10)]
    x = torch.cat([train.x, val.x, test.x])
    assert abs(float(x.mean())) < 1e-5 and abs(float(x.std()) - 1) < 1e-5
    # Undo the scaling: the parts together are scikit-learn's images under its labels.
    raw = load_digits()
    mean, std = torch.tensor(raw.images).mean(), torch.tensor(raw.images).std()
    ours = {
        (tuple((v * std + mean).round().int().flatten().tolist()), int(y))
        for p in (train, val, test)
        for v, y in zip(p.x.double(), p.labels, strict=True)
    }
    theirs = {
        (tuple(v.astype(int).ravel().tolist()), int(y)) for v, y in zip(raw.images, raw.target, strict=True)
    }
    assert ours == theirs
    for k in range(10):
        assert abs(int((val.labels == k).sum()) - 0.15 * int((x.new_tensor(raw.target) == k).sum())) <= 1


def test_handwritten_digits_say_what_is_missing(monkeypatch):
    import sys

    from ucmkd_fast.data import handwritten_digits

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"ucmkd-fast\[demo\]"):
        handwritten_digits()
