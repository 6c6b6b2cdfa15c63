"""The loss of one problem between features: by the native loss, by panels and shards, or through its cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _autograd, _devices, _loss, class_aware, cost, memory, panel, relative_reg, sharded
from .dense import Settings, cost_matrix, dense


def one_problem(x, y, a, b, init_fg, by_class, settings: Settings, budget, group, return_result=False):
    """The loss, or the result; by panels where the matrices do not fit."""
    metric, dtype, regularized, options, _, scale = settings
    wanted = "result" if return_result else regularized
    panels = _panels(x, y, a, b, by_class, settings, wanted, budget, group)
    if panels is not None:
        if scale is not None and metric not in relative_reg.SCALABLE:  # read, which waits for the device
            options, scale = relative_reg.settle(scale, options, True)
        how = metric, dtype, options, *panels, scale, settings.quiet
        outputs = panel.solve(x, y, a, b, init_fg, by_class, *how)
        settings.record(outputs)
        if return_result:
            return panel.PanelResult(outputs[0], outputs, options, None, scale)
        return outputs[int(regularized)]
    if scale is None and not return_result and _devices.has_kernels(x):
        if by_class[0] is None and _autograd.direct(x, y, a, b):
            return _one_loss(x, y, a, b, init_fg, settings)
        if by_class[0] is not None and _autograd.direct(x, y, a, b, *by_class):
            return _class_aware(x, y, a, b, init_fg, by_class, settings)
    return dense(x, y, a, b, init_fg, by_class, settings, return_result)


def _one_loss(x, y, a, b, init_fg, settings: Settings) -> Tensor:
    a, b = None if a is None else a.contiguous(), None if b is None else b.contiguous()
    problem = (x, y, a, b, init_fg[0], init_fg[1], settings.for_kernels())
    if not _autograd.recorded(x, y, a, b):
        return _loss.forward(*problem, False)[0]
    if _loss.one_call(x, y, a, b, settings.metric):
        return _autograd.SmallSinkhornLoss.apply(*problem)
    return _autograd.SinkhornLoss.apply(*problem)


def _class_aware(x, y, a, b, init_fg, by_class, settings: Settings) -> Tensor:
    a, b, class_cost, y_labels = (None if t is None else t.contiguous() for t in (a, b, *by_class))
    return class_aware.ClassAwareLoss.apply(
        x, y, class_cost, a, b, y_labels, *init_fg, settings.for_kernels()
    )


def _shards(x, y, a, b, by_class, settings: str, group) -> sharded.Shards:
    given = "".join(name for name, t in zip("ab", (a, b), strict=True) if t is not None)
    classes = "" if by_class[0] is None else f"K {by_class[0].shape[1]}"
    wants_y = torch.is_grad_enabled() and y.requires_grad
    return sharded.Shards(group, len(x), len(y), wants_y, f"xy{given} {classes} {x.shape[1]} {settings}")


def _streamed(tensors, columns: int, dtype: torch.dtype, budget: int | None) -> bool:
    """Whether the matrices do not fit; without kernels for the device only a given budget is asked about."""
    x = tensors[0]
    if not _devices.has_kernels(x) and budget is None:
        return False
    gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return memory.needs_panels(len(x), columns, dtype.itemsize, gradient, budget, x.device)


def _panels(x, y, a, b, by_class, settings: Settings, wanted: Any, budget, group):
    """(rows of a panel, whether they are kept, the shards) where the matrices do not fit or are spread, else None."""
    n, m, size = len(x), len(y), settings.dtype.itemsize
    over = None
    if group is not None:
        panel.require_kernels(x)
        how = f"{settings.dtype} {settings.metric} {settings.options} {wanted}"
        over = _shards(x, y, a, b, by_class, how, group)
        m = over.total_columns(m)
    streamed = memory.worth_asking(n, m, size, budget) and _streamed(
        (x, y, a, b, by_class[0]), m, settings.dtype, budget
    )
    if not streamed and over is None:
        return None
    panel.require_kernels(x)
    return memory.panel_rows(n, m, size, budget, x.device), not streamed, over


def relative(x, y, by_class, settings: Settings, budget, group) -> Settings:
    """With reg relative to the mean cost of one problem."""
    metric, dtype = settings.metric, settings.dtype
    host = relative_reg.on_host(x, y, by_class[0])
    panels = _panels(x, y, None, None, by_class, settings, "mean cost", budget, group)
    with torch.no_grad():
        if panels is not None:
            scale = panel.mean_cost(x, y, by_class, metric, dtype, *panels)
        elif host and by_class[0] is None:
            scale = relative_reg.mean_cost_on_host(cost.matrix(x, y, metric, dtype))
        else:
            scale = relative_reg.mean_cost(cost_matrix(x.detach(), y.detach(), metric, dtype, by_class))
    options, scale = relative_reg.settle(scale, settings.options, host)
    return settings._replace(options=options, scale=scale)
