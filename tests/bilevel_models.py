"""Small students that stress the bi-level step: what they remember, draw, share and freeze."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ucmkd_fast.models import Classifier

INPUTS, HIDDEN, WIDTH, CLASSES = 5, 8, 6, 4


def mlp(*norms: nn.Module, last: nn.Module | None = None, head: nn.Module | None = None) -> Classifier:
    encoder = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN), *norms, nn.Tanh(), nn.Linear(HIDDEN, WIDTH), last or nn.Identity()
    )
    return Classifier(encoder, head or nn.Linear(WIDTH, CLASSES))


class Tied(Classifier):
    """Encoder and head share a weight; by one module's ownership, or only through a call."""

    def __init__(self, owned: bool):
        super().__init__(nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, CLASSES, bias=False))
        if owned:
            self.prototypes = self.head.weight

    def encode(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        return z + F.linear(z, self.head.weight).tanh() @ self.head.weight


class TwiceNormed(Classifier):
    """One BatchNorm that is applied twice in a pass."""

    def __init__(self, momentum: float | None):
        super().__init__(nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, CLASSES))
        self.norm = nn.BatchNorm1d(WIDTH, momentum=momentum)

    def encode(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(self.encoder(x)).tanh() + 0.3)


class Recomputed(Classifier):
    """The encoder runs again in the backward pass, BatchNorm included."""

    def __init__(self, momentum: float | None):
        super().__init__(
            nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.BatchNorm1d(WIDTH, momentum=momentum), nn.Tanh()),
            nn.Linear(WIDTH, CLASSES),
        )

    def encode(self, x: Tensor) -> Tensor:
        return checkpoint(self.encoder, x, use_reentrant=False)


class FunctionalDropout(Classifier):
    """Dropout without a module."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, CLASSES))

    def encode(self, x: Tensor) -> Tensor:
        return F.dropout(self.encoder(x), 0.4, self.training)


class Remembering(nn.Module):
    """Keeps an average of its own and uses it: a pass changes the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.average.lerp_(x.mean(0), 0.3)
        return x - self.average


class Replacing(Remembering):
    """The same, with a new tensor each time."""

    def forward(self, x: Tensor) -> Tensor:
        self.average = torch.lerp(self.average, x.detach().mean(0), 0.3)
        return x - self.average


class HalfUsed(Classifier):
    """A parameter and a norm that no pass reaches."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, CLASSES))
        self.unused = nn.Parameter(torch.ones(3))
        self.unused_norm = nn.BatchNorm1d(WIDTH)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x).tanh()


def frozen(part: str) -> Classifier:
    model = mlp(nn.BatchNorm1d(HIDDEN))
    getattr(model, part).requires_grad_(False)
    return model


def partly_frozen() -> Classifier:
    model = mlp(nn.BatchNorm1d(HIDDEN))
    model.encoder[0].weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    return model


def norm_in_eval() -> Classifier:
    model = mlp(nn.BatchNorm1d(HIDDEN))
    model.encoder[1].eval()
    return model


def instance_statistics() -> Classifier:
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    return mlp(nn.Unflatten(1, (2, HIDDEN // 2)), norm, nn.Flatten())


BATCH_NORM = "batch norm"

# name -> (builder, whether one encoder pass may serve LA and CE)
STUDENTS = {
    BATCH_NORM: (lambda: mlp(nn.BatchNorm1d(HIDDEN), last=nn.BatchNorm1d(WIDTH, momentum=0.3)), True),
    "batch norm, cumulative": (lambda: mlp(nn.BatchNorm1d(HIDDEN, momentum=None)), True),
    "batch norm, momentum 1 and 0": (
        lambda: mlp(nn.BatchNorm1d(HIDDEN, momentum=1.0), last=nn.BatchNorm1d(WIDTH, momentum=0.0)),
        True,
    ),
    "batch norm without statistics": (lambda: mlp(nn.BatchNorm1d(HIDDEN, track_running_stats=False)), True),
    "batch norm in eval": (norm_in_eval, True),
    "batch norm twice": (lambda: TwiceNormed(0.1), True),
    "batch norm twice, cumulative": (lambda: TwiceNormed(None), True),
    "recomputed": (lambda: Recomputed(0.1), True),
    "recomputed, cumulative": (lambda: Recomputed(None), True),
    "instance statistics": (instance_statistics, False),
    "layer norm": (lambda: mlp(nn.LayerNorm(HIDDEN)), True),
    "dropout": (lambda: mlp(nn.BatchNorm1d(HIDDEN), nn.Dropout(0.3)), False),
    "dropout, no module": (FunctionalDropout, False),
    "dropout in the head": (
        lambda: mlp(nn.BatchNorm1d(HIDDEN), head=nn.Sequential(nn.Dropout(0.3), nn.Linear(WIDTH, CLASSES))),
        True,
    ),
    "batch norm in the head": (
        lambda: mlp(head=nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES))),
        True,
    ),
    "own buffer": (lambda: mlp(nn.BatchNorm1d(HIDDEN), last=Remembering()), False),
    "own buffer, replaced": (lambda: mlp(nn.BatchNorm1d(HIDDEN), last=Replacing()), False),
    "tied": (lambda: Tied(owned=True), False),
    "tied by a call": (lambda: Tied(owned=False), False),
    "half used": (HalfUsed, True),
    "frozen encoder": (lambda: frozen("encoder"), True),
    "frozen head": (lambda: frozen("head"), True),
    "partly frozen": (partly_frozen, True),
}  # fmt: skip
