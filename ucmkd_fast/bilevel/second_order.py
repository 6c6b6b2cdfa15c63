"""The exact bi-level gradient: back through the inner steps (second-order MAML; paper: Algorithm 1).

With U the inner steps, the first-order step takes grad CE at the point U(w); this one takes

    d/dw CE(U(w)) = U'(w)^T grad CE(U(w))

so the student's optimiser also sees how its weights move the point that FA and LA lead to.
The weights are not moved: each pass runs the student with weights that are a function of its
own, and the graph of all inner gradients is kept until the outer one is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .temporary_point import clear_gradients


class FunctionalStudent:
    """A student whose passes run with given weights, and whose buffers remember every pass.

    Each pass gets buffers of its own: a running statistic that a later pass wrote to could not
    be found again by the backward pass of an earlier one. As a context it watches for modules
    that run again in a backward pass (activation checkpointing): there they would find the
    student's own weights, not those of the pass.
    """

    def __init__(self, student: Any):
        self._student = student
        self._runner = _Runner(student)
        self._buffers = dict(student.named_buffers())
        self._running = False
        self._hooks: list[Any] = []

    def __enter__(self) -> FunctionalStudent:
        self._hooks = [m.register_forward_pre_hook(self._check) for m in self._student.modules()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _check(self, module: nn.Module, inputs: Any) -> None:
        if not self._running:
            raise ValueError(
                f"order=2 needs activations that are kept: {type(module).__name__} ran again in a backward pass; "
                "switch the student's activation checkpointing off"
            )

    def __call__(self, weights: dict[str, Tensor], run: Callable[[Any], Any]) -> Any:
        """What ``run(student)`` gives with these weights, by their names in the student."""
        self._buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        state = {f"student.{name}": tensor for name, tensor in {**weights, **self._buffers}.items()}
        self._running = True
        try:
            return torch.func.functional_call(self._runner, state, (run,))
        finally:
            self._running = False

    @torch.no_grad()
    def keep_buffers(self) -> None:
        """Give the student the buffers of the last pass."""
        for name, buffer in self._student.named_buffers():
            buffer.copy_(self._buffers[name])


class _Runner(nn.Module):
    """``functional_call`` runs ``forward`` alone; this one runs anything."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student

    def forward(self, run: Callable[[Any], Any]) -> Any:
        return run(self.student)


def descend(
    weights: dict[str, Tensor],
    loss: Tensor,
    rate: float,
    clip: float,
    watch: Callable[[Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Weights after one SGD step on the loss, its gradient clipped to a joint norm; differentiable.

    ``watch`` is told the norm before the clip.
    """
    if not loss.requires_grad:  # all that it reaches is frozen
        return weights
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
    reached = [g for g in gradients if g is not None]
    if reached and (watch is not None or not math.isinf(clip)):
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in reached]))
        if watch is not None:
            watch(norm)
        if not math.isinf(clip):
            rate = rate * (clip / (norm + 1e-6)).clamp_max(1.0)
    return {
        name: w if g is None else w - rate * g
        for (name, w), g in zip(weights.items(), gradients, strict=True)
    }


def write_gradients(loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """Replace ``.grad`` of the parameters by that of the loss; None where it does not reach."""
    clear_gradients(parameters)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
