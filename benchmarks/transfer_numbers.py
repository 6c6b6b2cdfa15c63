"""Numbers of two digits: a hundred classes with parts in common, each sample made of two of one digit each."""

from __future__ import annotations

import torch
from torch import nn

from ucmkd_fast.data import FeatureBank, TensorData
from ucmkd_fast.models import Classifier

NUMBERS = [f"{tens}{units}" for tens in range(10) for units in range(10)]


def numbers(data: TensorData, each: int, seed: int) -> TensorData:
    """``each`` samples of every number: two samples (..., W) of digits, drawn at random, side by side (..., 2 W)."""
    random = torch.Generator().manual_seed(seed)
    rows = [(data.labels == digit).nonzero()[:, 0] for digit in range(10)]
    labels = torch.arange(100).repeat_interleave(each)

    def drawn(digits: torch.Tensor) -> torch.Tensor:
        at = [rows[k][torch.randint(len(rows[k]), (), generator=random)] for k in digits.tolist()]
        return data.x[torch.stack(at)]

    return TensorData(torch.cat([drawn(labels // 10), drawn(labels % 10)], -1), labels, NUMBERS)


def renamed_digits(renamed: torch.Tensor) -> torch.Tensor:
    """The permutation (100,) of numbers that a permutation (10,) of digits makes: parts stay in common."""
    number = torch.arange(100)
    return 10 * renamed[number // 10] + renamed[number % 10]


def teacher_of_names(width: int, scale: float = 8.0) -> tuple[Classifier, FeatureBank]:
    """Knows of a number only how it is written: its logits are ``scale`` times the digits in common."""
    number = torch.arange(100)
    written = torch.zeros(100, width)
    written[number, number // 10] = 1
    written[number, 10 + number % 10] = 1
    head = nn.Linear(width, 100, bias=False)
    head.weight.data = scale * written
    return Classifier(nn.Identity(), head.requires_grad_(False)).eval(), FeatureBank(written, number, NUMBERS)
