"""Growth of the peak resident memory in one loss with its gradient, each in a process of its own; saved tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from ..ops.sinkhorn import sinkhorn_loss
from . import peers
from .harness import Row, peak_growth_mb, report_peak
from .sinkhorn import MAX_ITER, contenders, gaussian


def rows(quick: bool) -> Iterator[Row]:
    """N = 2048 for ours; the published code's call where it fits most machines."""
    for n in (1024,) if quick else (1024, 2048):
        matrix = n * n * 4 / 2**20
        names = ["ours", "POT"] if n <= 1024 and peers.available("ot") else ["ours"]
        peaks = {name: peak_growth_mb(__name__, [name, str(n)]) for name in names}
        found = {f"matrices of N x M, {name}": round(mb / matrix, 2) for name, mb in peaks.items()}
        found["kept for the backward, ours"] = round(kept_bytes(n) / 2**20 / matrix, 2)
        yield Row({"N": n, "M": n, "max_iter": MAX_ITER}, [], found)


def kept_bytes(n: int) -> int:
    """Bytes that autograd keeps between the forward and the backward of ours, the features apart."""
    x, y = gaussian(n, 1)
    x.requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sinkhorn_loss(x, y, max_iter=MAX_ITER)
    return sum(size for at, size in kept.items() if at not in (x.data_ptr(), y.data_ptr()))


def main() -> None:
    """Child process."""
    name, n = sys.argv[1], int(sys.argv[2])
    call = list(contenders(n, 0.1, True).values())[("ours", "POT").index(name)]
    call(*gaussian(64, 0))  # libraries and threads are there before the measurement
    call(*gaussian(256, 0))
    inputs = gaussian(n, 1)
    report_peak(lambda: call(*inputs))


if __name__ == "__main__":
    main()
