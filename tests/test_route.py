"""The tables that say which way a problem goes: every line of them, and that calls go there."""

from __future__ import annotations

import itertools

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.ops import _autograd, _by_torch, _lists, _panels, _reference, _registered, _route
from ucmkd_fast.ops._route import Many, Solver, Way

pytestmark = pytest.mark.usefixtures("one_thread")

ANY = (False, True)
#: How many, kernels, batched, plain, panels, scaled, result -> the way. The first line that fits holds.
WAYS = [
    (Many.ONE, ANY, ANY, ANY, True, ANY, ANY, Way.PANELS),
    (Many.ONE, True, ANY, True, False, False, False, Way.LOSS),
    (Many.ONE, ANY, ANY, ANY, ANY, ANY, ANY, Way.COST),
    (Many.BATCH, True, False, True, ANY, ANY, ANY, Way.LIST),
    (Many.BATCH, ANY, ANY, ANY, ANY, ANY, ANY, Way.COST),
    (Many.LIST, False, ANY, ANY, ANY, ANY, ANY, Way.ONE_BY_ONE),
    (Many.LIST, True, False, ANY, ANY, True, ANY, Way.ONE_BY_ONE),
    (Many.LIST, True, False, ANY, ANY, False, ANY, Way.LIST),
    (Many.LIST, True, True, ANY, ANY, ANY, ANY, Way.PADDED),
]
#: Kernels, plain, transformed, by torch -> what runs on a cost.
SOLVERS = [
    (True, True, ANY, ANY, Solver.KERNELS),
    (ANY, False, ANY, True, Solver.BY_TORCH),
    (False, False, True, ANY, Solver.BY_TORCH),
    (False, ANY, ANY, ANY, Solver.REFERENCE),
    (True, False, ANY, False, Solver.REGISTERED),
]


def first_fit(table, case):
    for *conditions, outcome in table:
        if all(c == given or c is ANY for c, given in zip(conditions, case, strict=True)):
            return outcome
    raise AssertionError(f"no line for {case}")


def test_every_case_goes_the_way_of_the_table():
    cases = list(itertools.product(Many, *[ANY] * 6))
    assert {_route.way(*case) for case in cases} == set(Way)
    for case in cases:
        assert _route.way(*case) is first_fit(WAYS, case), case


def test_every_cost_has_the_solver_of_the_table():
    cases = list(itertools.product(*[ANY] * 4))
    assert {_route.solver(*case) for case in cases} == set(Solver)
    for case in cases:
        assert _route.solver(*case) is first_fit(SOLVERS, case), case


def features(*lead: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*lead, 24, 4, requires_grad=True), torch.randn(*lead, 5, 4)


ENDS = [
    (_autograd, "loss"), (_autograd, "solve"), (_registered, "solve"), (_by_torch, "solve"), (_reference, "solve"),
    (_panels, "solve"), (_lists, "in_one_call"), (_route, "one"),
]  # fmt: skip


@pytest.fixture
def ends(monkeypatch):
    """The names of the functions at the ends of the ways that were called, in order."""
    called: list[str] = []

    def watch(module, name):
        real = getattr(module, name)

        def watched(*args, **kwargs):
            called.append(f"{module.__name__.rpartition('.')[2]}.{name}")
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    for end in ENDS:
        watch(*end)
    return called


def call(**options):
    return lambda x, y: uk.sinkhorn_loss(x, y, max_iter=5, **options)


def under(transform):
    return lambda x, y: transform(lambda x: uk.sinkhorn_loss(x, y, max_iter=5).sum())(x)


def second(f):
    return torch.func.grad(lambda x: torch.func.grad(f)(x).sum())


OFFSETS = torch.tensor([0, 2, 24]), torch.tensor([0, 3, 5])


@pytest.mark.parametrize(
    ("run", "lead", "want"),
    [
        (call(), (), ["_route.one", "_autograd.loss"]),
        (call(return_result=True), (), ["_route.one", "_autograd.solve"]),
        (call(memory_budget=700), (), ["_route.one", "_panels.solve"]),
        (call(), (3,), ["_lists.in_one_call"]),
        (call(offsets=OFFSETS), (), ["_lists.in_one_call"]),
        (call(offsets=OFFSETS, reg_scale="mean"), (), ["_route.one", "_autograd.loss"] * 2),
        (under(torch.func.grad), (), ["_route.one", "_registered.solve"]),
        (under(second), (), ["_route.one", "_by_torch.solve"]),
        (lambda x, y: uk.sinkhorn(torch.cdist(x, y), max_iter=5), (), ["_autograd.solve"]),
    ],
    ids=["loss", "result", "panels", "batch", "list", "scaled list", "func", "second order", "cost"],
)  # fmt: skip
def test_a_call_goes_its_way(run, lead, want, ends):
    run(*features(*lead))
    assert ends == want
