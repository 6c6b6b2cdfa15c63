"""UCMKD: feature and label alignment in an inner loop, cross-entropy outside (paper: Algorithm 1)."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor

from ..bilevel import ENCODER_PASSES, PRESETS, BilevelOptions, BilevelStep
from ..data.batch import Batch
from ..ops.checks import choice, number_at_least_zero
from ..ops.sinkhorn import Unbalanced
from .base import Method, Step, register
from .checks import count_at_least_zero, fraction, kappa_mode, norm_limit, transport

# What an option is when it is not given; options that a preset lacks are refused there.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "paper": {
        "metric": "l2",
        "lambda1": 1.0,
        "lambda2": 1.0,
        "inner_lr": 0.005,
        "inner_clip": 1.0,
        "kappa": "detached",
    },
    "published-code": {"metric": "cosine", "inner_lr": 5e-5, "inner_wd": 0.05},
}
_WHY_NOT = {
    "lambda1": "the published code does not use it",
    "lambda2": "the published code does not use it",
    "inner_clip": "a first AdamW step does not depend on the gradient's length",
    "kappa": "its LA step has no gradient to the teacher's term at all",
    "inner_wd": "Algorithm 1 has no weight decay",
}


@register
class UCMKD(Method):
    """Unpaired cross-modal distillation, both presets.

    Per batch the student moves to a temporary point, by ``n1`` steps on FA and ``n2`` on
    LA; its cross-entropy's gradient there becomes ``.grad`` at its own weights.

    * ``preset="paper"``: Algorithm 1. The steps are SGD with ``inner_lr`` times lambda1 or
      lambda2; LA moves encoder and head. Algorithm 1 takes the outer learning rate inside
      as well (``inner_lr="outer"``, unclipped), which collapsed to chance where it was
      measured; so the default is 0.005 with the inner gradient clipped at 1.
    * ``preset="published-code"``: what the authors' repository runs. The steps are those of
      one new AdamW per batch; LA moves the head only, by plain cross-entropy.

    Args:
        preset: "paper" or "published-code". Options left at None take the preset's value.
        n1: FA steps, >= 0.
        n2: LA steps, >= 0.
        lambda1: factor of the FA step ("paper"; 1).
        lambda2: factor of the LA step ("paper"; 1).
        inner_lr: learning rate of the inner steps, >= 0 (0.005; 5e-5), or "outer" ("paper"):
            that of the student's optimiser.
        inner_wd: weight decay of the inner AdamW ("published-code"; 0.05).
        inner_clip: norm at which inner gradients are clipped, > 0 ("paper"; 1, and none
            with ``inner_lr="outer"``; inf for none).
        metric: cost between features, as in `sinkhorn_loss` ("l2"; "cosine").
        reg: entropic regularisation, > 0, in units of cost.
        max_iter: Sinkhorn iterations, >= 1.
        unbalanced: None, exact marginals; or rho > 0, in units of cost: both are held by rho KL instead, as in
            `sinkhorn_loss`, so that samples far from all of the other side's are left out. A pair
            (student's, teacher's), None for a side that is exact.
        kappa: "detached" or "live" ("paper"; "detached").
        label_smoothing: in LA and CE, in [0, 1].
        encoder_passes: "auto" lets one encoder pass serve LA and CE where that is exact
            ("published-code"; dropout and other use of torch's generators are noticed).
            "separate" for encoders that draw randomness elsewhere (Python's or NumPy's).
        order: 1: the outer gradient is the one at the temporary point (first-order MAML). 2: it goes
            back through the inner steps as well ("paper", one process; their graph is kept, and
            FA's second derivative recomputes its iterations). With kappa "detached" kappa is a
            constant at either order.

    Raises:
        ValueError: an option out of range, or one that the preset cannot honour.
    """

    name = "ucmkd"
    published_name = "bilevel"
    needs_equal_widths = True

    def __init__(
        self,
        *,
        preset: str = "paper",
        n1: int = 1,
        n2: int = 1,
        lambda1: float | None = None,
        lambda2: float | None = None,
        inner_lr: float | str | None = None,
        inner_wd: float | None = None,
        inner_clip: float | None = None,
        metric: str | None = None,
        reg: float = 0.1,
        max_iter: int = 100,
        unbalanced: Unbalanced = None,
        kappa: str | None = None,
        label_smoothing: float = 0.0,
        encoder_passes: str = "auto",
        order: int = 1,
    ):
        super().__init__()
        choice("preset", preset, PRESETS)
        if isinstance(order, bool) or order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order!r}")
        if order == 2 and preset != "paper":
            raise ValueError(
                f"order=2 needs preset 'paper': the published code is first-order, got {preset!r}"
            )
        choice("encoder_passes", encoder_passes, ENCODER_PASSES)
        given = {
            "lambda1": lambda1,
            "lambda2": lambda2,
            "inner_lr": inner_lr,
            "inner_wd": inner_wd,
            "inner_clip": inner_clip,
            "metric": metric,
            "kappa": kappa,
        }
        chosen = _with_defaults(preset, given)
        self.options = BilevelOptions(
            preset=preset,
            transport=transport(chosen["metric"], reg, max_iter, unbalanced),
            n1=count_at_least_zero("n1", n1),
            n2=count_at_least_zero("n2", n2),
            lambda1=number_at_least_zero("lambda1", chosen.get("lambda1", 1.0)),
            lambda2=number_at_least_zero("lambda2", chosen.get("lambda2", 1.0)),
            inner_lr=_inner_lr(preset, chosen["inner_lr"]),
            inner_wd=number_at_least_zero("inner_wd", chosen.get("inner_wd", 0.0)),
            inner_clip=norm_limit("inner_clip", chosen.get("inner_clip", math.inf)),
            kappa=kappa_mode(chosen.get("kappa", "detached")),
            label_smoothing=fraction("label_smoothing", label_smoothing),
            encoder_passes=encoder_passes,
            order=order,
        )
        self.marginal_fa = self.options.transport
        # The fixed point's gradient, which a warm start needs, cannot be differentiated again.
        self.warm_transport = self.options.transport if order == 1 else None
        self._bilevel: BilevelStep | None = None

    def backward(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """As `BilevelStep.backward`."""
        if self._bilevel is None or self._bilevel.student is not step.student:
            self._bilevel = BilevelStep(step.student, self.options)
        return self._bilevel.backward(step, batch)


def _with_defaults(preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """The preset's options, those that are not None replaced; ValueError on one that it lacks."""
    chosen = dict(_DEFAULTS[preset])
    for name, value in given.items():
        if value is None:
            continue
        if name not in chosen:
            raise ValueError(f"preset {preset!r} has no {name} ({_WHY_NOT[name]}), got {value!r}")
        chosen[name] = value
    if chosen["inner_lr"] == "outer" and given["inner_clip"] is None:
        chosen["inner_clip"] = math.inf
    return chosen


def _inner_lr(preset: str, value: object) -> float | str:
    if value == "outer" and preset == "paper":
        warnings.warn(
            "inner_lr='outer' takes the outer learning rate in the inner steps, as Algorithm 1 says; at 0.05 "
            "this collapsed to chance where it was measured. Safe: 0.001, or 0.005 with inner_clip=1",
            stacklevel=3,
        )
        return "outer"
    return number_at_least_zero("inner_lr", value)
