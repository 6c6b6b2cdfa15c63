"""ResNet and ViT from whichever library is installed: torchvision, timm, or Hugging Face transformers.

Built from their settings, without a download; ``pretrained`` fetches weights. All take pictures or
spectrograms (n, channels, H, W), or clips (n, frames, channels, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from ..extras import need
from ..ops.checks import choice, count_at_least_one
from .frames import FrameClassifier, MappedFrameClassifier
from .hugging_face import from_hub
from .projector import with_width

SOURCES = ("torchvision", "timm", "transformers")

#: Layers a stage, kind of layer, channels a stage. ResNet-50 has bottlenecks; the published code's had not.
_RESNETS: dict[str, tuple[list[int], str, list[int]]] = {
    "resnet18": ([2, 2, 2, 2], "basic", [64, 128, 256, 512]),
    "resnet34": ([3, 4, 6, 3], "basic", [64, 128, 256, 512]),
    "resnet50": ([3, 4, 6, 3], "bottleneck", [256, 512, 1024, 2048]),
}
#: Width, layers, heads; patches of 16 pixels; weights on Hugging Face.
_VITS: dict[str, tuple[int, int, int, str]] = {
    "vit_small": (384, 12, 6, "WinKawaks/vit-small-patch16-224"),
    "vit_base": (768, 12, 12, "google/vit-base-patch16-224-in21k"),
    "vit_large": (1024, 24, 16, "google/vit-large-patch16-224-in21k"),
}


def _resnet(
    name: str,
    classes: int,
    width: int | None = None,
    channels: int = 3,
    pretrained: bool = False,
    source: str | None = None,
) -> nn.Module:
    """A ResNet with five maps: its stem and its stages.

    Args:
        name: a key of ``_RESNETS``.
        classes: how many.
        width: of the features, by a linear layer after the pooling; None: the network's own.
        channels: of the inputs. Weights for three channels are averaged over them where there are others.
        pretrained: weights from ImageNet, downloaded.
        source: "torchvision", "timm" or "transformers"; None: the first that is installed.

    Raises:
        ImportError: no such library is installed.
        OSError: weights cannot be had.
    """
    source = _source(source, SOURCES)
    given = 3 if pretrained else count_at_least_one("channels", channels)
    if source == "transformers":
        net, stages = _transformers_resnet(name, given, pretrained), "encoder.stages."
        layers = ["net.embedder", *(f"net.{stages}{k}" for k in range(4))]
    else:
        make = _torchvision_resnet if source == "torchvision" else _timm_model
        net = make(name, given, pretrained)
        layers = ["net.maxpool", *(f"net.layer{k}" for k in range(1, 5))]
    _fit_channels(net, channels)
    head = nn.Linear(_RESNETS[name][2][-1], count_at_least_one("classes", classes))
    return with_width(MappedFrameClassifier(_Encoder(net, _of_resnet), head, layers), width)


def _vit(
    name: str,
    classes: int,
    width: int | None = None,
    channels: int = 3,
    image_size: int | Sequence[int] = 224,
    pretrained: bool = False,
    source: str | None = None,
) -> nn.Module:
    """A Vision Transformer with patches of 16; the feature is its class token after the last norm.

    Args:
        name: a key of ``_VITS``.
        classes: how many.
        width: of the features, by a linear layer; None: the network's own.
        channels: of the inputs, see `_resnet`.
        image_size: of the inputs, a side or height and width; multiples of 16. Positions of pretrained
            weights are interpolated to it.
        pretrained: weights from ImageNet, downloaded.
        source: "timm" or "transformers"; None: the first that is installed. (torchvision has no ViT-S, and
            none for oblong inputs.)

    Raises:
        ImportError: no such library is installed.
        OSError: weights cannot be had.
        ValueError: an image size that patches do not fill.
    """
    source = _source(source, SOURCES[1:])
    size = _sides(image_size)
    given = 3 if pretrained else count_at_least_one("channels", channels)
    if source == "transformers":
        net, take = _transformers_vit(name, given, size, pretrained), _of_transformers_vit
    else:
        net, take = _timm_model(f"{name}_patch16_224", given, pretrained, img_size=size), _of_resnet
    _fit_channels(net, channels)
    head = nn.Linear(_VITS[name][0], count_at_least_one("classes", classes))
    return with_width(FrameClassifier(_Encoder(net, take), head), width)


def _named(build: Callable[..., nn.Module], key: str, what: str) -> Callable[..., nn.Module]:
    """The builder of one network: ``build`` without its first argument, of the same signature otherwise."""
    builder = partial(build, key)
    builder.__doc__ = f"{what}; see `{build.__name__}`."
    return builder


resnet18 = _named(_resnet, "resnet18", "ResNet-18, features of 512")
resnet34 = _named(_resnet, "resnet34", "ResNet-34, features of 512")
resnet50 = _named(_resnet, "resnet50", "ResNet-50 with bottlenecks, features of 2048")
vit_s = _named(_vit, "vit_small", "ViT-S/16, features of 384")
vit_b = _named(_vit, "vit_base", "ViT-B/16, features of 768")
vit_l = _named(_vit, "vit_large", "ViT-L/16, features of 1024")


class _Encoder(nn.Module):
    """A network of a library, and how its features (n, D) are taken."""

    def __init__(self, net: nn.Module, take: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.net, self._take = net, take

    def forward(self, x: Tensor) -> Tensor:
        return self._take(self.net, x)


def _of_resnet(net: nn.Module, x: Tensor) -> Tensor:
    """Torchvision and timm give features (n, D), transformers pooled maps (n, D, 1, 1)."""
    output = net(x)
    return (output if isinstance(output, Tensor) else output.pooler_output).flatten(1)


def _of_transformers_vit(net: Any, x: Tensor) -> Tensor:
    sides = net.config.image_size
    trained_for = (sides, sides) if isinstance(sides, int) else tuple(sides)
    other = tuple(x.shape[2:]) != trained_for
    return net(x, interpolate_pos_encoding=other).last_hidden_state[:, 0]


def _torchvision_resnet(name: str, channels: int, pretrained: bool) -> nn.Module:
    net = getattr(need("torchvision.models"), name)(weights="DEFAULT" if pretrained else None)
    net.fc = nn.Identity()
    if channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net


def _timm_model(name: str, channels: int, pretrained: bool, **more: Any) -> nn.Module:
    return need("timm").create_model(name, pretrained=pretrained, num_classes=0, in_chans=channels, **more)


def _transformers_resnet(name: str, channels: int, pretrained: bool) -> nn.Module:
    transformers = need("transformers")
    if pretrained:
        return from_hub(transformers.ResNetModel, f"microsoft/{name[:6]}-{name[6:]}")
    depths, kind, sizes = _RESNETS[name]
    config = transformers.ResNetConfig(
        num_channels=channels, embedding_size=64, hidden_sizes=sizes, depths=depths, layer_type=kind
    )
    return transformers.ResNetModel(config)


def _transformers_vit(name: str, channels: int, size: tuple[int, int], pretrained: bool) -> nn.Module:
    transformers = need("transformers")
    width, layers, heads, repository = _VITS[name]
    if pretrained:
        return from_hub(transformers.ViTModel, repository, add_pooling_layer=False)
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=size,
        patch_size=16,
        num_channels=channels,
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


def _fit_channels(net: nn.Module, channels: int) -> None:
    """Make the first convolution take so many channels; the sum of its weights over them stays."""
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == channels:
        return
    weight = first.weight.detach().sum(1, keepdim=True) / channels
    first.weight = nn.Parameter(weight.repeat(1, channels, 1, 1))
    first.in_channels = channels
    _note_channels(net, channels)


def _note_channels(net: Any, channels: int) -> None:
    """Tell a network of transformers: its layers check the inputs."""
    for module in net.modules():
        if hasattr(module, "num_channels"):
            module.num_channels = channels
    if hasattr(net, "config"):
        net.config.num_channels = channels


def _source(asked: str | None, allowed: tuple[str, ...]) -> str:
    if asked is not None:
        choice("source", asked, allowed)
        need(asked)
        return asked
    return next((name for name in allowed if find_spec(name)), "transformers")


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(not isinstance(s, int) or s < 16 or s % 16 for s in sides):
        raise ValueError(f"image_size must be multiples of 16, a side or height and width, got {size!r}")
    return sides[0], sides[1]
