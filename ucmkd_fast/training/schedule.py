"""The outer optimiser and its learning rate: a function of the epoch alone, so nothing of it needs saving."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..config import TrainConfig


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The outer learning rate in an epoch, counted from 0.

    Linear from ``min_lr`` to ``lr`` over ``warmup_epochs``, then a cosine from
    ``lr`` towards ``min_lr`` over the epochs that are left, constant within an
    epoch, as the published code steps it.
    """
    span = config.lr - config.min_lr
    if epoch < config.warmup_epochs:
        return config.min_lr + span * epoch / config.warmup_epochs
    progress = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    return config.min_lr + span * (1 + math.cos(math.pi * progress)) / 2


def build_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW(0.9, 0.999), at the learning rate of epoch 0."""
    lr, weight_decay = learning_rate(config, 0), config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay)
    return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state dict with string keys, as JSON has them."""
    state = optimizer.state_dict()
    return {
        "state": {str(key): value for key, value in state["state"].items()},
        "param_groups": state["param_groups"],
    }


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state dict that went through JSON, where keys are strings."""
    states = {int(key): value for key, value in state["state"].items()}
    optimizer.load_state_dict({"state": states, "param_groups": state["param_groups"]})
