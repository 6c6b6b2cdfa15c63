"""Feature maps: what models offer to methods that compare inner layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..names import did_you_mean
from .contract import Classifier
from .weights import as_written, modules_of


class MappedClassifier(Classifier):
    """A `Classifier` whose encoder also gives the outputs of some of its layers.

    Args:
        encoder: inputs -> features (n, D).
        head: features -> logits (n, K).
        layers: names of modules inside the encoder, from shallow to deep, as in
            ``encoder.named_modules()``; each gives one map (n, C, ...), channels second.

    Raises:
        ValueError: a name that the encoder does not have, or no name at all.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, layers: Sequence[str]):
        super().__init__(encoder, head)
        known = modules_of(encoder)
        for layer in layers:
            if layer not in known:
                raise ValueError(
                    f"layers must name modules of the encoder, one of {list(known)}; got {layer!r}"
                    f"{did_you_mean(layer, known)}"
                )
        if not layers:
            raise ValueError(f"layers must name at least one module of the encoder, one of {list(known)}")
        self.layers = tuple(layers)

    def encode_with_maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (n, D) of inputs x (n, ...), and the layers' outputs (n, C, ...), shallow to deep."""
        modules = modules_of(self.encoder)
        maps: dict[str, Tensor] = {}

        def keeper(layer: str) -> Any:
            def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
                maps[layer] = output

            return keep

        handles = [modules[layer].register_forward_hook(keeper(layer)) for layer in self.layers]
        try:
            with as_written(self.encoder):
                feature = self.encode(x)
        finally:
            for handle in handles:
                handle.remove()
        missing = [layer for layer in self.layers if layer not in maps]
        if missing:
            raise ValueError(f"layer {missing[0]!r} was not run by the encoder, so it has no map")
        return feature, [maps[layer] for layer in self.layers]


def encode_with_maps(model: Any, x: Tensor, role: str) -> tuple[Tensor, list[Tensor]]:
    """A model's features (n, D) and its maps (n, C, ...), shallow to deep; ``role`` names it in messages.

    Raises:
        TypeError: the model has no ``encode_with_maps``.
        ValueError: it gives no map, or one without a channel and a position axis.
    """
    encode = getattr(model, "encode_with_maps", None)
    if not callable(encode):
        raise TypeError(
            f"this method compares feature maps, so {role} must have encode_with_maps(x) -> (feature (n, D), "
            f"[maps (n, C, ...)]); {type(model).__name__} has none (name its layers: "
            "ucmkd_fast.models.MappedClassifier(encoder, head, layers))"
        )
    feature, maps = encode(x)
    if not maps or any(m.dim() < 3 for m in maps):
        shapes = [tuple(m.shape) for m in maps]
        raise ValueError(f"{role} must give maps (n, C, ...) of at least three axes, gave {shapes}")
    return feature, list(maps)
