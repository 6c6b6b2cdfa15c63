"""Balanced assignments of samples to prototypes in the log domain, as obvious as possible (Caron et al. 2020, SwAV).

    Q_ij = exp(u_i + v_j + s_ij / T)        from u = 0, in each iteration first v, then u:

    v_j = log b_j - LSE_i(log a_i + u_i + s_ij / T)        prototypes have their shares
    u_i = -LSE_j(v_j + s_ij / T)                           samples sum to one

A prototype that no sample of weight may use, or of share 0, takes no part.
"""

from __future__ import annotations

import torch
from torch import Tensor


def assign(
    scores: Tensor,  # (n, K); -inf: a forbidden pair
    temperature: float,
    n_iter: int = 3,
    *,
    a: Tensor | None = None,  # (n,) weights of samples in the sums over columns
    b: Tensor | None = None,  # (K,) shares of prototypes
) -> Tensor:
    """Q (n, K), rows that sum to one."""
    n, k = scores.shape
    log_a = scores.new_zeros(n) if a is None else a.to(scores.dtype).log()
    log_b = scores.new_zeros(k) if b is None else b.to(scores.dtype).log()
    top = scores.amax(1)
    z, u = (scores - top[:, None]) / temperature, top / temperature
    for _ in range(n_iter):
        mass = torch.logsumexp((log_a + u)[:, None] + z, 0)
        v = torch.where(mass > -torch.inf, log_b - mass, -torch.inf)
        u = -torch.logsumexp(z + v, 1)
    return (u[:, None] + z + v).exp()
