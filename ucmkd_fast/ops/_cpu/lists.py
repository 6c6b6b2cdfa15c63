"""Lists of problems between features on a CPU: one native call for all of them (csrc/sinkhorn/ragged.h)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._native import _C
from .. import _dual, not_converged
from .._addresses import address
from .._classes import Classes
from .._pieces import converted
from .._problem import Gradients, Kept, Needs, Offsets, Options, Problem, Solution, Upstream
from ..cost import BY_DIFFERENCE, CENTRED
from ..refusals import explained
from .costs import Features, centred, with_scales
from .sinkhorn import native_upstream


class _Memory(NamedTuple):
    """What the solver writes: the costs, padded to ``_C.padded`` each, and what it keeps beside them."""

    costs: Tensor
    saved: Tensor


def _features(p: Problem, offsets: Offsets, options: Options, scale: Tensor | None) -> Features:
    """Both sets as the kernels read them, every problem centred by itself; with scales that are known, or made."""
    metric = options.known_metric
    x, y = given_x, given_y = [converted(z, options.dtype) for z in p.features]
    if metric in CENTRED:
        x, y = given_x.clone(), given_y.clone()
        for k in range(len(offsets.x) - 1):
            rows, columns = offsets.rows(k)
            x[rows], y[columns] = centred(given_x[rows], given_y[columns], metric)
    if scale is not None:
        return Features(x, y, scale, metric, given_x, given_y)
    return with_scales(x, y, metric, given_x, given_y)


def _sizes(offsets: Offsets, options: Options, history: bool) -> tuple[int, int]:
    """Elements of the costs and of what is kept."""
    return _C.ragged_sizes(
        len(offsets.x) - 1, offsets.x.data_ptr(), offsets.y.data_ptr(), options.max_iter, history,
        options.unbalanced is not None,
    )  # fmt: skip


def _native(
    p: Problem, offsets: Offsets, features: _C.Features, memory: _Memory, options: Options, history: bool
) -> _C.Ragged:
    return _C.Ragged(
        features=features, batch=len(offsets.x) - 1, x_offsets=offsets.x.data_ptr(),
        y_offsets=offsets.y.data_ptr(), reg=options.reg, max_iter=options.max_iter, tol=options.tol, a=address(p.a),
        b=address(p.b), init_f=address(p.init_f), init_g=address(p.init_g), relax=options.accelerate == "relax",
        history=history, rho_a=options.rho[0], rho_b=options.rho[1], shifted=options.shifted,
        cost=memory.costs.data_ptr(), saved=memory.saved.data_ptr(),
    )  # fmt: skip


def solve_list(p: Problem, offsets: Offsets, options: Options, save: bool) -> tuple[Solution, Kept]:
    """Every problem of a list, with potentials flat; the costs are in what is kept."""
    history = save and options.grad == "unrolled"
    features = _features(p, offsets, options, None)
    x = features.x
    memory = _Memory(*(x.new_empty(size) for size in _sizes(offsets, options, history)))
    distance = classes = None
    if p.classes is not None:
        distance = torch.empty_like(memory.costs) if save and options.metric in BY_DIFFERENCE else None
        classes = Classes(*p.classes, distance)
    batch = len(offsets.x) - 1
    value, dual, error = (x.new_empty(batch) for _ in range(3))
    n_iter = torch.empty(batch, dtype=torch.int64)
    found = Solution(value, dual, x.new_empty(len(x)), x.new_empty(len(features.y)), error, n_iter)
    ragged = _native(p, offsets, features.native(classes=classes), memory, options, history)
    outputs = {name: z.data_ptr() for name, z in found._asdict().items()}
    refused = _C.ragged_forward(ragged, save_plan=save, **outputs)
    if refused:
        raise ValueError(explained(refused, a=p.a, b=p.b, class_cost=p.class_cost, y_labels=p.labels))
    return found, Kept(memory.saved, found.f, found.g, features.scale, memory.costs, distance)


def solve_list_backward(
    p: Problem, offsets: Offsets, kept: Kept, up: Upstream, options: Options, needs: Needs
) -> Gradients:
    """Of features, masses and W."""
    assert kept.block is not None and kept.costs is not None
    features = _features(p, offsets, options, kept.scale)
    classes = d_classes = None
    if p.classes is not None:
        d_classes = torch.empty_like(p.classes[0]) if needs.class_cost else None
        classes = Classes(*p.classes, kept.distance, d_classes)
    memory = _Memory(kept.costs, kept.block)
    ragged = _native(
        p, offsets, features.native(classes=classes), memory, options, options.grad == "unrolled"
    )
    arriving = _arriving(p, offsets, kept, up, options)
    dx = torch.empty_like(features.x) if needs.x else None
    dy = torch.empty_like(features.y) if needs.y else None
    through = options.grad != "envelope"
    da = torch.empty_like(p.a) if p.a is not None and needs.a and through else None
    db = torch.empty_like(p.b) if p.b is not None and needs.b and through else None
    if not _C.ragged_backward(
        ragged, native_upstream(arriving), grad=_C.GRADS[options.grad], grad_x=address(dx), grad_y=address(dy),
        grad_a=address(da), grad_b=address(db),
    ):  # fmt: skip
        not_converged.warn_of_gradient()
    da = _sum(da, arriving.direct_a, p.a) if needs.a else None
    db = _sum(db, arriving.direct_b, p.b) if needs.b else None
    return Gradients(x=dx, y=dy, a=da, b=db, class_cost=d_classes)


def _sum(grad: Tensor | None, direct: Tensor | None, mass: Tensor | None) -> Tensor | None:
    if grad is None and direct is None:
        return None if mass is None else torch.zeros_like(mass)
    return direct if grad is None else grad if direct is None else grad + direct


def _arriving(p: Problem, offsets: Offsets, kept: Kept, up: Upstream, options: Options) -> _dual.Arriving:
    """As `_dual.arriving`, of a list: that of values (B,), flat ones of potentials."""
    value, dual, up_f, up_g = up
    if dual is None:
        return _dual.Arriving(*(None if t is None else t.contiguous() for t in (value, up_f, up_g)))
    counts = offsets.counts
    wide = [torch.repeat_interleave(dual, count) for count in counts]
    assert kept.f is not None and kept.g is not None
    potentials = kept.f, kept.g
    live = [torch.repeat_interleave(~offsets.empty, count) for count in counts]
    masses, totals = [], []
    for mass, count in zip((p.a, p.b), counts, strict=True):
        each = 1 / count.clamp_min(1).to(dual.dtype)
        masses.append(torch.repeat_interleave(each, count) if mass is None else mass)
        totals.append(torch.ones_like(each) if mass is None else sums(mass, count))
    pulled: list[Tensor | None] = []
    direct: list[Tensor | None] = []
    envelope = options.grad == "envelope"
    for side, (mass, given) in enumerate(zip((p.a, p.b), (up_f, up_g), strict=True)):
        if not envelope:
            pull = wide[side] * _dual.pull(potentials[side], masses[side], options, side)
            pull = pull if given is None else pull + given
            pulled.append(torch.where(live[side], pull, 0).contiguous())
        if mass is None:
            direct.append(None)
            continue
        other = torch.repeat_interleave(totals[1 - side], counts[side])
        if envelope:
            of_mass = _dual.of_envelope(_free(p, offsets, kept, side, options), other, options, side)
        else:
            of_mass = _dual.direct(potentials[side], mass, other, options, side)
        direct.append(wide[side] * torch.where(live[side], of_mass, 0))
    if envelope:
        return _dual.Arriving(_dual.envelope_weight(up), None, None, *direct)
    return _dual.Arriving(None if value is None else value.contiguous(), *pulled, *direct)


def _free(p: Problem, offsets: Offsets, kept: Kept, side: int, options: Options) -> Tensor:
    """Potentials without their log-mass; finite also where the mass is 0 (those problems one by one)."""
    f, g, mass = kept.f, kept.g, (p.a, p.b)[side]
    assert f is not None and g is not None and mass is not None and kept.costs is not None
    z = (f, g)[side]
    free = torch.where((mass > 0) & (z > -torch.inf), z - options.reg * mass.log(), 0)
    costs = matrices(offsets, kept.costs)
    for k in problem_of_row(offsets.counts[side])[mass == 0].unique().tolist():
        rows, columns = offsets.rows(k)
        if rows.start == rows.stop or columns.start == columns.stop:
            continue
        other, cost = (f[rows], costs[k].T) if side else (g[columns], costs[k])
        here = (rows, columns)[side]
        free[here] = torch.where(mass[here] > 0, free[here], _dual.softmin(other, cost, options, side))
    return free


def problem_of_row(count: Tensor) -> Tensor:
    """Which problem (sum,) each row of a list belongs to, from the rows (B,) of each."""
    return torch.repeat_interleave(torch.arange(len(count)), count)


def sums(mass: Tensor, count: Tensor) -> Tensor:
    """Sums (B,) of flat masses, problem by problem."""
    return mass.new_zeros(len(count)).index_add_(0, problem_of_row(count), mass)


def matrices(offsets: Offsets, costs: Tensor) -> list[Tensor]:
    """The costs (N_k, M_k) of all problems, views of what `solve_list` keeps."""
    sizes = list(zip(*(count.tolist() for count in offsets.counts), strict=True))
    blocks = costs.split([_C.padded(n * m) for n, m in sizes])
    return [block[: n * m].view(n, m) for block, (n, m) in zip(blocks, sizes, strict=True)]
