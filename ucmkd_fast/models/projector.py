"""A linear layer between a student's features and the width that its teacher has."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..ops.checks import count_at_least_one
from .contract import check_model
from .maps import encode_with_maps


class Projected(nn.Module):
    """A model whose features go through a linear layer to another width, under a head of its own.

    The model's own head is dropped: it read features of the old width. Methods compare all features and
    no loss is left out, whatever the widths were.

    Args:
        model: has ``encode`` and a linear ``head``.
        width: of the new features.

    Raises:
        TypeError: a model that does not keep the contract, or whose head is not linear.
    """

    def __init__(self, model: Any, width: int):
        super().__init__()
        check_model(model, "model")
        if not isinstance(model.head, nn.Linear):
            raise TypeError(
                f"a projected model needs a linear head, which tells width and classes; got "
                f"{type(model.head).__name__}"
            )
        own, classes = model.head.in_features, model.head.out_features
        self.model = model
        self.model.head = nn.Identity()
        self.projector = nn.Linear(own, count_at_least_one("width", width))
        self.head = nn.Linear(width, classes)

    def encode(self, x: Tensor) -> Tensor:
        """Features (n, width) of inputs x (n, ...)."""
        return self.projector(self.model.encode(x))

    def encode_with_maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (n, width), and the model's maps, where it gives any."""
        feature, maps = encode_with_maps(self.model, x, "model")
        return self.projector(feature), maps

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of inputs x (n, ...)."""
        return self.head(self.encode(x))


def with_width(model: Any, width: int | None) -> Any:
    """The model itself where its features have that width already, or None is asked; else `Projected`."""
    check_model(model, "model")
    if width is None or getattr(model.head, "in_features", None) == width:
        return model
    return Projected(model, width)
