"""Warnings about iterations that did not converge; on a GPU as soon as that is known without waiting."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ._call_site import CallSite, call_site, warn
from ._problem import Options
from .cost import NORMALISED


class ConvergenceWarning(UserWarning):
    """A loss or its gradient is not what it would be at convergence; the text says by how much, and what helps.

    Python's filters decide how often it is shown: by default once per line of code that called.
    ``warnings.filterwarnings("ignore", category=uk.ConvergenceWarning)`` silences it, ``"error"`` makes it an error.
    """


_GRADIENT = (
    "the implicit gradient of sinkhorn did not reach its tolerance: the iterations converge too slowly at this reg; "
    "raise reg, or use grad='unrolled', which is exact for the iterations that ran"
)

_ROUNDING = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}


class _Report(NamedTuple):
    """Numbers on their way from a device, and who says what they mean."""

    arrived: torch.cuda.Event
    numbers: Tensor
    judge: Callable[[list[float]], str | None]
    site: CallSite
    kind: str


_on_their_way: deque[_Report] = deque()
_silent: ContextVar[bool] = ContextVar("_silent", default=False)
_told: ContextVar[list[str] | None] = ContextVar("_told", default=None)


def at_most_one() -> AbstractContextManager[None]:
    """One warning about the losses inside, which are parts of one."""
    return nullcontext() if torch.compiler.is_compiling() else _at_most_one()


@contextmanager
def _at_most_one() -> Iterator[None]:
    token = _told.set([])
    try:
        yield
    finally:
        _told.reset(token)


@contextmanager
def silent() -> Iterator[None]:
    """No warnings from calls inside: for a caller that looks at the marginal errors by itself."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def warn_of_gradient() -> None:
    """Warn of an implicit gradient that did not converge."""
    _tell(_GRADIENT, call_site(), "gradient")


def report_gradient(flag: Tensor) -> None:
    """The same where ``flag`` (1,) is not 0: at once on the CPU and under UCMKD_CHECK=1, else in a later call."""
    _report(flag.reshape(-1), lambda numbers: _GRADIENT if numbers[0] else None, "gradient")


def look(
    marginal_error: Tensor | None,
    value: Tensor,
    a: Tensor | None,
    options: Options,
    metric: str | None = None,
) -> None:
    """Warn of iterations that ended above ``tol``, and of a reg that the rounding of the cost swallows.

    Args:
        marginal_error: (B?,); None is allowed where tol is 0.
        value: (B?,) <P, C>, which over the mass is the cost where the plan is.
        a: (N,) or (B, N), masses whose sums are those of the problems; None is 1 each.
        options: what the call ran with; reg in the units of ``value``.
        metric: of a cost without further terms, else None.
    """
    tol = options.tol
    if tol == 0 and metric in NORMALISED and 2 * _ROUNDING[value.dtype] <= options.reg:
        return
    if _silent.get() or not value.numel():
        return
    if value.dim() == 0 and not value.is_cuda:  # few operations: a small call must not feel it
        cost = abs(value.item()) / (1.0 if a is None else a.sum().item() or 1.0)
        error = 0.0 if tol == 0 or marginal_error is None else marginal_error.item()
        if text := _judge([cost, error], value.dtype, options, metric):
            _tell(text, call_site(), "loss")
        return
    judge = partial(_judge, dtype=value.dtype, options=options, metric=metric)
    value = value.detach()
    per_mass = value.abs() if a is None else value.abs() / a.detach().sum(-1)
    parts = [per_mass.amax()]
    if tol > 0 and marginal_error is not None:
        parts.append(marginal_error.detach().amax())
    _report(torch.stack(parts), judge, "loss")


def _judge(numbers: list[float], dtype: torch.dtype, options: Options, metric: str | None) -> str | None:
    """What to say of a cost per mass and, where there is a tolerance, a marginal error."""
    cost, error = _at_least(numbers[0], metric), numbers[-1]
    if _ROUNDING[dtype] * cost > options.reg:
        return _below_rounding(cost, dtype, options)
    return _above_tol(error, dtype, options) if 0 < options.tol < error else None


def remark(
    remarks: tuple[bool, bool, bool], error: Tensor | None, loss: Tensor, a: Tensor | None, options: Options
) -> None:
    """What the native call of a small problem remarks: `Remarks` of csrc/sinkhorn/entry.h."""
    gradient_converged, reached_tol, above_rounding = remarks
    if not gradient_converged:
        warn_of_gradient()
    if _silent.get():
        return
    if not above_rounding:
        cost = _at_least(abs(loss.item()) / (1 if a is None else a.sum().item()), options.metric)
        _tell(_below_rounding(cost, loss.dtype, options), call_site(), "loss")
    elif not reached_tol and error is not None:
        _tell(_above_tol(error.item(), loss.dtype, options), call_site(), "loss")


def _at_least(cost: float, metric: str | None) -> float:
    """The size that the rounding of a cost is relative to."""
    return max(cost, 1.0) if metric in NORMALISED else cost


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _above_tol(error: float, dtype: torch.dtype, options: Options) -> str:
    helps = ["raise max_iter or reg", "start from init= (the potentials of an earlier call)"]
    if options.accelerate is None and options.unbalanced is None:
        helps.append("use accelerate='relax' (with grad='implicit' or 'envelope')")
    if options.tol < 8 * _ROUNDING[dtype]:
        helps.append(f"raise tol, which {_name(dtype)} hardly resolves")
    helps[-1] = "or " + helps[-1]
    return (
        f"sinkhorn did not converge: after max_iter={options.max_iter} iterations the marginal error is {error:.2g}, "
        f"above tol={options.tol:g}; " + ", ".join(helps)
    )


def _below_rounding(cost: float, dtype: torch.dtype, options: Options) -> str:
    wider = "" if dtype == torch.float64 else ", or compute in float64"
    rounding = cost * _ROUNDING[dtype]
    return (
        f"reg={options.reg:g} is below the rounding of the cost: costs of about {cost:.2g} are known to {rounding:.1g} "
        f"in {_name(dtype)}, so nothing determines the plan; raise reg (with reg_scale='mean' it is a factor of the "
        f"mean cost){wider}"
    )


def _report(numbers: Tensor, judge: Callable[[list[float]], str | None], kind: str) -> None:
    """Judge ``numbers`` (k,): at once on the CPU and under UCMKD_CHECK=1, else when they have arrived."""
    if not numbers.is_cuda or os.environ.get("UCMKD_CHECK") == "1":
        if text := judge(numbers.tolist()):
            _tell(text, call_site(), kind)
        return
    if torch.cuda.is_current_stream_capturing():  # a graph has no one to tell
        return
    site = call_site()
    if any(other.site == site and other.kind == kind for other in _on_their_way):
        return  # one at a time of each line: a loop of launches must not pay for more
    copy = torch.zeros(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    copy.copy_(numbers, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(numbers.device))
    _on_their_way.append(_Report(event, copy, judge, site, kind))


def flush_warnings() -> None:
    """Warn of what has arrived since; called by the ops on a GPU, costs nothing where nothing was reported."""
    while _on_their_way and not torch.cuda.is_current_stream_capturing() and _on_their_way[0].arrived.query():
        report = _on_their_way.popleft()
        if text := report.judge(report.numbers.tolist()):
            warn(text, ConvergenceWarning, report.site, report.kind)


def _tell(text: str, site: CallSite, kind: str) -> None:
    """Warn, unless `at_most_one` has."""
    told = _told.get()
    if told is not None:
        if kind in told:
            return
        told.append(kind)
    warn(text, ConvergenceWarning, site, kind)
