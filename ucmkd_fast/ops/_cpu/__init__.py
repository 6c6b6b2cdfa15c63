"""The door of CPU tensors: the kernels of csrc, compiled for each of their instruction sets."""

from . import label
from .assign import assignments
from .costs import cost, cost_backward, matrix
from .lists import matrices, solve_list, solve_list_backward, sums
from .losses import loss, loss_backward
from .panels import Sweeps, cost_panels
from .projection import project, project_backward
from .sinkhorn import saved_size, solve, solve_backward

KERNELS, HOST, BATCHED = True, True, False

__all__ = [
    "BATCHED",
    "HOST",
    "KERNELS",
    "Sweeps",
    "assignments",
    "cost",
    "cost_backward",
    "cost_panels",
    "label",
    "loss",
    "loss_backward",
    "matrices",
    "matrix",
    "project",
    "project_backward",
    "saved_size",
    "solve",
    "solve_backward",
    "solve_list",
    "solve_list_backward",
    "sums",
]
