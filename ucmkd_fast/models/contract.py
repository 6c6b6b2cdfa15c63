"""What a model must offer to be distilled: ``encode(x) -> (n, D)`` and ``head``."""

from __future__ import annotations

from torch import Tensor, nn


class Classifier(nn.Module):
    """An encoder that maps inputs to features (n, D) and a head that maps features to logits (n, K).

    Any ``nn.Module`` with a method ``encode`` and an attribute ``head`` serves as
    well; `check_model` says what is missing.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = head

    def encode(self, x: Tensor) -> Tensor:
        """Features (n, D) of inputs x (n, ...)."""
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of inputs x (n, ...)."""
        return self.head(self.encode(x))


def check_model(model: nn.Module, role: str) -> None:
    """Raise TypeError when a model does not keep the contract; ``role`` names it in the message."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{role} must be a torch.nn.Module, got {type(model).__name__}")
    encode, head = getattr(model, "encode", None), getattr(model, "head", None)
    if not callable(encode) or not isinstance(head, nn.Module):
        raise TypeError(
            f"{role} must have encode(x) -> (n, D) and a module head that maps (n, D) to logits; "
            f"{type(model).__name__} lacks one (wrap it in ucmkd_fast.models.Classifier(encoder, head))"
        )
