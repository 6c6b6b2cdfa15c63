"""What several processes agree on: the first weights, the gradients, the running statistics.

The student is not wrapped in DistributedDataParallel: its hooks do not see
gradients that are written by hand or made through ``functional_call``, and the
ranks drift apart without an error. So the gradients are averaged here, by the
method, after each inner step and after the outer one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn


def make_accelerator(mixed_precision: str | None = None, **options: object) -> Accelerator:
    """An `Accelerator` for this process; what the loop cannot honour is refused.

    ``mixed_precision=None`` takes what the process has already, or was launched with.

    Raises:
        ValueError: fp16, gradient accumulation, sharded or wrapped training, or a
            precision other than the one that this process began with.
    """
    running = AcceleratorState._shared_state.get("_mixed_precision")
    if None not in (running, mixed_precision) and running != mixed_precision:
        raise ValueError(
            f"mixed_precision={mixed_precision!r} was asked for, but accelerate runs this process with "
            f"{running!r} already, and a process has one: use another process, or mixed_precision=None"
        )
    # Without cpu=True accelerate takes the ranks of a torchrun on a machine without
    # accelerators for so many separate runs.
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), mixed_precision=running or mixed_precision, **options
    )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"mixed precision must be 'no' or 'bf16', accelerate is set to {accelerator.mixed_precision!r}: "
            "gradient scaling does not reach the inner steps of a bi-level method"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "gradient accumulation must be 1 step (each batch is a bi-level step of its own), got "
            f"{accelerator.gradient_accumulation_steps} from accelerate's settings; use a larger batch_size"
        )
    if accelerator.distributed_type in _WRAPPING:
        raise ValueError(
            "expected one process, or plain data parallelism over several; accelerate is "
            f"set to {accelerator.distributed_type.value}, which wraps the model and hides its gradients"
        )
    return accelerator


_WRAPPING = {
    DistributedType.DEEPSPEED,
    DistributedType.FSDP,
    DistributedType.MEGATRON_LM,
    DistributedType.XLA,
}


class World(NamedTuple):
    """This process among all."""

    rank: int
    size: int


def world() -> World:
    """The rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


def on_first_rank(action: Callable[[], object], device: torch.device) -> None:
    """Run ``action`` on rank 0 while the others wait; where it fails there, no rank goes on.

    Raises:
        OSError: on the other ranks, where the action failed; rank 0 raises what it raised.
    """
    rank, size = world()
    error: Exception | None = None
    if rank == 0:
        try:
            action()
        except Exception as caught:
            error = caught
    if size > 1:
        failed = torch.tensor(float(error is not None), device=device)
        dist.broadcast(failed, src=0)
        if failed and rank > 0:
            raise OSError("rank 0 could not write the run's files, see its message; this rank stops with it")
    if error is not None:
        raise error


def gather(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of equal shape on every rank, stacked: (ranks, ...), on the CPU."""
    rows = [torch.empty_like(tensor, device=device) for _ in range(world().size)]
    if len(rows) == 1:
        return tensor[None].cpu()
    dist.all_gather(rows, tensor.to(device))
    return torch.stack(rows).cpu()


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; backwards, this rank's rows of the gradient times the number of ranks.

    Every rank computes the same loss of all rows, so its gradient is at hand without
    communication; the factor undoes the average over ranks that comes later.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(world().size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rank, size = world()
        return gradient[rank * ctx.count : (rank + 1) * ctx.count] * size


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (n, ...) of this rank, equally many on each, to the rows of all ranks (ranks * n, ...)."""
    return _GatherRows.apply(rows)


def broadcast_model(model: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, in place."""
    _exchange([*model.parameters(), *model.buffers()], lambda flat: dist.broadcast(flat, src=0))


def average_buffers(model: nn.Module) -> None:
    """Average floating buffers over ranks, in place.

    Running statistics are linear in the batches' statistics, so an average once,
    before they are read, equals an average after each step.
    """
    average([buffer for buffer in model.buffers() if buffer.is_floating_point()])


def average(tensors: Sequence[Tensor]) -> None:
    """Average tensors over ranks, in place: one all-reduce per dtype."""
    _exchange(tensors, lambda flat: (dist.all_reduce(flat), flat.div_(dist.get_world_size())))


def total(tensors: Sequence[Tensor]) -> None:
    """Sum tensors over ranks, in place."""
    _exchange(tensors, dist.all_reduce)


@torch.no_grad()
def _exchange(tensors: Iterable[Tensor], communicate: Callable[[Tensor], object]) -> None:
    """Flatten the tensors of each dtype, communicate the flat one in place, write it back."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    for group in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        communicate(flat)
        parts = flat.split([tensor.numel() for tensor in group])
        torch._foreach_copy_(group, [part.view_as(tensor) for part, tensor in zip(parts, group, strict=True)])
