"""Pools, noise and imbalance of Table 14, each alone and together, from a plain description."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ucmkd_fast.data import TensorData, open_data
from ucmkd_fast.data.mismatch import PRESETS, Mismatch, apart

CLASSES, EACH = 4, 100


def clips() -> TensorData:
    """Samples that know their own index: x[i, 0] = i."""
    labels = torch.arange(CLASSES * EACH) % CLASSES
    x = torch.randn(len(labels), 50)
    x[:, 0] = torch.arange(len(labels))
    return TensorData(x, labels)


def sides(**values):
    data = clips()
    return [apart(data, Mismatch(side, **values)) for side in ("audio", "image")]


def test_pools_share_no_clip_and_every_class_is_shared_out():
    audio, image = sides(pool=0.3)
    own = [set(data.x[:, 0].int().tolist()) for data in (audio, image)]
    assert not own[0] & own[1] and len(own[0] | own[1]) == CLASSES * EACH
    assert torch.bincount(audio.labels).tolist() == [30] * CLASSES
    assert torch.bincount(image.labels).tolist() == [70] * CLASSES


def test_imbalance_changes_the_class_marginals_and_not_alike_on_both_sides():
    audio, image = (torch.bincount(data.labels) for data in sides(imbalance=10))
    for counts in (audio, image):
        assert counts.max() == EACH and counts.min() == EACH // 10
    ranked = [counts.argsort().tolist() for counts in (audio, image)]
    assert ranked[0] == ranked[1][::-1]
    middle = sorted(audio.tolist())
    assert middle == [10, round(100 * 10 ** (-2 / 3)), round(100 * 10 ** (-1 / 3)), 100]


def test_noise_has_its_level_and_stays_on_its_sample():
    data = clips()
    noisy = apart(data, Mismatch("audio", noise=0.5))
    rows = torch.tensor([7, 3, 200])
    x, y = noisy.batch(rows)
    ratio = (x - data.x[rows]).std(1) / data.x[rows].std(1)
    assert ((ratio - 0.5).abs() < 0.15).all() and torch.equal(y, data.labels[rows])
    assert torch.equal(noisy[3][0], x[1]) and torch.equal(noisy.drawn_batch(rows, (5,))[0], x)


def test_presets_are_the_published_numbers_and_each_part_alone():
    assert PRESETS["mild"] == {"pool": 0.7, "noise": 0.3, "imbalance": 5}
    assert PRESETS["moderate"] == {"pool": 0.5, "noise": 0.5, "imbalance": 10}
    assert PRESETS["hard"] == {"pool": 0.3, "noise": 0.8, "imbalance": 50}
    assert PRESETS["hard-imbalance"] == {"imbalance": 50} and len(PRESETS) == 12
    found = Mismatch.from_dict({"preset": "hard", "side": "image", "noise": 0.1})
    assert found == Mismatch("image", pool=0.3, noise=0.1, imbalance=50, seed=42)


def test_a_description_gives_both_sides(tmp_path):
    data = clips()
    np.save(tmp_path / "x.npy", data.x.numpy())
    np.save(tmp_path / "y.npy", data.labels.numpy())
    spec = {"name": "features", "root": str(tmp_path / "x.npy"), "labels": str(tmp_path / "y.npy")}
    audio, image = (
        open_data({**spec, "mismatch": {"preset": "moderate-pool", "side": side}, "keep": 0.5})
        for side in ("audio", "image")
    )
    own = [set(part.x[:, 0].int().tolist()) for part in (audio, image)]
    assert not own[0] & own[1] and len(audio) == len(image) == CLASSES * EACH // 4


@pytest.mark.parametrize(
    ("mismatch", "message"),
    [
        ({"preset": "hard"}, "needs side"),
        ({"preset": "medium", "side": "audio"}, "must be one of"),
        ({"preset": "hrd", "side": "audio"}, "did you mean 'hard'"),
        ({"side": "audio", "pol": 0.5}, "did you mean 'pool'"),
        ({"side": "audio", "pool": 1}, "between 0 and 1"),
        ({"side": "audio", "imbalance": 0.5}, "ratio >= 1"),
        ({"side": "video"}, "must be one of"),
        ("hard", "is a mapping"),
    ],
)
def test_what_is_refused(mismatch, message):
    with pytest.raises(ValueError, match=message):
        open_data({"name": "digits", "mismatch": mismatch})
