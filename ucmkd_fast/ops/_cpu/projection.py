"""The doubly stochastic projection on a CPU: the backward runs the iterations again and keeps their scalings."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import _C
from .. import _pieces
from .._addresses import address
from .._projection import ProjectionOptions, refuse


def project(logits: Tensor, options: ProjectionOptions) -> Tensor:
    """The result (..., n, m), in the dtype of the logits."""
    return _run(logits, None, options)


def project_backward(logits: Tensor, upstream: Tensor, options: ProjectionOptions) -> Tensor:
    """The gradient of the logits (..., n, m), in their dtype."""
    return _run(logits, upstream, options)


def _run(logits: Tensor, upstream: Tensor | None, options: ProjectionOptions) -> Tensor:
    n, m = logits.shape[-2:]
    wide = torch.float64 if logits.dtype is torch.float64 else torch.float32
    read = _pieces.converted(logits, wide)
    given = None if upstream is None else _pieces.converted(upstream, wide)
    out = read.new_empty(read.shape)
    bad = _C.doubly_stochastic(
        f64=wide is torch.float64, batch=read.numel() // (n * m), n=n, m=m, logits=read.data_ptr(),
        upstream=address(given), n_iter=options.n_iter, eps=options.eps, softmax=options.start == "softmax",
        rows_first=options.order == "rows-columns", out=out.data_ptr(),
    )  # fmt: skip
    if bad >= 0:
        refuse(logits)
    return _pieces.converted(out, logits.dtype)
