"""`class_agreement`: structure that two models share is found, noise is not, and names do not matter."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from ucmkd_fast.data import FeatureBank
from ucmkd_fast.report import class_agreement


def bank(means: torch.Tensor, each: int, noise: float, seed: int) -> FeatureBank:
    labels = torch.arange(len(means)).repeat_interleave(each)
    random = torch.Generator().manual_seed(seed)
    return FeatureBank(
        means[labels] + noise * torch.randn(len(labels), means.shape[1], generator=random), labels
    )


def test_shared_structure_is_found_through_any_rotation_and_width():
    torch.manual_seed(0)
    means = torch.randn(12, 6)
    turned = means @ torch.linalg.qr(torch.randn(9, 6)).Q.T
    found = class_agreement(bank(means, 5, 0.1, 1), bank(3 * turned + 7, 8, 0.1, 2))
    assert found.correlation > 0.95 and found.p_value == 0.001 and found.classes == 12
    other = class_agreement(bank(means, 5, 0.1, 1), bank(turned[torch.randperm(12)], 8, 0.1, 2))
    assert abs(other.correlation) < 0.4 and other.p_value > 0.05


def test_the_correlation_is_spearmans_over_pairs():
    torch.manual_seed(1)
    ours, theirs = bank(torch.randn(7, 4), 3, 0.5, 1), bank(torch.randn(7, 5), 4, 0.5, 2)

    def similarities(z):
        means = torch.stack([z.x[z.labels == k].mean(0) for k in range(7)]).double()
        unit = torch.nn.functional.normalize(means - means.mean(0))
        return (unit @ unit.T)[torch.triu_indices(7, 7, 1).unbind()]

    want = spearmanr(similarities(ours), similarities(theirs))[0]
    assert class_agreement(ours, theirs).correlation == pytest.approx(want, abs=1e-12)


def test_of_unrelated_models_one_in_twenty_is_beyond_chance():
    torch.manual_seed(2)
    p = torch.tensor(
        [
            class_agreement(
                bank(torch.randn(8, 4), 3, 0.1, k), bank(torch.randn(8, 4), 3, 0.1, k + 500), permutations=99
            ).p_value
            for k in range(300)
        ]
    )
    assert 0.01 <= (p <= 0.05).float().mean() <= 0.1 and abs(p.mean() - 0.5) < 0.06


def test_classes_without_samples_are_left_out_and_too_few_are_refused():
    means = torch.randn(6, 4)
    mine = bank(means, 4, 0.0, 0)
    theirs = mine.subset((mine.labels != 2).nonzero()[:, 0])
    assert class_agreement(mine, theirs) == pytest.approx((1.0, class_agreement(mine, theirs).p_value, 5))
    with pytest.raises(ValueError, match="at least 4 classes.*got 3"):
        class_agreement(mine, mine.subset((mine.labels < 3).nonzero()[:, 0]))
