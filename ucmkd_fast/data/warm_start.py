"""Potentials kept from step to step, so that transport to a bank of features starts warm."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..ops.checks import count_at_least_one
from ..ops.result import Convergence, SinkhornResult
from ..ops.sharded import gather_rows
from ..ops.sinkhorn import sinkhorn_loss


class WarmStart(nn.Module):
    """The transport loss between a student's samples and a bank's, each call starting where its samples ended.

    A potential is kept for every sample on both sides, in units of cost and without its mass, so that batches may
    have any size; they are buffers of the module and go into its ``state_dict``. The iterations start from the
    bank's potentials. That saves most of them where the same samples come back and only the features have moved: a
    small labelled set against a whole bank. Where either side is drawn anew, potentials belong to other company and
    save nothing (docs/large-batches.md): such calls are over-relaxed instead, where the gradient allows it and they
    are not ``unbalanced``. How a call converged is in ``last_marginal_error`` and ``last_n_iter``; it warns of nothing.

    Args:
        bank_size: samples in the bank.
        student_size: samples in the student's data.
        options: of `sinkhorn_loss`; ``tol`` > 0, as fewer iterations are all that there is to gain. After few
            iterations ``grad="unrolled"`` knows only those: ``"implicit"`` is the gradient where they lead. A pair
            ``unbalanced`` is (student's, bank's).

    Raises:
        ValueError: ``tol`` is missing or 0, an option that belongs to the call, or ``reg_scale``.
    """

    bank: Tensor  # (bank_size,)
    student: Tensor  # (student_size,)
    last_bank: Tensor  # (bank_size,) 1 for the samples of the last call, else 0
    last_student: Tensor  # (student_size,)

    def __init__(self, bank_size: int, student_size: int, **options: Any):
        super().__init__()
        count_at_least_one("bank_size", bank_size)
        count_at_least_one("student_size", student_size)
        if not options.get("tol", 0) > 0:
            raise ValueError("a warm start needs tol > 0, at which the iterations may stop early, got none")
        if options.get("reg_scale") is not None:
            raise ValueError(
                "a warm start keeps potentials at one reg: give it in units of the cost, not by reg_scale"
            )
        taken = {"init", "offsets", "group", "return_result", "convergence", "class_cost", "y_labels"} & set(
            options
        )
        if taken or options.get("objective") == "divergence":
            raise ValueError(
                f"expected options of one problem, got {', '.join(sorted(taken)) or 'divergence'}: "
                "call sinkhorn_loss with init="
            )
        if isinstance(pair := options.get("unbalanced"), (tuple, list)):
            options["unbalanced"] = tuple(reversed(pair))  # the bank comes first below
        self.options, self.regularized = options, options.get("objective") == "regularized"
        self.reg = float(options.get("reg", 0.1))
        for name, size in (("bank", bank_size), ("student", student_size)):
            self.register_buffer(name, torch.zeros(size))
            self.register_buffer(f"last_{name}", torch.zeros(size))
        self.last_n_iter: Tensor | None = None
        self.last_marginal_error: Tensor | None = None

    def forward(
        self, feature: Tensor, rows: Tensor, bank_feature: Tensor, bank_rows: Tensor, group: Any = None
    ) -> Tensor:
        """The loss of features (N, D) against features (M, D) of the bank.

        Args:
            feature: (N, D) of the student.
            rows: (N,) which samples of the student's data these are.
            bank_feature: (M, D).
            bank_rows: (M,) which samples of the bank these are.
            group: as in `sinkhorn_loss`: the four are this process's; every process keeps the potentials of all.
        """
        for index, z in ((rows, feature), (bank_rows, bank_feature)):
            if index.shape != z.shape[:1]:
                raise ValueError(f"expected one index a row, ({z.shape[0]},), got {tuple(index.shape)}")
        every, every_bank = (gather_rows(index.to(self.bank.device), group) for index in (rows, bank_rows))
        convergence = Convergence()
        options = {**self.options, "return_result": True, "group": group, "convergence": convergence}
        if self._may_relax(feature) and not self._same_company(every, every_bank):
            options["accelerate"] = "relax"
        # The first half-step is made from the potentials of the first argument: the bank's.
        init = (
            self._start(self.bank, bank_rows, len(every_bank), bank_feature),
            self._start(self.student, rows, len(every), feature),
        )
        found = cast("SinkhornResult", sinkhorn_loss(bank_feature, feature, init=init, **options))
        g, f = (gather_rows(z.detach().to(self.bank), group) for z in found.potentials)
        self.bank[every_bank] = g + self.reg * math.log(len(every_bank))
        self.student[every] = f + self.reg * math.log(len(every))
        self.last_bank.zero_()[every_bank] = 1
        self.last_student.zero_()[every] = 1
        self.last_n_iter, self.last_marginal_error = convergence.n_iter, convergence.marginal_error
        return found.value_regularized if self.regularized else found.value

    def _start(self, kept: Tensor, rows: Tensor, count: int, feature: Tensor) -> Tensor:
        """Potentials of some samples with the mass of one of ``count``, as the features' cost is computed."""
        wide = torch.promote_types(feature.dtype, torch.float32)
        return (kept[rows.to(kept.device)] - self.reg * math.log(count)).to(feature.device, wide)

    def _may_relax(self, feature: Tensor) -> bool:
        plain = "accelerate" not in self.options and self.options.get("grad", "unrolled") != "unrolled"
        plain = plain and self.options.get("unbalanced") is None
        # On a GPU, looking at the samples would wait for the device.
        return plain and feature.device.type == "cpu"

    def _same_company(self, rows: Tensor, bank_rows: Tensor) -> bool:
        """Whether exactly these samples were in the last call."""
        return all(
            bool(last[index].all()) and int(last.sum()) == len(index)
            for last, index in ((self.last_student, rows), (self.last_bank, bank_rows))
        )
