"""Models by description."""

from __future__ import annotations

import pytest
import torch

from ucmkd_fast.models import build_model, mlp, model_keys


def test_a_description_builds_what_the_function_builds():
    torch.manual_seed(1)
    described = build_model({"name": "mlp", "inputs": 7, "width": 5, "hidden": [8]}, classes=3, channels=1)
    torch.manual_seed(1)
    by_hand = mlp(7, 3, 5, (8,))
    x = torch.randn(4, 7)
    assert torch.equal(described(x), by_hand(x))


def test_the_description_outweighs_what_the_caller_knows():
    assert build_model({"name": "digit_cnn", "classes": 4}, classes=9).head.out_features == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"classes": 3}, "needs a name"),
        ({"name": "mpl"}, "did you mean 'mlp'"),
        ({"name": "mlp", "inputs": 3, "classes": 2, "widht": 5}, "did you mean 'width'"),
        ({"name": "mlp", "classes": 2}, "needs inputs"),
    ],
)
def test_what_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        build_model(spec)


def test_the_keys_are_told():
    assert model_keys("mlp") == ["name", "inputs", "classes", "width", "hidden"]
