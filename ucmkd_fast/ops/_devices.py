"""Which code runs for a tensor: its device's door. Nothing else in the ops asks what device a tensor is on.

A door is a package that offers what `Door` says, on the records of `_problem`. A third device would be a third one.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from . import _cpu, _cuda, _reference
from ._call_site import call_site, warn
from ._cuda import _device
from ._problem import Gradients, Kept, Needs, Options, Problem, Solution, Upstream
from ._projection import ProjectionOptions


class Door(Protocol):
    """What the ops ask of a device."""

    KERNELS: bool  # it has some; else everything is differentiable by torch
    HOST: bool  # values can be read without waiting for a device
    BATCHED: bool  # costs (B, N, M) and labels of batches are one call

    def cost(self, x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
        """The cost (B?, N, M), and the scales of the features, flat."""

    def cost_backward(
        self, x: Tensor, y: Tensor, scale: Tensor, matrix: Tensor, grad_cost: Tensor, metric: str
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and y, in the cost's dtype."""

    def solve(self, p: Problem, options: Options, save: bool) -> tuple[Solution, Tensor]:
        """Of a given cost; and what the backward needs, where ``save``."""

    def solve_backward(self, p: Problem, kept: Kept, up: Upstream, options: Options) -> Gradients:
        """Of the cost and of the masses that are given."""

    def saved_size(self, shape: torch.Size, options: Options, history: bool) -> int:
        """Elements that `solve` keeps for a cost of this shape (B?, N, M); of symbolic sizes as well."""

    def loss(self, p: Problem, options: Options, needs: Needs, told: Any) -> tuple[Tensor, Kept]:
        """The loss () between features; ``told``, a `Convergence` or None, is filled in."""

    def project(self, logits: Tensor, options: ProjectionOptions) -> Tensor:
        """The doubly stochastic projection (..., n, m)."""

    def project_backward(self, logits: Tensor, upstream: Tensor, options: ProjectionOptions) -> Tensor:
        """The gradient of its logits."""

    def loss_backward(self, p: Problem, kept: Kept, up: Tensor, options: Options, needs: Needs) -> Gradients:
        """Of features, masses and W."""


def door(tensor: Tensor) -> Any:
    """The `Door` that this tensor goes through."""
    if _device.runs_on(tensor):
        return _cuda
    return _cpu if tensor.is_cpu else _reference


def warn_without_kernels(device: torch.device) -> None:
    """Warn that the reference runs."""
    if torch.compiler.is_compiling():
        return
    text = (
        f"this build of ucmkd_fast has no kernels for {device.type} tensors: the torch reference runs there, much "
        "slower (install with nvcc at hand, or UCMKD_CUDA=ON, to build them)"
    )
    warn(text, UserWarning, call_site(), "device")


def require_kernels(x: Tensor) -> None:
    """Raise NotImplementedError where no kernels run on x: only they make costs panel by panel."""
    if not door(x).KERNELS:
        raise NotImplementedError(
            "costs made panel by panel (memory_budget) or spread over processes (group) need kernels for the tensors' "
            f"device, this build has none for {x.device.type}: raise memory_budget, or move the features to the CPU"
        )


def dtype_of_sums(device: torch.device) -> torch.dtype:
    """Double, which not every device has."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32
