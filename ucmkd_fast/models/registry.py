"""Models by name: a plain mapping, as a run's saved settings hold it, to a model.

``build_model({"name": "mlp", "inputs": 512, "classes": 6, "width": 64})``; the keys are the
arguments of the function in `BUILDERS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import nn

from ..config import check_keys
from ..ops.checks import choice

#: Name -> the function that builds it, "module:function" of this package.
BUILDERS = {
    "digit-cnn": "backbones:digit_cnn",
    "speech-cnn": "backbones:speech_cnn",
    "mlp": "backbones:mlp",
    "resnet18": "image_backbones:resnet18",
    "resnet34": "image_backbones:resnet34",
    "resnet50": "image_backbones:resnet50",
    "vit-s": "image_backbones:vit_s",
    "vit-b": "image_backbones:vit_b",
    "vit-l": "image_backbones:vit_l",
    "hugging-face": "hugging_face:hugging_face",
}


def model_names() -> list[str]:
    """The names that `build_model` knows."""
    return list(BUILDERS)


def model_keys(name: str) -> list[str]:
    """The keys that a specification of this model may have."""
    return ["name", *inspect.signature(_builder(name)).parameters]


def build_model(spec: Mapping[str, Any], **known: Any) -> nn.Module:
    """The model that a mapping describes, with weights from torch's generator.

    Args:
        spec: ``name`` and the arguments of the function in `BUILDERS`.
        **known: what the caller knows from the data (``classes=``, ``inputs=``, ``channels=``): used
            where the model takes it and the specification does not say it.

    Raises:
        TypeError: not a mapping; an argument of a wrong type.
        ValueError: an unknown name or key (the nearest right one is named), or one that is missing.
    """
    if not isinstance(spec, Mapping):
        raise TypeError(f"a model is described by a mapping of names to values, got {type(spec).__name__}")
    if "name" not in spec:
        raise ValueError(f"the description of a model needs a name, one of {', '.join(BUILDERS)}")
    name = _known(spec["name"])
    builder = _builder(name)
    parameters = inspect.signature(builder).parameters
    check_keys(spec, ["name", *parameters], f"key of model {name!r}:")
    arguments = {key: value for key, value in known.items() if key in parameters}
    arguments |= {key: value for key, value in spec.items() if key != "name"}
    missing = [
        key for key, p in parameters.items() if p.default is inspect.Parameter.empty and key not in arguments
    ]
    if missing:
        raise ValueError(f"model {name!r} needs {', '.join(missing)}, which the description does not say")
    return builder(**arguments)


def _known(name: Any) -> str:
    """The registered name; "digit_cnn" is "digit-cnn"."""
    plain = str(name).lower().replace("_", "-")
    choice("the name of a model", plain, list(BUILDERS))
    return plain


def _builder(name: str) -> Callable[..., nn.Module]:
    module, _, function = BUILDERS[_known(name)].partition(":")
    return getattr(import_module(f".{module}", __package__), function)
