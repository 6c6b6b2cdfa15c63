"""Cached teacher features: the same as running the teacher, and the same after the disk."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ucmkd_fast.data import FeatureBank, TensorData
from ucmkd_fast.models import digit_cnn

X = torch.randn(23, 1, 8, 8, generator=torch.Generator().manual_seed(1))
DATA = TensorData(
    X, torch.arange(23) % 10, [f"digit {k}" for k in range(10)], [f"hand {k % 3}" for k in range(23)]
)


def test_features_are_the_encoders_in_eval_mode_and_the_model_is_left_alone():
    torch.manual_seed(0)
    model = digit_cnn().train()
    model.head.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bank = FeatureBank.from_model(model, DATA, batch_size=10, about={"encoder": "small"})
    assert model.training and model.encoder.training and not model.head.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not bank.x.requires_grad and bank.holds_features
    with torch.no_grad():
        assert torch.allclose(bank.x, model.eval().encode(X), atol=1e-6)
    assert torch.equal(bank.labels, DATA.labels) and bank.groups == DATA.groups


def test_a_bank_survives_the_disk(tmp_path):
    bank = FeatureBank(torch.randn(23, 5), DATA.labels, DATA.classes, DATA.groups, {"encoder": "small"})
    bank.subset([3, 1]).save(tmp_path / "part.safetensors")
    part = FeatureBank.load(tmp_path / "part.safetensors")
    assert torch.equal(part.x, bank.x[[3, 1]]) and part.labels.tolist() == [3, 1]
    assert part.classes == DATA.classes and part.groups == ["hand 0", "hand 1"]
    assert part.about == {"encoder": "small"} and part.holds_features
    assert [p.name for p in tmp_path.iterdir()] == ["part.safetensors"]
    assert isinstance(bank.with_labels(DATA.labels.flip(0)), FeatureBank)


def test_a_file_that_is_no_bank_is_refused_by_name(tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(FileNotFoundError, match="bank.safetensors"):
        FeatureBank.load(path)
    save_file({"features": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="bank.safetensors: .*format is None"):
        FeatureBank.load(path)
    FeatureBank(torch.randn(4, 3), torch.arange(4)).save(path)
    whole = path.read_bytes()
    for broken in (whole[:-9], whole[:6], b"", whole.replace(b'features"', b'feetures"')):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="bank.safetensors: not a whole file"):
            FeatureBank.load(path)


def test_what_are_no_features_is_refused():
    with pytest.raises(ValueError, match=r"of shape \(n, D\)"):
        FeatureBank(X, DATA.labels)
    with pytest.raises(ValueError, match="int64"):
        FeatureBank(torch.ones(3, 2, dtype=torch.int64), torch.arange(3))
    with pytest.raises(TypeError, match="encode"):
        FeatureBank.from_model(torch.nn.Linear(2, 2), DATA)
    with pytest.raises(ValueError, match="batch_size"):
        FeatureBank.from_model(digit_cnn(), DATA, batch_size=0)
