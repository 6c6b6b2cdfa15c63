"""`ucmkd extract`: the features of an encoder, kept whole, read without being loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ucmkd_fast.cli import main
from ucmkd_fast.data import FeatureBank, TensorData, open_data
from ucmkd_fast.data.extract import extract, read_extracted
from ucmkd_fast.models import Classifier, build_model, mlp
from ucmkd_fast.models.hugging_face import commit_of
from ucmkd_fast.training.checkpoint import write_weights


def samples() -> TensorData:
    return TensorData(
        torch.randn(25, 6), torch.arange(25) % 3, ["a", "b", "c"], groups=["x", "y"] * 12 + ["z"]
    )


def test_a_bank_opens_what_was_extracted(tmp_path):
    model, data = mlp(6, 3, width=8).train(), samples()
    assert extract(model, data, tmp_path / "bank", {"encoder": "mlp", "revision": 3}, batch_size=7)
    assert model.training
    bank = FeatureBank.load(tmp_path / "bank")
    expected = FeatureBank.from_model(model, data)
    assert torch.allclose(bank.x, expected.x, atol=1e-6) and torch.equal(bank.labels, data.labels)
    assert bank.classes == data.classes and bank.groups == data.groups
    assert bank.about == {"encoder": "mlp", "revision": "3"}
    assert isinstance(np.load(tmp_path / "bank" / "features.npy", mmap_mode="r"), np.memmap)
    named = open_data({"name": "features", "root": str(tmp_path / "bank")})
    assert named.holds_features and torch.equal(named.x, bank.x)


def test_done_again_it_is_kept_and_other_features_are_refused(tmp_path):
    model, data = mlp(6, 3), samples()
    assert extract(model, data, tmp_path / "bank", {"encoder": "one"})
    before = (tmp_path / "bank" / "features.npy").stat().st_mtime_ns
    assert not extract(model, data, tmp_path / "bank", {"encoder": "one"})
    assert (tmp_path / "bank" / "features.npy").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds something else"):
        extract(model, data, tmp_path / "bank", {"encoder": "two"})


def test_a_run_that_fails_leaves_nothing(tmp_path):
    class Breaks(torch.nn.Module):
        def forward(self, x):
            return x / (0 if len(x) == 5 else 1)

    model = Classifier(Breaks(), torch.nn.Linear(6, 3))
    with pytest.raises(ValueError, match="got (NaN|[+-]inf) for sample 2[0-4]"):
        extract(model, samples(), tmp_path / "bank", {}, batch_size=10)
    assert not list(tmp_path.iterdir())


def test_damage_is_found(tmp_path):
    extract(mlp(6, 3), samples(), tmp_path / "bank", {})
    path = tmp_path / "bank" / "features.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match=r"features\.npy: not the features"):
        read_extracted(tmp_path / "bank", check=True)
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"features\.npy: not a whole"):
        FeatureBank.load(tmp_path / "bank")


def test_the_command(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32))
    np.save(tmp_path / "y.npy", np.arange(9) % 3)
    data = {"name": "features", "root": str(tmp_path / "x.npy"), "labels": str(tmp_path / "y.npy")}
    model = build_model({"name": "mlp", "inputs": 4, "classes": 3})
    write_weights(tmp_path / "w.safetensors", model.state_dict(), {})
    told = {"data": data, "model": {"name": "mlp", "inputs": 4}, "weights": str(tmp_path / "w.safetensors")}
    (tmp_path / "run.yaml").write_text(json.dumps(told))  # JSON is YAML
    for new in (True, False):
        with pytest.raises(SystemExit) as end:
            main(["extract", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "bank"), "--json"])
        assert end.value.code == 0 and json.loads(capsys.readouterr().out)["new"] is new
    bank = FeatureBank.load(tmp_path / "bank")
    assert torch.allclose(bank.x, model.encode(open_data(data).x), atol=1e-6)
    (tmp_path / "run.yaml").write_text(json.dumps({**told, "wieghts": "x"}))
    with pytest.raises(SystemExit) as end:
        main(["extract", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "other")])
    assert end.value.code == 2 and "did you mean 'weights'" in capsys.readouterr().err


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_manifest_tells_the_encoders_commit(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    # A model of the hub, as its cache keeps it, so that no network is asked.
    hub = tmp_path / "home" / "hub" / "models--owner--tiny"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text(COMMIT)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    net = transformers.BertModel(transformers.BertConfig(vocab_size=11, max_position_embeddings=8, **sizes))
    net.save_pretrained(hub / "snapshots" / COMMIT)
    x = np.random.default_rng(0).integers(1, 11, size=(9, 5))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(9) % 3)
    data = {"name": "features", "root": str(tmp_path / "x.npy"), "labels": str(tmp_path / "y.npy")}
    told = {"data": data, "model": {"name": "hugging-face", "model": "owner/tiny"}}
    (tmp_path / "run.yaml").write_text(json.dumps(told))
    arguments = ["extract", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "bank")]
    command = [sys.executable, "-c", f"from ucmkd_fast.cli import main; main({arguments!r})"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)  # it would outweigh HF_HOME
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    bank = FeatureBank.load(tmp_path / "bank")
    assert bank.about["encoder_revision"] == COMMIT
    with torch.no_grad():
        assert torch.allclose(bank.x, net.eval()(torch.from_numpy(x)).pooler_output, atol=1e-5)


def test_a_model_of_a_folder_has_no_commit(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(vocab_size=11, **sizes)).save_pretrained(tmp_path)
    assert commit_of(build_model({"name": "hugging-face", "model": str(tmp_path)}, classes=3)) is None
    assert commit_of(mlp(6, 3)) is None
