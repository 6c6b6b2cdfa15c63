"""Where a run stands between two epochs, and its way into a checkpoint and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..models.weights import load_state, state_of
from . import randomness
from .checkpoint import snapshot
from .distributed import gather, world
from .schedule import load_optimizer, optimizer_state


@dataclass
class Standing:
    """Epochs are counted from 1; ``epoch`` is the number of those that are done."""

    epoch: int = 0
    step: int = 0  # outer steps done
    seconds: float = 0.0  # in epochs, over all sessions
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_accuracy: float | None = None
    best_weights: dict[str, Tensor] | None = None  # on the CPU


def capture(
    standing: Standing,
    models: Mapping[str, nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    device: torch.device,
) -> dict[str, Any]:
    """Everything that the rest of the run depends on; every rank must call it.

    ``models`` are those that learn, "student" among them.
    """
    done = {f.name: getattr(standing, f.name) for f in fields(standing)}
    if standing.best_epoch == standing.epoch:
        done["best_weights"] = None  # they are the student's
    return {
        "standing": done,
        **{name: state_of(model) for name, model in models.items()},
        "optimizers": [optimizer_state(optimizer) for optimizer in optimizers],
        "random": {name: gather(state, device) for name, state in randomness.capture().items()},
    }


def restore(
    saved: dict[str, Any],
    models: Mapping[str, nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
) -> Standing:
    """Put models, optimisers and random generators where `capture` found them.

    Raises:
        ValueError: the checkpoint is of other models or another method.
    """
    try:
        for name, model in models.items():
            load_state(model, saved[name])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            load_optimizer(optimizer, state)
        standing = Standing(**saved["standing"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"the checkpoint is of another student or method: {error}") from error
    if standing.best_epoch == standing.epoch:
        standing.best_weights = snapshot(state_of(models["student"]))
    rank, size = world()
    if len(saved["random"]["torch"]) == size:
        randomness.restore({name: states[rank] for name, states in saved["random"].items()})
    else:
        warnings.warn(
            f"the checkpoint is of {len(saved['random']['torch'])} processes and goes on with {size}: "
            "dropout draws anew, so the result is not bit for bit that of an uninterrupted run",
            stacklevel=2,
        )
    return standing
