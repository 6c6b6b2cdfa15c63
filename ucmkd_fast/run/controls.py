"""Teachers that must not help: what a method gains under them, it did not learn from the real one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def derangement(classes: int, seed: int) -> Tensor:
    """A random permutation (classes,) int64 that leaves no class where it was; classes > 1."""
    if classes < 2:
        raise ValueError(f"expected at least two classes to permute, got {classes}")
    random = np.random.default_rng(seed)
    while True:
        renamed = random.permutation(classes)
        if (renamed != np.arange(classes)).all():
            return torch.from_numpy(renamed)


def permuted_head(head: nn.Module, renamed: Tensor) -> nn.Module:
    """A head whose logit ``renamed[k]`` is the given head's logit k."""
    if not isinstance(head, nn.Linear):
        return nn.Sequential(head, _Reordered(torch.argsort(renamed)))
    permuted = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
    permuted.to(head.weight)
    with torch.no_grad():
        permuted.weight[renamed] = head.weight
        if head.bias is not None:
            permuted.bias[renamed] = head.bias
    return permuted


def permuted_model(model: Any, renamed: Tensor) -> Any:
    """The same encoder, its weights shared, under a head that names every class as another."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)  # a shallow copy shares this dict, and the head must not be
    twin.head = permuted_head(model.head, renamed)
    return twin


class _Reordered(nn.Module):
    """Logits (n, K) in another order."""

    order: Tensor

    def __init__(self, order: Tensor):
        super().__init__()
        self.register_buffer("order", order)

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, self.order]
