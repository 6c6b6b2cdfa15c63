"""Two small networks of different modalities that offer feature maps: images teach series."""

from __future__ import annotations

import torch
from torch import nn

from ucmkd_fast.models import MappedClassifier

CLASSES = 4


def series_student(width: int = 6, dropout: float = 0.0) -> MappedClassifier:
    """Series (n, 1, 12); maps (n, 5, 12) and (n, 7, 6)."""
    encoder = nn.Sequential(
        nn.Sequential(nn.Conv1d(1, 5, 3, padding=1), nn.BatchNorm1d(5), nn.ReLU()),
        nn.Sequential(nn.Conv1d(5, 7, 3, stride=2, padding=1), nn.BatchNorm1d(7), nn.ReLU()),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(42, width),
    )
    return MappedClassifier(encoder, nn.Linear(width, CLASSES), ["0", "1"])


def image_teacher(width: int = 8) -> MappedClassifier:
    """Images (n, 1, 6, 6); maps (n, 4, 6, 6) and (n, 6, 3, 3)."""
    encoder = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(54, width),
    )
    return MappedClassifier(encoder, nn.Linear(width, CLASSES), ["0", "1"])


def samples(n: int, *shape: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples (n, *shape) around one centre a class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    centres = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(len(shape)))
    return 2 * centres[y] + torch.randn(n, *shape, generator=generator), y
