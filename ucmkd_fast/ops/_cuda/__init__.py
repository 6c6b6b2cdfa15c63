"""The door of CUDA tensors: nothing is read back, nothing waits; refused input gives NaN."""

from . import label
from ._device import fits_block
from .assign import assignments
from .costs import cost, cost_backward
from .losses import loss, loss_backward
from .panel_costs import cost_panels
from .panels import Sweeps
from .projection import project, project_backward
from .sinkhorn import saved_size, solve, solve_backward

KERNELS, HOST, BATCHED = True, False, True

__all__ = [
    "BATCHED",
    "HOST",
    "KERNELS",
    "Sweeps",
    "assignments",
    "cost",
    "cost_backward",
    "cost_panels",
    "fits_block",
    "label",
    "loss",
    "loss_backward",
    "project",
    "project_backward",
    "saved_size",
    "solve",
    "solve_backward",
]
