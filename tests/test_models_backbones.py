"""ResNet and ViT of the installed libraries, Hugging Face models, projectors, layers of any module."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from ucmkd_fast import Distiller
from ucmkd_fast.data import TensorData
from ucmkd_fast.models import Projected, build_model, classifier_of_layer, mlp, with_width

SOURCES = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("torchvision", "timm", "transformers")
]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("name", "width", "size"),
    # Parameters of the networks without a head, as their papers' tables and torchvision count them.
    [("resnet18", 512, 11_176_512), ("resnet34", 512, 21_284_672), ("resnet50", 2048, 23_508_032)],
)
def test_resnets(name, width, size, source):
    model = build_model({"name": name, "source": source}, classes=5)
    assert parameters(model.encoder) == size
    x = torch.randn(2, 3, 64, 64)
    model.eval()
    feature, maps = model.encode_with_maps(x)
    assert feature.shape == (2, width) and model(x).shape == (2, 5)
    assert [m.shape[2] for m in maps] == [16, 16, 8, 4, 2] and maps[-1].shape[1] == width
    clip = torch.stack([x, x.flip(-1)], 1)
    assert clip.shape == (2, 2, 3, 64, 64)
    expected = (model.encode(x) + model.encode(x.flip(-1))) / 2
    assert torch.allclose(model.encode(clip), expected, atol=1e-5)
    assert [m.shape for m in model.encode_with_maps(clip)[1]] == [m.shape for m in maps]


@pytest.mark.parametrize("source", SOURCES)
def test_a_resnet_of_spectrograms_with_a_projection(source):
    model = build_model(
        {"name": "resnet18", "source": source, "channels": 1, "width": 96}, classes=4, inputs=7
    ).eval()
    x = torch.randn(2, 1, 65, 100)
    feature, maps = model.encode_with_maps(x)
    assert feature.shape == (2, 96) and model(x).shape == (2, 4) and len(maps) == 5


@pytest.mark.parametrize("source", SOURCES[1:])
@pytest.mark.parametrize("name, width, size", [("vit-s", 384, 21_358_848)])
def test_vits(name, width, size, source):
    model = build_model({"name": name, "source": source, "channels": 1, "image_size": [48, 80]}, classes=3)
    # 21,665,664 with 196 positions and three channels (Touvron et al. 2021 say 22 M); here 15 and one.
    at_224 = parameters(model.encoder) + (196 - 15) * width + 2 * 256 * width
    assert at_224 == 21_665_664
    model.eval()
    assert model(torch.randn(2, 1, 48, 80)).shape == (2, 3)
    assert model.encode(torch.randn(1, 2, 1, 48, 80)).shape == (1, width)


def test_weights_of_three_channels_serve_one():
    pytest.importorskip("transformers", reason="transformers is not installed")
    from ucmkd_fast.models.image_backbones import _fit_channels

    model = build_model({"name": "resnet18", "source": "transformers"}, classes=3).eval()
    grey = torch.randn(2, 1, 40, 40)
    before = model(grey.expand(2, 3, 40, 40))
    _fit_channels(model.encoder.net, 1)
    assert torch.allclose(model(grey), before, atol=1e-4)


def test_hugging_face_models_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    text = transformers.BertModel(transformers.BertConfig(vocab_size=30, **sizes)).eval()
    text.save_pretrained(tmp_path / "text")
    tokens = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])  # 0 is padding
    mask = tokens.ne(0).long()
    with torch.no_grad():
        expected = text(input_ids=tokens, attention_mask=mask)
        model = build_model({"name": "hugging-face", "model": str(tmp_path / "text")}, classes=3).eval()
        assert torch.allclose(model.encode(tokens), expected.pooler_output, atol=1e-6)
        mean = build_model(
            {"name": "hugging-face", "model": str(tmp_path / "text"), "pool": "tokens", "width": 9}, classes=3
        ).eval()
        hidden = expected.last_hidden_state
        by_hand = torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)])
        assert torch.allclose(mean.model.encode(tokens), by_hand, atol=1e-6)
        assert mean.encode(tokens).shape == (2, 9)

    picture = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **sizes))
    picture.save_pretrained(tmp_path / "picture")
    drawn = build_model(
        {"name": "hugging-face", "model": str(tmp_path / "picture"), "pretrained": False}, classes=3
    )
    assert drawn(torch.randn(2, 3, 16, 16)).shape == (2, 3)


def test_a_projected_student_learns_from_a_teacher_of_another_width():
    teacher = mlp(5, 3, width=12)
    student = mlp(4, 3, width=7)
    data = (
        TensorData(torch.randn(24, 4), torch.arange(24) % 3),
        TensorData(torch.randn(24, 5), torch.arange(24) % 3),
    )
    options = {"epochs": 1, "batch_size": 8, "progress": False}
    with pytest.raises(ValueError, match=r"with_width"):
        Distiller(student, teacher, "ucmkd", **options).fit(*data)
    projected = with_width(student, 12)
    before = projected.projector.weight.detach().clone()
    Distiller(projected, teacher, "ucmkd", **options).fit(*data)
    assert not torch.equal(projected.projector.weight, before)
    assert with_width(teacher, 12) is teacher and with_width(teacher, None) is teacher
    assert {name.split(".")[0] for name, _ in projected.named_parameters()} == {"model", "projector", "head"}


def test_what_cannot_be_projected_is_refused():
    with pytest.raises(TypeError, match="linear head"):
        Projected(type(mlp(4, 3))(nn.Identity(), nn.Identity()), 5)


def test_any_module_by_naming_a_layer():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))
    model = classifier_of_layer(net, "1", classes=4, width=6)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.encode(x), net[1](net[0](x)).mean((2, 3))) and model(x).shape == (2, 4)
    assert not net[1]._forward_hooks
    tokens = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    first = classifier_of_layer(tokens, "norm2", classes=4, width=8, pool="first").eval()
    y = torch.randn(2, 5, 8)
    assert torch.allclose(first.encode(y), tokens(y)[:, 0], atol=1e-6)
    with pytest.raises(ValueError, match="layer must be one of"):
        classifier_of_layer(net, "4", classes=4, width=6)
    with pytest.raises(ValueError, match="image_size must be multiples of 16"):
        build_model({"name": "vit-s", "classes": 2, "image_size": 100})
