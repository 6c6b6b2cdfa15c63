"""Parameters at a temporary point: moved in place, put back whatever happens.

The bi-level step trains a copy of the student for a few steps. Instead of a
copy, the student's own parameters move, in fused passes over lists of tensors,
and are restored from a buffer that lives as long as the step object.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class TemporaryPoint:
    """A context in which parameters may be changed in place; on exit they are what they were, bit for bit."""

    def __init__(self, parameters: Sequence[Tensor]):
        self._parameters = list(parameters)
        self._saved: list[Tensor] = []

    @torch.no_grad()
    def __enter__(self) -> None:
        if not _match(self._saved, self._parameters):
            self._saved = [torch.empty_like(p) for p in self._parameters]
        if self._saved:
            torch._foreach_copy_(self._saved, self._parameters)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        if self._saved:
            torch._foreach_copy_(self._parameters, self._saved)
        torch.clear_autocast_cache()


def _match(saved: list[Tensor], parameters: list[Tensor]) -> bool:
    """Whether the buffers still fit; a model may have been moved or cast since the last step."""
    return len(saved) == len(parameters) and all(
        s.shape == p.shape and s.dtype == p.dtype and s.device == p.device
        for s, p in zip(saved, parameters, strict=True)
    )


def clear_gradients(parameters: Iterable[Tensor]) -> None:
    """Set ``.grad`` to None."""
    for parameter in parameters:
        parameter.grad = None


@torch.no_grad()
def clip_(gradients: list[Tensor], max_norm: float) -> None:
    """Scale gradients in place to a joint norm of at most ``max_norm``, without reading it on the host."""
    if math.isinf(max_norm) or not gradients:
        return
    torch._foreach_mul_(gradients, (max_norm / (joint_norm(gradients) + 1e-6)).clamp_max(1.0))


@torch.no_grad()
def joint_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all elements together, (); 0 of no tensors."""
    if not tensors:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm


@torch.no_grad()
def sgd_step_(parameters: list[Tensor], gradients: list[Tensor], lr: float) -> None:
    """In place, p <- p - lr g."""
    if parameters:
        torch._foreach_add_(parameters, gradients, alpha=-lr)
    torch.clear_autocast_cache()  # casts of the parameters as they were


class FreshAdamW:
    """AdamW without history, as a new ``torch.optim.AdamW`` with default betas and eps computes it.

    The first step needs no state: its moments are (1 - beta1) g and (1 - beta2) g^2, so

        p <- p (1 - lr wd) - lr g / (|g| + eps)

    Moments are made only for parameters that are to be stepped again.
    """

    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def start(self, lr: float, weight_decay: float) -> None:
        """Forget everything: the next step of every parameter is its first."""
        self._lr = lr
        self._weight_decay = weight_decay
        self._moments: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self._steps: dict[Tensor, int] = {}

    @torch.no_grad()
    def step_(self, parameters: list[Tensor], gradients: list[Tensor], last: bool) -> None:
        """One step in place; ``last`` promises that these parameters take no further one before `start`."""
        if parameters:
            torch._foreach_mul_(parameters, 1 - self._lr * self._weight_decay)
            if last and not any(p in self._steps for p in parameters):
                denominators = torch._foreach_abs(gradients)
                torch._foreach_add_(denominators, self.eps)
                torch._foreach_addcdiv_(parameters, gradients, denominators, -self._lr)
            else:
                self._step_with_moments(parameters, gradients)
        torch.clear_autocast_cache()

    def _step_with_moments(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for p in parameters:
            if p not in self._steps:
                self._moments[p] = (torch.zeros_like(p), torch.zeros_like(p))
            self._steps[p] = self._steps.get(p, 0) + 1
        first = [self._moments[p][0] for p in parameters]
        second = [self._moments[p][1] for p in parameters]
        steps = [self._steps[p] for p in parameters]
        torch._foreach_lerp_(first, gradients, 1 - self.beta1)
        torch._foreach_mul_(second, self.beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - self.beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, [math.sqrt(1 - self.beta2**t) for t in steps])
        torch._foreach_add_(denominators, self.eps)
        step_sizes = [-self._lr / (1 - self.beta1**t) for t in steps]
        torch._foreach_addcdiv_(parameters, first, denominators, step_sizes)
