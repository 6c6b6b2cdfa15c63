"""Kullback-Leibler divergences between class probabilities, sample by sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(logits: Tensor, target: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(logits)) of each row of (n, K): (n,), in nats; the target is a constant."""
    return kl_of_logs(F.log_softmax(logits, -1), F.log_softmax(target.detach(), -1))


def kl_without(logits: Tensor, target: Tensor, left_out: Tensor) -> Tensor:
    """The same over the classes that are not ``left_out`` (n, K) bool; 0 for a row that has none."""
    without = (z.masked_fill(left_out, torch.finfo(z.dtype).min / 2) for z in (logits, target))
    return kl(*without)  # the filling is finite: -inf would give 0 * inf


def kl_of_logs(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) of each row, from logarithms (n, K): (n,)."""
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)


def one_against_rest(logits: Tensor, label: Tensor) -> Tensor:
    """Logarithms (n, 2) of the probability of a class (n,), and of all others together."""
    log_p = F.log_softmax(logits, -1)
    own = class_mask(label, logits.shape[1])
    rest = log_p.masked_fill(own, torch.finfo(log_p.dtype).min).logsumexp(1)
    return torch.stack([log_p.gather(1, label[:, None])[:, 0], rest], 1)


def class_mask(label: Tensor, classes: int) -> Tensor:
    """A mask (n, K), True at the label; ``F.one_hot`` reads the labels on the host."""
    return label[:, None] == torch.arange(classes, device=label.device)
