"""Which devices have kernels, and the warning for those that have none."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _solve_cuda
from ._call_site import call_site, warn


def has_kernels(tensor: Tensor) -> bool:
    """Whether kernels of this build take the tensor; otherwise the reference runs on it."""
    return tensor.is_cpu or _solve_cuda.runs_on(tensor)


def warn_without_kernels(device: torch.device) -> None:
    """Warn that the reference runs."""
    if torch.compiler.is_compiling():
        return
    text = (
        f"this build of ucmkd_fast has no kernels for {device.type} tensors: the torch reference runs there, much "
        "slower (install with nvcc at hand, or UCMKD_CUDA=ON, to build them)"
    )
    warn(text, UserWarning, call_site(), "device")
