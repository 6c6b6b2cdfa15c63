"""One encoder pass that stands for several with the same weights on the same batch.

Exact where a repeated pass would give the same features and differ only in what
BatchNorm remembers: each further pass applies the same affine map to a running
statistic once more. With r0, r its values before the first pass and now, t the
value of ``num_batches_tracked`` before, Q its growth until now, q its growth in
one pass and E = (number of further passes) q,

    r  <-  r + c (r - r0)
    momentum m:          c = (1 - (1 - m)^E) (1 - m)^Q / (1 - (1 - m)^Q)
    cumulative average:  c = E t / (Q (t + Q + E))

For Q = q = 1 the first is (1 - m)^k r0 + (1 - (1 - m)^k) stat after k passes in all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_KNOWN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)  # a subclass may remember otherwise


class SharedPass:
    """Watches one pass through a student's encoder.

    In order: `start`, the pass, `repeatable`, the backward pass, `repeat` (BatchNorm's
    backward pass must find the statistics that its forward pass left).
    """

    def __init__(self, student: Any):
        inside_head = set(student.head.modules())
        encoder = [module for module in student.modules() if module not in inside_head]
        self._norms: list[Any] = [m for m in encoder if _is_plain_batch_norm(m)]
        self._buffer_owners = [m for m in encoder if m._buffers and m not in set(self._norms)]
        self._devices = {p.device for p in student.parameters()}
        self._head_parameters = set(student.head.parameters())
        self._tied: bool | None = None  # known after the first pass

    def start(self) -> None:
        """Remember what the pass may change."""
        self._active = [norm for norm in self._norms if norm.training]
        self._before = [statistic.clone() for statistic in self._statistics()]
        self._start_count = [
            n.num_batches_tracked.clone() if n.momentum is None else None for n in self._active
        ]
        self._start_version = self._versions()
        self._other_buffers = self._buffer_state()
        self._random = _random_state(self._devices)

    def repeatable(self, feature: Tensor) -> bool:
        """Whether the pass that made ``feature`` would give it again after the head has moved.

        It must have drawn no random number of torch's, changed no buffer but BatchNorm's,
        and used no weight of the head's.
        """
        if self._tied is None:
            self._tied = _depends_on(feature, self._head_parameters)
        # num_batches_tracked.add_(1) shows in the version, which the host knows without waiting.
        self._per_pass = [after - before for before, after in self._pairs()]
        random = _random_state(self._devices)
        return (
            not self._tied
            and len(self._random) > 0
            and all(torch.equal(a, b) for a, b in zip(self._random, random, strict=True))
            and self._other_buffers == self._buffer_state()
        )

    @torch.no_grad()
    def repeat(self, times: int) -> None:
        """Leave BatchNorm as if the pass had run ``times`` more times."""
        if not self._active or times == 0:
            return
        extra = [times * q for q in self._per_pass]
        grown = [after - before for before, after in self._pairs()]
        statistics = self._statistics()
        change = torch._foreach_sub(statistics, self._before)
        for i, norm in enumerate(self._active):
            factor = _factor(norm.momentum, self._start_count[i], grown[i], extra[i])
            change[2 * i].mul_(factor)
            change[2 * i + 1].mul_(factor)
            norm.num_batches_tracked.add_(extra[i])
        torch._foreach_add_(statistics, change)

    def _statistics(self) -> list[Tensor]:
        return [s for norm in self._active for s in (norm.running_mean, norm.running_var)]

    def _versions(self) -> list[int]:
        return [norm.num_batches_tracked._version for norm in self._active]

    def _pairs(self) -> zip[tuple[int, int]]:
        return zip(self._start_version, self._versions(), strict=True)

    def _buffer_state(self) -> list[tuple[int, int]]:
        """Identity and version of every buffer outside BatchNorm: a change of any shows."""
        buffers = [b for m in self._buffer_owners for b in m._buffers.values() if b is not None]
        return [(id(b), b._version) for b in buffers]


def _is_plain_batch_norm(module: nn.Module) -> bool:
    """Whether the module keeps running statistics by the rules above."""
    return (
        isinstance(module, _BatchNorm)
        and type(module).forward in _KNOWN_FORWARDS
        and module.running_mean is not None
        and module.num_batches_tracked is not None
    )


def _depends_on(feature: Tensor, parameters: set[Tensor]) -> bool:
    """Whether the graph of ``feature`` ends in one of the parameters."""
    waiting, seen = [feature.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) in parameters:  # an AccumulateGrad node
            return True
        waiting += [before for before, _ in node.next_functions]
    return False


def _factor(momentum: float | None, start: Tensor | None, grown: int, extra: int) -> Tensor | float:
    """The c above; 0 where the pass left the statistics alone."""
    if grown == 0 or momentum == 0:
        return 0.0
    if momentum is None:
        assert start is not None
        return extra * start / (grown * (start + (grown + extra)))
    keep = 1 - momentum
    return (1 - keep**extra) * keep**grown / (1 - keep**grown)


def _random_state(devices: set[torch.device]) -> list[Tensor]:
    """Host copies of torch's generators' states; empty where they cannot be read (graph capture)."""
    states = [torch.get_rng_state()]
    for device in devices:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return []
        if device.type == "mps":
            states.append(torch.mps.get_rng_state())
        elif device.type != "cpu":
            states.append(torch.get_device_module(device).get_rng_state(device))
    return states
