"""The native call of `compat.geomloss` against the same loss by torch's operations: sizes, hard cases, levels.

The bound is that of plain torch in the dtype of the call, and a floor of rounding.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from geomloss_cases import close_relative, measures

from ucmkd_fast import _native
from ucmkd_fast.compat import _divergence, _divergence_native
from ucmkd_fast.compat._divergence import Settings, schedule_of
from ucmkd_fast.compat._measures import Measures
from ucmkd_fast.compat.geomloss import SamplesLoss

INF = float("inf")


def both(arguments, s: Settings):
    """Values, slopes and potentials of the native call and of torch's operations, of (B, N) and (B, N, D) leaves."""
    found = []
    for module in (_divergence_native, _divergence):
        leaves = [z.detach().clone().requires_grad_() for z in arguments]
        m = Measures(*leaves, True, leaves[1].dtype)
        value = module.solve(m, s._replace(potentials=False))
        slopes = torch.autograd.grad(value.sum(), leaves)
        potentials = module.solve(m, s._replace(potentials=True))
        weight = sum((z * z.detach().cos()).sum() for z in potentials)
        found.append([value, *slopes, *potentials, *torch.autograd.grad(weight, leaves[1::2])])
    return found


def agree(arguments, s: Settings):
    """In float64, and in float32 judged by float64."""
    arguments = [z.detach().double() for z in arguments]
    native, torchs = both(arguments, s)
    for got, want in zip(native, torchs, strict=True):
        close_relative(got, want, 1e-9)
    narrow, narrow_torchs = both([z.float() for z in arguments], s)
    exact = both([z.float().double() for z in arguments], s)[1]
    for got, theirs, want in zip(narrow, narrow_torchs, exact, strict=True):
        floor = (theirs.double() - want).abs().max().item()
        assert got.dtype == torch.float32 and got.shape == want.shape
        assert (got.double() - want).abs().max().item() <= 2 * floor + 1e-5 * want.abs().max().item()


def settings(p=2, blur=0.05, reach=None, debias=True, scaling=0.5, diameter=1.5) -> Settings:
    rho = INF if reach is None else reach**p
    return Settings(p, schedule_of(p, diameter, blur, scaling), rho, debias, False)


@pytest.mark.parametrize("d", [1, 3, 20])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 6), (5, 1), (16, 17), (65, 130)])
def test_sizes(n, m, d):
    for k, (p, debias, reach) in enumerate(itertools.product((1, 2), (True, False), (None, 0.3))):
        agree(measures((1 + k % 3,), n, m, d), settings(p, debias=debias, reach=reach))


def hard_cases():
    a, x, b, y = (z.detach() for z in measures((2,), 40, 33, 2))
    yield (
        "coincident points",
        (a, x[:, :1].expand(-1, 40, -1).clone(), b, x[:, :1].expand(-1, 33, -1).clone()),
    )
    yield "points on both sides", (a, x, b, x[:, :33].clone())
    some = a.clone()
    some[:, ::2] = 0
    yield "zero weights", (some, x, b, y)
    first = a.clone()
    first[:, :20] = 0
    yield "no weight at first", (first, x, b, y)
    one = torch.zeros_like(b)
    one[:, -1] = 1
    yield "one weight", (a, x, one, y)
    yield "tiny weights", (a * torch.logspace(0, -12, 40, dtype=torch.float64), x, b, y)
    yield "large weights", (a * 1e4, x, b * 1e4, y)
    far = x.clone()
    far[:, 0] = 300
    yield "a point far out", (a, far, b, y)
    yield "two clusters far apart", (a, x, b, y + 100)
    yield "far from the origin", (a, x + 1000, b, y + 1000)
    steps = [
        torch.linspace(0, 1, 2 * k, dtype=torch.float64).view(1, k, 2).expand(2, -1, -1) for k in (40, 33)
    ]
    yield "a line of equal steps", (a, steps[0], b, steps[1])


@pytest.mark.parametrize("reach", [None, 0.05, 2.0])
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(
    ("name", "case"), list(hard_cases()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_hard_cases(name, case, p, reach):
    for blur, scaling, diameter in ((0.05, 0.5, 1.5), (1e-3, 0.5, 1.5), (0.01, 0.1, 300.0), (0.3, 0.5, 0.1)):
        s = settings(p, blur, reach, scaling=scaling, diameter=diameter)
        found = both([z.double() for z in case], s)
        for got, want in zip(*found, strict=True):
            # Where exponents are 1e6 and more, a digit of the costs is 1e-9 of the weights.
            # Potentials start as large as the first eps, and leave its rounding.
            close_relative(got, want, 1e-6, floor=max(1e-6, 1e-8 * diameter**p))
        narrow = both([z.float() for z in case], s)[0]
        assert all(z.isfinite().all() for z in narrow)


@pytest.fixture
def threads():
    """Any number of threads for calls of any size, whatever this machine has."""
    before = torch.get_num_threads()
    _native.use_threads(64, least_work=0)
    yield
    _native.use_threads()
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_number_of_threads(threads, batch):
    arguments = measures((batch,), 200, 130, 3)
    for s in (settings(1, reach=0.2), settings(blur=1e-3, scaling=0.2)):
        for count in (1, 3):
            torch.set_num_threads(count)
            native, torchs = both(arguments, s)
            for got, want in zip(native, torchs, strict=True):
                close_relative(got, want, 1e-8)
            again = both(arguments, s)[0]
            assert all(torch.equal(got, once) for got, once in zip(again, native, strict=True))


@pytest.mark.parametrize("linear", [True, False])
def test_costs_made_in_every_sweep(monkeypatch, linear):
    for s in (settings(), settings(1, reach=0.2), settings(blur=1e-3, scaling=0.2)):
        s = s._replace(linear=linear)
        arguments = measures((2,), 90, 70, 3)
        kept = both(arguments, s)[0]
        with monkeypatch.context() as patch:
            patch.setattr(_divergence_native, "KEPT_IN_CACHE", 0)
            made = both(arguments, s)[0]
        for got, want in zip(made, kept, strict=True):
            close_relative(got, want, 1e-12)


def test_online_is_linear_in_memory():
    """10,000 and 10,000 points in three dimensions: whole matrices of float32 would take 1.2 GB."""
    script = """
import resource, torch
from ucmkd_fast.compat.geomloss import SamplesLoss
x, y = torch.rand(10000, 3, requires_grad=True), torch.rand(10000, 3)
loss = SamplesLoss(blur=0.5, diameter=1.0, backend="online")
loss(x[:10], y[:10]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
value = loss(x, y)
value.backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, x.grad.isfinite().all().item())
"""
    done = run(script)
    assert done.returncode == 0, done.stderr
    growth, finite = done.stdout.split()
    assert int(growth) < 64 * 1024 and finite == "True"


def run(script: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )


LEVELS = """
import torch
from ucmkd_fast.compat.geomloss import SamplesLoss
torch.manual_seed(0)
for d, options in ((3, {}), (20, {"p": 1, "reach": 0.3}), (2, {"blur": 1e-3, "scaling": 0.2})):
    x, y = torch.rand(70, d, requires_grad=True), torch.rand(45, d, requires_grad=True)
    loss = SamplesLoss(**options)(x, y)
    loss.backward()
    print(repr(loss.item()), repr(x.grad.norm().item()), repr(y.grad.norm().item()))
"""


def test_every_level_agrees():
    found = {}
    for level in _native._C.build_info()["cpu_levels_usable"]:
        done = run(LEVELS, UCMKD_CPU_LEVEL=level)
        assert done.returncode == 0, done.stderr
        found[level] = torch.tensor([float(word) for word in done.stdout.split()])
    want = found.pop(next(iter(found)))
    assert found or len(_native._C.build_info()["cpu_levels_built"]) == 1
    for got in found.values():
        assert ((got / want - 1).abs() < 1e-4).all()


def test_gradients_of_one_side_and_of_weights_alone():
    arguments = [z.detach() for z in measures((), 30, 40, 3)]
    leaves = [z.clone().requires_grad_() for z in arguments]
    want = torch.autograd.grad(SamplesLoss(reach=0.5)(*leaves), leaves)
    for k in range(4):
        mixed = [leaves[j] if j == k else arguments[j] for j in range(4)]
        (got,) = torch.autograd.grad(SamplesLoss(reach=0.5)(*mixed), [leaves[k]])
        assert torch.equal(got, want[k])
    half = SamplesLoss(reach=0.5)(*leaves) / 2
    for got, slope in zip(torch.autograd.grad(half, leaves), want, strict=True):
        close_relative(got, slope / 2, 1e-14)


def test_strides_and_tensors_that_are_changed_later():
    a, x, b, y = (z.detach() for z in measures((2,), 30, 40, 3))
    want = SamplesLoss()(a, x, b, y)
    turned = x.mT.contiguous().mT, y.flip(1).flip(1)
    close_relative(SamplesLoss()(a.T.contiguous().T, turned[0], b, turned[1]), want, 0)
    leaf = x.clone().requires_grad_()
    value = SamplesLoss()(a, leaf * 1, b, y)
    (slope,) = torch.autograd.grad(value.sum(), [leaf])
    assert slope.shape == x.shape and torch.equal(value, want)
    moved = x.clone().requires_grad_() * 1
    value = SamplesLoss()(a, moved, b, y)
    moved.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        value.sum().backward()


def test_out_of_memory_is_an_error(monkeypatch):
    monkeypatch.setattr(_divergence_native, "KEPT_IN_CACHE", 1 << 62)
    x = torch.rand(1, 3).expand(1 << 21, 3).contiguous()
    with pytest.raises(MemoryError):
        SamplesLoss(diameter=1.0, debias=False)(x, x)
