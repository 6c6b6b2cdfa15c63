"""Splits and few-label selections: seeded, made from labels and groups alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..names import did_you_mean
from ..ops.checks import choice
from .labelled import LabelledData, TensorData

Data = TypeVar("Data", LabelledData, TensorData)


def split_stratified(data: Data, shares: Sequence[float], *, seed: int = 0) -> list[Data]:
    """Parts whose classes are shared out alike; every sample is in one part.

    Args:
        data: the data set.
        shares: each part's share of every class, > 0, with sum 1.
        seed: chooses who goes where.

    Raises:
        ValueError: shares that are not positive or do not sum to 1; a class with too few samples for
            every part to get one.
    """
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares must be positive and sum to 1, got {list(shares)}")
    cuts = np.cumsum(shares)[:-1]
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label, rows in _shuffled_classes(data, np.random.default_rng(seed)):
        bounds = torch.from_numpy(np.round(cuts * len(rows)).astype(np.int64))
        for part, chunk in zip(parts, torch.tensor_split(rows, bounds), strict=True):
            if not len(chunk):
                raise ValueError(
                    f"class {data.classes[label]!r} has {len(rows)} samples, too few for {list(shares)}"
                )
            part.append(chunk)
    return [data.subset(torch.cat(part).sort().values) for part in parts]


def split_by_group(
    data: Data,
    train: Sequence[str] | int,
    val: Sequence[str] | int,
    test: Sequence[str] | int | None = None,
    *,
    seed: int = 0,
) -> tuple[Data, Data, Data]:
    """Train, validation and test parts that share no group: no voice of one is heard in another.

    Args:
        data: a data set with ``groups``.
        train: the groups' names, or how many of them to draw.
        val: likewise.
        test: likewise; None: all that remain.
        seed: draws the groups that were asked for by number.

    Raises:
        ValueError: a data set without groups, an unknown group, one named twice, or too few.
    """
    if data.groups is None:
        raise ValueError("the data set must say who made each sample to be split so; its groups are None")
    names = sorted(set(data.groups))
    asked = {"train": train, "val": val, "test": test}
    named = [name for part in asked.values() if isinstance(part, Sequence) for name in _as_names(part)]
    unknown = sorted(set(named) - set(names))
    if unknown:
        hint = did_you_mean(unknown[0], names)
        raise ValueError(f"no sample is of {', '.join(unknown)}; the groups are {', '.join(names)}{hint}")
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} must be in one part only: train, val and test share no group")
    free = [name for name in np.random.default_rng(seed).permutation(names).tolist() if name not in named]
    chosen = {}
    for role, part in asked.items():
        if isinstance(part, Sequence):
            chosen[role] = _as_names(part)
        else:
            count = len(free) if part is None else part
            chosen[role], free = free[:count], free[count:]
            if count < 1 or len(chosen[role]) < count:
                raise ValueError(
                    f"{role} must be one or more of the {len(names)} groups that no other part has "
                    f"({', '.join(names)}), got {'none' if part is None else part}"
                )
    groups = np.array(data.groups)
    train_part, val_part, test_part = (
        data.subset(torch.from_numpy(np.flatnonzero(np.isin(groups, part)))) for part in chosen.values()
    )
    return train_part, val_part, test_part


def split_by_shares(
    data: Data, shares: Sequence[float], *, by: str | None = None, seed: int = 0
) -> list[Data]:
    """Train, validation and test parts of given sizes.

    Args:
        data: the data set.
        shares: the three parts' shares, with sum 1; by group also the numbers of groups, such as (3, 1, 2).
        by: "class": every class is shared out alike; "group": no group is in two parts;
            None: "group" where the data set knows its groups.
        seed: chooses who goes where.

    Raises:
        ValueError: shares that cannot be honoured; a split by group of data that have none.
    """
    by = by or ("class" if data.groups is None else "group")
    choice("split_by", by, ("class", "group"))
    if len(shares) != 3:
        raise ValueError(f"shares must be three, of train, val and test, got {list(shares)}")
    if by == "class":
        return split_stratified(data, shares, seed=seed)
    groups = len(set(data.groups or ()))
    if all(isinstance(share, int) for share in shares):
        train, val, test = (int(share) for share in shares)
    else:
        val, test = (max(1, round(share * groups)) for share in shares[1:])
        train = groups - val - test
    return list(split_by_group(data, train, val, test, seed=seed))


def few_labels(data: Data, per_class: int, *, seed: int = 0) -> tuple[Data, Data | None]:
    """``per_class`` labelled samples of every class, and the others, to be used without labels.

    Within a class the samples are spread over the groups as evenly as their numbers allow; which group
    is first in line rotates with the class, so that each gets its share also where
    ``per_class`` is below their number.

    Returns:
        The labelled part, and the rest; None where nothing is left.

    Raises:
        ValueError: per_class < 1; a class with fewer samples than that.
    """
    if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
        raise ValueError(f"per_class must be an integer >= 1, got {per_class!r}")
    groups = np.zeros(len(data), dtype=np.int64)
    if data.groups is not None:
        _, groups = np.unique(data.groups, return_inverse=True)
    count = int(groups.max()) + 1
    taken = []
    for label, rows in _shuffled_classes(data, np.random.default_rng(seed)):
        if len(rows) < per_class:
            raise ValueError(
                f"class {data.classes[label]!r} has {len(rows)} samples, fewer than per_class={per_class}"
            )
        own = groups[rows.numpy()]
        turn = np.empty(len(rows), dtype=np.int64)  # a sample's place in its group's queue
        for group in range(count):
            turn[own == group] = np.arange((own == group).sum())
        order = np.lexsort(((own - label) % count, turn))
        taken.append(rows[torch.from_numpy(order[:per_class])])
    chosen = torch.cat(taken).sort().values
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[chosen] = False
    return data.subset(chosen), data.subset(rest.nonzero().flatten()) if rest.any() else None


def balanced_rows(labels: Tensor, size: int, seed: int) -> Tensor:
    """Indices of about ``size`` labelled samples, of every class as many where it has them.

    Args:
        labels: (n,) int64; `UNLABELLED` samples are passed over.
        size: of all classes together, >= 1.
        seed: chooses them.
    """
    random = np.random.default_rng(seed)
    own = labels.numpy()
    shuffled = [random.permutation(np.flatnonzero(own == k)) for k in np.unique(own[own >= 0])]
    by_turns = sorted((turn, k, row) for k, rows in enumerate(shuffled) for turn, row in enumerate(rows))
    return torch.tensor(sorted(int(row) for *_, row in by_turns[:size]))


def _as_names(part: Sequence[str]) -> list[str]:
    return [part] if isinstance(part, str) else list(part)


def _shuffled_classes(data: LabelledData, random: np.random.Generator) -> list[tuple[int, Tensor]]:
    """Each class's label and its samples' indices in random order; ValueError for a class without any."""
    out = []
    for label, name in enumerate(data.classes):
        rows = torch.nonzero(data.labels == label).flatten()
        if not len(rows):
            raise ValueError(f"class {name!r} has no sample in this data set")
        out.append((label, rows[torch.from_numpy(random.permutation(len(rows)))]))
    return out
