"""A tiny unpaired problem for the tests of the loop: two modalities of four classes, two small networks."""

from __future__ import annotations

import torch
from torch import nn

from ucmkd_fast.models import Classifier

CLASSES, WIDTH = 4, 8


def blobs(samples: int, inputs: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples around one centre a class; the centres depend on the modality (its width) alone."""
    centres = 2 * torch.randn(CLASSES, inputs, generator=torch.Generator().manual_seed(inputs))
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % CLASSES
    return centres[y] + noise * torch.randn(samples, inputs, generator=generator), y


def network(
    inputs: int,
    seed: int,
    *,
    width: int = WIDTH,
    classes: int = CLASSES,
    dropout: float = 0.0,
    norm: bool = False,
) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(inputs, 12), nn.BatchNorm1d(12) if norm else nn.Identity(), nn.ReLU()]
        encoder = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(12, width))
        return Classifier(encoder, nn.Linear(width, classes))


def student(**options) -> Classifier:
    return network(6, seed=1, **options)


def teacher(**options) -> Classifier:
    return network(9, seed=2, **options)


STUDENT_TRAIN, STUDENT_VAL = blobs(64, 6, seed=3), blobs(20, 6, seed=4)
TEACHER_TRAIN = blobs(48, 9, seed=5)
STUDENT_UNLABELLED = blobs(40, 6, seed=6)[0]


def unlabelled_for(distiller) -> dict[str, torch.Tensor]:
    """The argument of `fit` that only some methods take."""
    return {"student_unlabelled": STUDENT_UNLABELLED} if distiller.method.uses_unlabelled else {}


def weights(model: nn.Module) -> torch.Tensor:
    """All parameters and floating buffers in one vector."""
    tensors = [t.detach().flatten() for t in model.state_dict().values() if t.is_floating_point()]
    return torch.cat(tensors)
