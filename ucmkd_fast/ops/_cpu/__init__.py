"""The door of CPU tensors: the kernels of csrc that are compiled for its instruction sets."""

from .cost import cost, cost_backward, matrix
from .loss import loss, loss_backward
from .ragged import matrices, solve_list, solve_list_backward, sums
from .sinkhorn import saved_size, solve, solve_backward

KERNELS = True
HOST = True
BATCHED = False
