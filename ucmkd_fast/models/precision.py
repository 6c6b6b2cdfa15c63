"""The dtypes that data and models meet in.

One rule, wherever a model is run:

* Floating inputs are cast to the dtype of the model's own weights, so features and samples may be stored in any.
* Losses are computed in float32, or in float64 where the student is: what a model in another precision puts out is
  cast to that. A teacher, or a bank of its features, in half precision then teaches as its float32 copy would, up
  to the rounding of its numbers.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .maps import encode_with_maps


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The floating dtype of a model's first weights or buffers, the encoder's before the head's; None without any."""
    head = getattr(model, "head", None)
    of_head = set(head.modules()) if isinstance(head, nn.Module) else set()
    encoder = (module for module in model.modules() if module not in of_head)
    tensors = chain.from_iterable(
        (*m._parameters.values(), *m._buffers.values()) for m in chain(encoder, of_head)
    )
    return next((t.dtype for t in tensors if t is not None and t.is_floating_point()), None)


def inputs_for(model: nn.Module, x: Tensor) -> Tensor:
    """Samples or features x as the model takes them: floating ones in its own dtype, others as they are."""
    own = dtype_of(model) if x.is_floating_point() else None
    return x if own is None else x.to(own)


def loss_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that the losses of a model are computed in: float32, or float64 where it is float64."""
    return torch.promote_types(dtype_of(model) or torch.float32, torch.float32)


def seen_in(model: Any, dtype: torch.dtype) -> Any:
    """A model that gives features, maps and logits in ``dtype``: itself where all its weights are; else `SeenIn`."""
    return model if _is_all(model, dtype) else SeenIn(model, dtype)


def head_in(head: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A head, or any module of one input, that takes any floating dtype and gives ``dtype``."""
    return head if _is_all(head, dtype) else _Cast(head, dtype)


class SeenIn(nn.Module):
    """A model under the contract (``encode``, ``head``) whose outputs are cast; its weights stay as they are.

    Args:
        model: the model, shared.
        dtype: of features, maps and logits.
    """

    def __init__(self, model: Any, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype
        # Not a submodule: functional_call puts weights back wrongly where a module has two names.
        self._head = (head_in(model.head, dtype),)

    @property
    def head(self) -> nn.Module:
        """The model's head, its logits cast."""
        return self._head[0]

    def encode(self, x: Tensor) -> Tensor:
        """Features (n, D) of inputs x (n, ...) of any floating dtype."""
        return self.model.encode(inputs_for(self.model, x)).to(self.dtype)

    def encode_with_maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (n, D) and the model's maps (n, C, ...), where it gives any."""
        feature, maps = encode_with_maps(self.model, inputs_for(self.model, x), "the model")
        return feature.to(self.dtype), [one.to(self.dtype) for one in maps]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of inputs x (n, ...)."""
        return self.head(self.encode(x))


class _Cast(nn.Module):
    """A module whose input and output are cast."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, z: Tensor) -> Tensor:
        return self.module(inputs_for(self.module, z)).to(self.dtype)


def _is_all(model: nn.Module, dtype: torch.dtype) -> bool:
    return all(p.dtype == dtype for p in model.parameters() if p.is_floating_point())
