"""The metrics that costs are made by, whatever the device: csrc/cost/metrics.h has their names and formulas.

x^ = x / |x|; a zero row stays zero, and one with |x|^2 below the dtype's normal numbers counts as zero. Gradients are
0 where a distance is 0.

``l2`` and ``sqeuclidean`` centre both sets by the mean of y before the products: far from the origin |x|^2 + |y|^2 -
2 <x, y> would lose the distance. Pairs that are still near are measured, and differentiated, by their differences.
"""

from __future__ import annotations

import torch

from .._native import _C

METRICS = tuple(_C.METRICS)
#: Metrics whose features are centred.
CENTRED = _C.CENTRED
#: Metrics by |x|^2 + |y|^2 - 2 <x, y>: their gradient divides by the distance.
BY_DIFFERENCE = _C.BY_DIFFERENCE
#: Metrics of normalised features: costs from 0 to 2, made from products of about 1.
NORMALISED = _C.NORMALISED
#: Sums over the features, without inner products.
SUMMED = _C.SUMMED
#: Features times s > 0 lie s^degree times as far apart.
DEGREES = _C.DEGREES


def dtype_of_cost(dtype: torch.dtype) -> torch.dtype:
    """In which costs of such features are computed: half precision in float32."""
    return torch.promote_types(dtype, torch.float32)
