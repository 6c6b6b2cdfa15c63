"""Packages that only parts of the library need, and what to say where one is missing."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

#: Importable name -> (distribution, what it is for, the extra that installs it).
OPTIONAL = {
    "sklearn": ("scikit-learn", "handwritten digits, 2-D maps of features", "demo"),
    "matplotlib": ("matplotlib", "pictures", "demo"),
    "tensorboard": ("tensorboard", "training curves", "demo"),
    "espeakng_loader": (
        "espeakng-loader",
        "speaking the demo's digits where there are no recordings",
        "speech",
    ),
    "soundfile": ("soundfile", "recordings other than plain wav: flac, ogg, mp3, aiff", "audio"),
    "PIL": ("Pillow", "pictures as samples", "images"),
    "onnx": ("onnx", "students as ONNX", "export"),
    "onnxscript": ("onnxscript", "students as ONNX", "export"),
    "onnxruntime": ("onnxruntime", "checking students as ONNX", "export"),
    "torchvision": ("torchvision", "ResNet", "torchvision"),
    "timm": ("timm", "ResNet and ViT", "timm"),
    "transformers": ("transformers", "ResNet, ViT, tokenizers and models by name", "models"),
    "pyarrow": ("pyarrow", "parquet tables", "data"),
    "datasets": ("datasets", "Hugging Face data sets", "data"),
    "ot": ("POT", "comparisons in tests and benchmarks", "bench"),
    "geomloss": ("geomloss", "comparisons in tests and benchmarks", "bench"),
}


def need(module: str) -> ModuleType:
    """Import a module of an optional package; ImportError with the command that installs it."""
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        distribution, purpose, extra = OPTIONAL[package]
        raise ImportError(
            f"{distribution} ({purpose}) is not installed: pip install 'ucmkd-fast[{extra}]'"
        ) from error


def installed() -> dict[str, str | None]:
    """Version of each optional distribution; None where it is not installed."""
    found: dict[str, str | None] = {}
    for distribution, _, _ in OPTIONAL.values():
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            found[distribution] = None
    return found
