"""Which of a part's samples are used: a mismatch of the modalities, less data, fewer labels.

Every draw is a function of its seed, of the labels and of the groups alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .labelled import LabelledData
from .mismatch import Mismatch, apart
from .splits import few_labels

#: Keys of a data set's description that choose among its samples.
SELECTION = ("mismatch", "keep", "labels_per_class", "draw_seed")


def select(
    data: LabelledData,
    split: str | None,
    *,
    mismatch: Mapping[str, Any] | None = None,
    keep: float | None = None,
    labels_per_class: int | None = None,
    draw_seed: int = 0,
) -> LabelledData:
    """The chosen samples of one part of a data set.

    Args:
        data: the part.
        split: its name, for messages.
        mismatch: see `Mismatch.from_dict`: ``{preset: hard, side: audio}``.
        keep: then the share of every class that stays, in (0, 1]: the scarcity of the paper's Tables 3-5.
        labels_per_class: then so many samples of every class.
        draw_seed: chooses who stays.

    Raises:
        ValueError: a share out of range, a class with too few samples, a choice among test samples.
    """
    if split in ("val", "test") and not (mismatch is keep is labels_per_class is None):
        raise ValueError(
            f"mismatch, keep and labels_per_class choose among training samples, got split {split!r}: figures "
            "of other test samples cannot be compared"
        )
    if mismatch is not None:
        data = apart(data, Mismatch.from_dict(mismatch))
    if keep is not None:
        data = keep_share(data, keep, seed=draw_seed)
    if labels_per_class is not None:
        data = few_labels(data, labels_per_class, seed=draw_seed)[0]
    return data


def keep_share(data: LabelledData, share: Any, *, seed: int = 0) -> LabelledData:
    """The same share of every class, rounded, at least one sample; in the order of the data.

    A smaller share's samples are among those of a larger one with the same seed.

    Raises:
        ValueError: ``share`` is not in (0, 1].
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"keep must be a share in (0, 1], got {share!r}")
    random = np.random.default_rng(seed)
    kept = []
    for label in range(len(data.classes)):
        rows = torch.nonzero(data.labels == label).flatten()
        order = torch.from_numpy(random.permutation(len(rows)))
        kept.append(rows[order[: max(1, round(share * len(rows)))]])
    return data.subset(torch.cat(kept).sort().values)
