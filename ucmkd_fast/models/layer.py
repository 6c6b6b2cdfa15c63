"""Any module as a model to distil: the output of one of its layers is the feature."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..ops.checks import choice
from .contract import Classifier
from .weights import as_written, modules_of


class LayerEncoder(nn.Module):
    """A module whose feature is what one of its layers puts out.

    Args:
        module: takes x (n, ...).
        layer: a name in ``module.named_modules()``.
        pool: what becomes of the output's further axes: "mean": of (n, D, ...), over all after the
            second; "tokens": of (n, tokens, D), the mean over the tokens; "first": of those, the first token.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, module: nn.Module, layer: str, pool: str = "mean"):
        super().__init__()
        choice("pool", pool, ("mean", "tokens", "first"))
        known = list(modules_of(module))
        if layer not in known:
            choice("layer", layer, known)
        self.module, self.layer, self.pool = module, layer, pool

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, D) of inputs x (n, ...)."""
        found: list[Any] = []
        handle = modules_of(self.module)[self.layer].register_forward_hook(
            lambda module, inputs, output: found.append(output)
        )
        try:
            with as_written(self.module):
                self.module(x)
        finally:
            handle.remove()
        if not found:
            raise ValueError(f"layer {self.layer!r} was not run, so it has no feature")
        output = found[-1][0] if isinstance(found[-1], (tuple, list)) else found[-1]
        if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != len(x):
            raise ValueError(
                f"layer {self.layer!r} must put out a tensor (n, D, ...) for n = {len(x)} inputs, got "
                f"{tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__}"
            )
        return pooled(output, self.pool)


def classifier_of_layer(
    module: nn.Module, layer: str, *, classes: int, width: int, pool: str = "mean"
) -> Classifier:
    """A model of any module: one layer's output, of the given width, under a new head.

    The module runs to its end, so parameters after the layer get no gradient.
    """
    return Classifier(LayerEncoder(module, layer, pool), nn.Linear(width, classes))


def pooled(output: Tensor, pool: str) -> Tensor:
    """(n, D) of a layer's output, see `LayerEncoder`."""
    if output.dim() == 2:
        return output
    if pool == "mean":
        return output.flatten(2).mean(2)
    if output.dim() != 3:
        raise ValueError(f"pool {pool!r} needs an output (n, tokens, D), got {tuple(output.shape)}")
    return output.mean(1) if pool == "tokens" else output[:, 0]
