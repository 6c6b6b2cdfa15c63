"""The door of CPU tensors: the kernels of csrc that are compiled for its instruction sets."""

from .cost import cost, cost_backward, matrix
from .label import *  # noqa: F403
from .loss import loss, loss_backward
from .sinkhorn import saved_size, solve, solve_backward

KERNELS = True
HOST = True
BATCHED = False
