"""Figures of a run, gathered on the device and read once: means over an epoch, accuracy on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import UNLABELLED, LabelledData
from ..data.batch import row_batches
from ..models.precision import inputs_for, loss_dtype, seen_in
from .distributed import average, total, world


class Meter:
    """Means of named 0-d tensors over steps; nothing leaves the device before `means`."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._totals: list[Tensor] = []
        self._steps = 0

    def add(self, parts: dict[str, Tensor]) -> None:
        """Count one step's figures; every step has the same names."""
        if not self._steps:
            self._names = list(parts)
            self._totals = [value.detach().to(torch.float32, copy=True) for value in parts.values()]
        elif list(parts) != self._names:
            raise ValueError(f"every step must have the figures {self._names}, got {list(parts)}")
        else:
            torch._foreach_add_(self._totals, [value.detach() for value in parts.values()])
        self._steps += 1

    def means(self) -> dict[str, float]:
        """The means over steps and processes: the one point where the host waits."""
        if not self._steps:
            return {}
        means = torch.stack(self._totals) / self._steps
        if world().size > 1:
            average([means])
        return dict(zip(self._names, means.tolist(), strict=True))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every module's own mode again after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(
    model: Any,  # nn.Module with encode, head
    data: LabelledData,
    *,
    device: torch.device,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Any]:
    """Accuracy and cross-entropy on a data set, shared out over the processes.

    Returns:
        ``accuracy`` (0 to 1), ``loss`` (mean cross-entropy, nats), ``samples``, ``per_class_accuracy``
        (K values, None for a class without samples) and ``confusion`` (K x K counts, row = label,
        column = prediction); the same on every process.

    Raises:
        ValueError: the data set is empty, or has labels that the head does not.
    """
    samples = len(data)
    if not samples:
        raise ValueError("expected at least one sample to evaluate on, got an empty data set")
    rank, size = world()
    seen = seen_in(model, loss_dtype(model))
    with evaluating(model):
        classes = output_sizes(model, data, device)[1]
        check_labels(data, classes)
        counts, loss = torch.zeros(classes * classes, device=device), torch.zeros((), device=device)
        for rows in row_batches(samples, batch_size)[rank::size]:
            x, y = data.batch(rows)
            x, y = inputs_for(model, x.to(device, non_blocking=True)), y.to(device, non_blocking=True)
            with autocast():
                logits = seen.head(seen.encode(x)).float()
            loss += F.cross_entropy(logits, y, reduction="sum")
            counts += torch.bincount(y * classes + logits.argmax(1), minlength=classes * classes)
    if size > 1:
        total([counts, loss])
    confusion = counts.view(classes, classes).long().tolist()
    correct = [row[k] for k, row in enumerate(confusion)]
    return {
        "accuracy": sum(correct) / samples,
        "loss": loss.item() / samples,
        "samples": samples,
        "per_class_accuracy": [
            hit / sum(row) if any(row) else None for hit, row in zip(correct, confusion, strict=True)
        ],
        "confusion": confusion,
    }


def output_sizes(model: Any, data: LabelledData, device: torch.device) -> tuple[int, int]:
    """The width of a model's feature and its number of classes, seen on one sample, which it gets twice.

    Twice, as layers that normalise by the batch's own statistics (BatchNorm without running ones) refuse one sample.

    Raises:
        ValueError: the model does not take the sample, ``encode`` does not give features (n, D), or
            ``head`` logits (n, K).
    """
    x = data.batch(torch.zeros(1, dtype=torch.int64))[0].to(device)
    twice = inputs_for(model, torch.cat([x, x]))
    name = type(model).__name__
    seen = seen_in(model, loss_dtype(model))
    with evaluating(model):
        try:
            feature = twice if data.holds_features else seen.encode(twice)
            logits = seen.head(feature)
        except (RuntimeError, IndexError) as error:
            given = f"{tuple(x.shape)} and dtype {str(x.dtype).removeprefix('torch.')}"
            if not x.is_floating_point():
                given += " (integers are handed over as they are, as tokens: store measurements as floats)"
            raise ValueError(f"{name} does not take a sample of shape {given}: {error}") from error
    if feature.dim() != 2 or logits.dim() != 2:
        raise ValueError(
            f"{name} must give features (n, D) and logits (n, K), gave {tuple(feature.shape)} "
            f"and {tuple(logits.shape)} for two samples"
        )
    return feature.shape[1], logits.shape[1]


def check_labels(data: LabelledData, classes: int, *, all_labelled: bool = True) -> None:
    """Raise ValueError unless every label of a data set is one of the heads' classes."""
    labels = data.labels if all_labelled else data.labels[data.labels != UNLABELLED]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, the heads have {classes} classes; got {int(wrong[0])}"
        )
