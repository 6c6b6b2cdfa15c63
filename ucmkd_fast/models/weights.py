"""A model's weights by the names that they have where nothing is compiled.

``torch.compile(model)`` wraps a module, and so puts ``_orig_mod`` into the names of its weights. Files hold the
plain names, and either kind of model reads either kind of file.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

_WRAPPED = "_orig_mod"


def plain_name(name: str) -> str:
    """The name of a weight, or a module, without what ``torch.compile`` put into it, at any depth."""
    return ".".join(part for part in name.split(".") if part != _WRAPPED)


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules inside a model by their plain names; those that are compiled, as they were before."""
    # Of a wrapper and what it wraps, the same name, the latter comes later.
    inside = {plain_name(name): module for name, module in model.named_modules()}
    inside.pop("", None)
    return inside


def as_written(model: nn.Module) -> AbstractContextManager[Any]:
    """A context in which compiled modules run as they were written: what was compiled does not see new hooks."""
    compiled = any(_WRAPPED in module._modules for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def state_of(model: nn.Module) -> dict[str, Any]:
    """A model's state dict under plain names; the tensors are the model's own."""
    return {plain_name(name): value for name, value in model.state_dict().items()}


def load_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict, whichever of model and state is of something compiled.

    Raises:
        RuntimeError: torch's, where names or shapes do not fit.
    """
    own = {plain_name(name): name for name in model.state_dict()}
    model.load_state_dict({own.get(plain_name(name), name): value for name, value in state.items()})
