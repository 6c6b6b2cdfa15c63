"""What exactly was refused, and where it stands: looked for once a kernel has said no."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._native import _C


def spelled(value: float) -> str:
    """A number as messages name it: NaN, +inf, -inf, 0.5."""
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return "NaN"
    return f"{'+' if value > 0 else '-'}inf" if math.isinf(value) else f"{value:g}"


def first_not_finite(z: Tensor) -> str:
    """The first NaN or infinity of a tensor that has one, by name."""
    return spelled(z[~torch.isfinite(z)][0].item())


def first_bad(name: str, z: Tensor, bad: Tensor) -> str | None:
    """``NaN at cost[3, 1]``: the first element of z that ``bad`` (of z's shape) marks; None where it marks none."""
    places = bad.nonzero()
    if not len(places):
        return None
    index = places[0].tolist()
    return f"{spelled(z[tuple(index)].item())} at {name}{index}"


def _no_cost(z: Tensor) -> Tensor:
    return z.isnan() | (z == -torch.inf)


def _no_mass(z: Tensor) -> Tensor:
    return ~((z >= 0) & z.isfinite())


#: How a kernel's sentence begins -> the arguments that it is about, and what is wrong with an element of them.
_VALUES: dict[str, tuple[tuple[str, ...], Callable[[Tensor], Tensor]]] = {
    "class_cost must": (("class_cost",), _no_cost),  # before what its name ends in
    "cost must": (("cost",), _no_cost),
    "masses must be finite": (("a", "b"), _no_mass),
}


def explained(refused: str, **tensors: Tensor | None) -> str:
    """A kernel's sentence with what is there, and where, in the place of what may be there.

    Args:
        refused: "cost must be a number or +inf everywhere, got NaN or -inf".
        tensors: cost, class_cost, y_labels, a, b, as far as they are at hand, as the caller gave them.

    Returns:
        "cost must be a number or +inf everywhere, got NaN at cost[3, 1]"; the sentence itself where nothing is found.
    """
    given = {name: z.detach() for name, z in tensors.items() if z is not None and z.numel()}
    head, _, _ = refused.rpartition(", got ")
    for begin, (names, bad) in _VALUES.items():
        if begin in refused:
            found = (first_bad(name, given[name], bad(given[name])) for name in names if name in given)
            here = next((one for one in found if one is not None), None)
            if here is None:
                return refused
            what = "a negative one, " if here[0] == "-" and here[:4] != "-inf" else ""
            return f"{head}, got {what}{here}"
    if "y_labels must be columns" in refused and {"y_labels", "class_cost"} <= set(given):
        labels, classes = given["y_labels"], given["class_cost"].shape[-1]
        here = first_bad("y_labels", labels, (labels < 0) | (labels >= classes))
        return refused if here is None else f"{head}, got {here} for K = {classes}"
    if "must not all be 0" in refused:
        zero = next((name for name, z in given.items() if name in "ab" and (z.sum(-1) == 0).any()), None)
        return refused if zero is None else f"{head}, got an all-zero {zero}"
    if "needs a pair of finite cost" in refused and "cost" in given:
        return _without_a_pair(head, given) or refused
    if "must have equal sums" in refused:
        sums = [1.0 if name not in given else given[name].double().sum(-1) for name in "ab"]
        if not any(isinstance(one, Tensor) and one.dim() for one in sums):
            return f"{head}, got {float(sums[0]):.6g} and {float(sums[1]):.6g}"
    return refused


def _without_a_pair(head: str, given: dict[str, Tensor]) -> str | None:
    """The first row or column of the cost (..., N, M) that has mass and nowhere to send it."""
    cost = given["cost"]
    a = given.get("a", cost.new_ones(cost.shape[-2]))[..., :, None] > 0
    b = given.get("b", cost.new_ones(cost.shape[-1]))[..., None, :] > 0
    open_pairs = (cost < torch.inf) & a & b
    for what, axis, mass in (("row", -1, a), ("column", -2, b)):
        stuck = (mass.expand_as(cost).any(axis) & ~open_pairs.any(axis)).nonzero()
        if len(stuck):
            *problem, place = stuck[0].tolist()
            where = f" of problem {problem[0]}" if problem else ""
            return f"{head}, {what} {place}{where} has none"
    return None


#: Refusals of a GPU's kernels by the bits of ``n_iter``, in the order in which they are told: what comes first may
#: bring about the last.
BY_BIT: dict[int, str] = {
    _C.FLAGS[flag]: _C.REFUSALS[text]
    for flag, text in (
        ("bad_cost", "bad_cost_or_label"),
        ("bad_mass", "bad_mass"),
        ("no_mass", "no_mass"),
        ("sums", "sums"),
        ("overflow", "overflow"),
        ("forbidden", "forbidden"),
    )
}


def refusal(n_iter: Tensor) -> str | None:
    """What the kernels had against the input, or None. Reads ``n_iter`` from the device."""
    bits = -int(n_iter.min())
    return next((text for bit, text in BY_BIT.items() if bits > 0 and bits & bit), None)
