"""Potentials kept from step to step, so that transport to a bank of features starts warm."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from ..ops.checks import count_at_least_one
from ..ops.result import SinkhornResult
from ..ops.sinkhorn import sinkhorn_loss


class WarmStart:
    """The transport loss between a student's samples and a bank's, each call starting where its samples ended.

    A potential is kept for every sample on both sides, in units of cost and without its mass, so that batches may
    have any size. The iterations start from the bank's potentials. That saves most of them where the same samples
    come back and only the features have moved: a small labelled set against a whole bank. Where either side is
    drawn anew, potentials belong to other company and save nothing (docs/large-batches.md).

    Args:
        bank_size: samples in the bank.
        student_size: samples in the student's data.
        options: of `sinkhorn_loss`; ``tol`` > 0, as fewer iterations are all that there is to gain.

    Raises:
        ValueError: ``tol`` is missing or 0, or an option that belongs to the call.
    """

    def __init__(self, bank_size: int, student_size: int, **options: Any):
        count_at_least_one("bank_size", bank_size)
        count_at_least_one("student_size", student_size)
        if not options.get("tol", 0) > 0:
            raise ValueError("a warm start needs tol > 0, at which the iterations may stop early, got none")
        taken = {"init", "offsets", "group", "return_result", "class_cost", "y_labels"} & set(options)
        if taken or options.get("objective") == "divergence":
            raise ValueError(
                f"expected options of one problem, got {', '.join(sorted(taken)) or 'divergence'}: "
                "call sinkhorn_loss with init="
            )
        self.options, self.regularized = options, options.get("objective") == "regularized"
        self.reg = float(options.get("reg", 0.1))
        self.bank, self.student = torch.zeros(bank_size), torch.zeros(student_size)
        self.last_n_iter: Tensor | None = None

    def __call__(self, feature: Tensor, rows: Tensor, bank_feature: Tensor, bank_rows: Tensor) -> Tensor:
        """The loss of features (N, D) against features (M, D) of the bank.

        Args:
            feature: (N, D) of the student.
            rows: (N,) which samples of the student's data these are.
            bank_feature: (M, D).
            bank_rows: (M,) which samples of the bank these are.
        """
        sides = ((self.bank, bank_rows, bank_feature), (self.student, rows, feature))
        kept: list[Tensor] = []
        for store, index, z in sides:
            if index.shape != z.shape[:1]:
                raise ValueError(f"expected one index a row, ({z.shape[0]},), got {tuple(index.shape)}")
            wide = torch.promote_types(z.dtype, torch.float32)
            kept.append((store[index] - self.reg * math.log(len(z))).to(z.device, wide))
        # The first half-step is made from the potentials of the first argument: the bank's.
        found = cast(
            "SinkhornResult",
            sinkhorn_loss(bank_feature, feature, init=(kept[0], kept[1]), return_result=True, **self.options),
        )
        for (store, index, z), potential in zip(sides, found.potentials, strict=True):
            free = potential.detach() + self.reg * math.log(len(z))
            store[index] = free.to(store.device, store.dtype)
        self.last_n_iter = found.n_iter
        return found.value_regularized if self.regularized else found.value
