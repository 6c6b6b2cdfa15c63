"""Modalities that match less and less: disjoint pools of clips, noise, class marginals that differ.

The settings of the paper's Table 14, with the published code's numbers as presets. Imbalance drops samples,
so the class marginals of the data themselves change, on the two sides in opposite order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import check_keys
from ..ops.checks import choice
from .labelled import LabelledData

SIDES = ("audio", "image")


@dataclass(frozen=True)
class Mismatch:
    """How far apart two modalities of one data set are. Each part can be left out.

    Attributes:
        side: which modality this is, "audio" or "image": the two get different clips and classes.
        pool: the share of every class whose clips the audio side gets; the image side gets the others. None:
            both have all clips.
        noise: deviation of the Gaussian noise that is added to a sample, over the sample's own; 0: none.
        imbalance: the most frequent class has so many times the samples of the rarest, the others
            lie between on an exponential; the image side's order of classes is the audio side's turned round.
            1: as the data are.
        seed: of pools, order of classes, and noise.
    """

    side: str
    pool: float | None = None
    noise: float = 0.0
    imbalance: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        choice("the side of a mismatch", self.side, SIDES)
        if self.pool is not None and not 0 < self.pool < 1:
            raise ValueError(f"pool must be a share between 0 and 1, got {self.pool}")
        if not self.noise >= 0:
            raise ValueError(f"noise must be a number >= 0, got {self.noise}")
        if not self.imbalance >= 1:
            raise ValueError(f"imbalance must be a ratio >= 1, got {self.imbalance}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Mismatch:
        """From the attributes, and ``preset``: a name of `PRESETS` whose values others outweigh."""
        if not isinstance(values, Mapping):
            raise ValueError(f"a mismatch is a mapping such as {{preset: hard, side: audio}}, got {values!r}")
        check_keys(values, ["preset", *asdict(cls("audio"))], "key of a mismatch:")
        if "side" not in values:
            raise ValueError("a mismatch needs side, 'audio' or 'image'")
        own = dict(values)
        preset = own.pop("preset", None)
        if preset is None:
            return cls(**own)
        choice("the preset of a mismatch", preset, list(PRESETS))
        return replace(cls(own.pop("side"), **PRESETS[preset]), **own)


_LEVELS = {"mild": (0.7, 0.3, 5.0), "moderate": (0.5, 0.5, 10.0), "hard": (0.3, 0.8, 50.0)}

#: "mild", "moderate", "hard", and each one's parts alone: "mild-pool", "mild-noise", "mild-imbalance", ...
PRESETS: dict[str, dict[str, Any]] = {}
for _name, (_pool, _noise, _imbalance) in _LEVELS.items():
    _parts = {"pool": _pool, "noise": _noise, "imbalance": _imbalance}
    PRESETS[_name] = _parts
    PRESETS |= {f"{_name}-{part}": {part: value} for part, value in _parts.items()}


def apart(data: LabelledData, mismatch: Mismatch) -> LabelledData:
    """One side's samples under a mismatch.

    Both sides must list the same clips in the same order before: their pools are then disjoint.

    Raises:
        ValueError: a class of which a side would get no sample.
    """
    if mismatch.pool is not None:
        data = data.subset(_pool_rows(data, mismatch.pool, mismatch.side, mismatch.seed))
    if mismatch.imbalance > 1:
        data = data.subset(_imbalanced_rows(data, mismatch.imbalance, mismatch.side, mismatch.seed))
    return NoisyData(data, mismatch.noise, mismatch.seed) if mismatch.noise else data


class NoisyData(LabelledData):
    """A data set whose samples have Gaussian noise on them, the same on a sample whenever it is read.

    Args:
        data: the samples, floating.
        level: the noise's deviation over each sample's own.
        seed: with a sample's index it gives the noise.
    """

    def __init__(self, data: LabelledData, level: float, seed: int):
        self.data, self.level, self.seed = data, level, seed
        self.labels, self.classes, self.groups, self.ids = data.labels, data.classes, data.groups, data.ids
        self.holds_features, self.reads_files = data.holds_features, data.reads_files

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample x (...) with its noise, and its label."""
        x, y = self.data[index]
        return self._noisy(x[None], [int(index)])[0], y

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (n, ...) with their noise, and labels (n,)."""
        x, y = self.data.batch(indices)
        return self._noisy(x, indices.tolist()), y

    def drawn_batch(self, indices: Tensor, key: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same of samples to train on; the noise does not change with the key."""
        x, y = self.data.drawn_batch(indices, key)
        return self._noisy(x, indices.tolist()), y

    @property
    def bad(self) -> dict[int, str]:
        """Index -> why that sample was replaced; see `FileData`."""
        return getattr(self.data, "bad", {})

    def _noisy(self, x: Tensor, rows: list[int]) -> Tensor:
        noise = np.stack(
            [np.random.default_rng([self.seed, row]).standard_normal(x.shape[1:], np.float32) for row in rows]
        )
        deviation = x.flatten(1).std(1).view(-1, *[1] * (x.dim() - 1))
        return x + self.level * deviation * torch.from_numpy(noise).to(x.dtype)


def _pool_rows(data: LabelledData, share: float, side: str, seed: int) -> Tensor:
    """The rows of one side's pool: disjoint from the other's, the same share of every class."""
    random = np.random.default_rng(seed)
    kept = []
    for label, name in enumerate(data.classes):
        rows = torch.nonzero(data.labels == label).flatten()
        order = rows[torch.from_numpy(random.permutation(len(rows)))]
        cut = min(max(1, round(share * len(rows))), len(rows) - 1)
        if len(rows) < 2:
            raise ValueError(f"class {name!r} has {len(rows)} samples: disjoint pools need two or more")
        kept.append(order[:cut] if side == "audio" else order[cut:])
    return torch.cat(kept).sort().values


def _imbalanced_rows(data: LabelledData, ratio: float, side: str, seed: int) -> Tensor:
    """Rows whose class counts fall off exponentially from the first class of an order to the last.

    The counts are as large as the data allow: no class is asked for more than it has.
    """
    random = np.random.default_rng(seed)
    classes = len(data.classes)
    order = random.permutation(classes)
    if side == "image":
        order = order[::-1]
    wanted = np.empty(classes)
    wanted[order] = ratio ** -(np.arange(classes) / max(1, classes - 1))
    have = torch.bincount(data.labels[data.labels >= 0], minlength=classes).numpy()
    scale = float((have / wanted).min())  # the class that limits the others
    kept = []
    for label in range(classes):
        rows = torch.nonzero(data.labels == label).flatten()
        rows = rows[torch.from_numpy(random.permutation(len(rows)))]
        kept.append(rows[: max(1, round(scale * wanted[label]))])
    return torch.cat(kept).sort().values
