"""Small encoders for spectrograms, small images and features; width D = 64 unless asked otherwise.

Their features come from a linear layer, without an activation: two encoders of different
modalities can then be aligned in all directions. Weights are drawn from torch's generator:
``torch.manual_seed`` makes them the same.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.checks import count_at_least_one
from .contract import Classifier


def digit_cnn(classes: int = 10, width: int = 64) -> Classifier:
    """Images (n, 1, 8, 8) -> features (n, width): two convolutions and a linear layer."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, count_at_least_one("width", width)),
    )
    return Classifier(encoder, _head(width, classes))


def speech_cnn(classes: int = 10, width: int = 64, mels: int = 40) -> Classifier:
    """Spectrograms (n, 1, mels, frames) -> features (n, width); frames >= 9.

    Convolutions over time with the mel bands as channels, averaged over the first, middle and last
    third of the time: where a sound is in a word matters, exactly when does not.
    """
    encoder = nn.Sequential(
        _DropChannel(),
        nn.Conv1d(count_at_least_one("mels", mels), 64, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Conv1d(64, 64, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(3),
        nn.Flatten(),
        nn.Linear(3 * 64, count_at_least_one("width", width)),
    )
    return Classifier(encoder, _head(width, classes))


def mlp(inputs: int, classes: int, width: int = 64, hidden: tuple[int, ...] = (256,)) -> Classifier:
    """Feature vectors (n, inputs) -> features (n, width), through hidden layers with ReLU."""
    sizes = [count_at_least_one("inputs", inputs), *(count_at_least_one("hidden", size) for size in hidden)]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    layers.append(nn.Linear(sizes[-1], count_at_least_one("width", width)))
    return Classifier(nn.Sequential(*layers), _head(width, classes))


class _DropChannel(nn.Module):
    """(n, 1, mels, frames) -> (n, mels, frames)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1)


def _head(width: int, classes: int) -> nn.Linear:
    return nn.Linear(width, count_at_least_one("classes", classes))
