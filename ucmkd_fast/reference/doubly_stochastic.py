"""The doubly stochastic projection in the log domain, as obvious as possible (DESIGN 2.9)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def doubly_stochastic(
    logits: Tensor,  # (..., n, m), -inf forbids an entry
    n_iter: int = 20,
    *,
    eps: float = 0.0,
    start: str = "exp",
    order: str = "columns-rows",
) -> Tensor:
    """exp(logits), or a softmax of the rows to which eps is added, columns and rows normalised in turn (..., n, m).

    Rows sum to 1 and columns to n / m, but for eps, which is added to each sum. A softmax that comes before rows takes
    the place of their first normalisation.
    """
    n, m = logits.shape[-2:]
    log_p = logits
    if start == "softmax":
        log_p = logits.log_softmax(-1)
        if eps > 0:
            log_p = torch.where(logits == -math.inf, -math.inf, (log_p.exp() + eps).log())
    columns, rows = (-2, n / m), (-1, 1.0)
    steps = [columns, rows] if order == "columns-rows" else [rows, columns]
    for k, (dim, target) in enumerate(steps * n_iter):
        if k == 0 and start == "softmax" and dim == -1:
            continue
        log_sum = log_p.logsumexp(dim, keepdim=True)
        if eps > 0:
            log_sum = torch.logaddexp(log_sum, torch.full_like(log_sum, math.log(eps)))
        log_p = log_p - log_sum + math.log(target)
    return log_p.exp()
