"""The teacher's features, computed once and kept: a frozen teacher need never run in training."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..models.contract import check_model
from ..models.precision import inputs_for
from ..ops.checks import count_at_least_one
from ..training.checkpoint import write_weights
from .batch import row_batches
from .extract import read_extracted
from .labelled import LabelledData, TensorData

_FORMAT = "ucmkd-fast features 1"


class FeatureBank(TensorData):
    """Features (n, D) of a data set by a frozen encoder, with their labels.

    `UnpairedLoader` hands them on as ``Batch.teacher_feature``. Logits are not kept: the head
    gives them from the features.

    Args:
        features: (n, D) floating; a memory map of NumPy stays on the disk, as in `TensorData`.
        labels: (n,) integers.
        classes: the classes' names.
        groups: who made each sample.
        about: what made the features (encoder, data, preprocessing), as strings.
    """

    holds_features = True

    def __init__(
        self,
        features: Tensor | np.memmap,
        labels: Tensor,
        classes: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        about: dict[str, str] | None = None,
    ):
        super().__init__(features, labels, classes, groups)
        shape, dtype = tuple(self._samples.shape), self._samples.dtype
        if len(shape) != 2 or not dtype.is_floating_point:
            raise ValueError(f"features must be floating, of shape (n, D), got {dtype} {shape}")
        self.about = dict(about or {})

    @classmethod
    @torch.no_grad()
    def from_model(
        cls,
        model: Any,  # nn.Module with encode, head
        data: LabelledData,
        batch_size: int = 256,
        about: dict[str, str] | None = None,
    ) -> FeatureBank:
        """The features of every sample of ``data``, in order, by ``model.encode`` in eval mode.

        Batches go to the model's device; features come back to the CPU in their own dtype.
        """
        check_model(model, "model")
        count_at_least_one("batch_size", batch_size)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            features = [
                model.encode(inputs_for(model, data.batch(rows)[0].to(device))).cpu()
                for rows in row_batches(len(data), batch_size)
            ]
        finally:
            for module, training in modes:
                module.training = training
        return cls(torch.cat(features), data.labels, data.classes, data.groups, about)

    def in_dtype(self, dtype: torch.dtype) -> FeatureBank:
        """The bank itself where it is in that dtype, else a copy in memory that is."""
        if self._samples.dtype == dtype:
            return self
        twin = copy.copy(self)
        twin._samples = self.x.to(dtype)
        return twin

    def save(self, path: str | Path) -> None:
        """Write features, labels, names and ``about`` as one safetensors file, beside, then renamed."""
        names = {"classes": self.classes, "groups": self.groups, "about": self.about}
        tensors = {"features": self.x.contiguous(), "labels": self.labels.contiguous()}
        write_weights(Path(path), tensors, {"format": _FORMAT, "names": json.dumps(names)})

    @classmethod
    def load(cls, path: str | Path) -> FeatureBank:
        """Read what `save` wrote, or a folder of `extract`, memory-mapped.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not whole, or not a file of features.
        """
        path = Path(path)
        if path.is_dir():
            found = read_extracted(path)
            about = {key: str(value) for key, value in found["about"].items()}
            bank = cls(found["features"], found["labels"], found["classes"], found["groups"], about)
            bank.ids = found["ids"]
            return bank
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a file of features, there is none")
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise ValueError(f"its format is {about.get('format')!r}, expected {_FORMAT!r}")
                names = json.loads(about["names"])
                features, labels = file.get_tensor("features"), file.get_tensor("labels")
            return cls(features, labels, names["classes"], names["groups"], names["about"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a whole file of features: {error}") from error
