"""`doubly_stochastic` on the execution model of a GPU: the CUDA kernels, values and gradients, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_harness import build, model
from test_doubly_stochastic import KINDS, OPTIONS, error, logits

import ucmkd_fast as uk
from ucmkd_fast.reference.doubly_stochastic import doubly_stochastic as reference

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="the model needs a C++ compiler")

THREAD, TEAM = [(2, 2), (4, 4)], [(1, 1), (1, 5), (3, 3), (4, 7), (9, 3), (17, 16), (33, 40)]


def both_ways(x, weight, **options):
    """The result and the gradient of the logits."""
    leaf = x.clone().requires_grad_()
    result = uk.doubly_stochastic(leaf, **options)
    return result.detach(), torch.autograd.grad(result, leaf, weight)[0]


def compare(x, limit, dtype=torch.float32, **options):
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).double()
    truth = x.clone().requires_grad_()
    want = reference(truth, **options)
    (want_grad,) = torch.autograd.grad(want, truth, weight)
    got, grad = both_ways(x.to(dtype), weight.to(dtype), **options)
    assert got.dtype == grad.dtype == dtype
    assert error(got, want) <= limit, options
    assert error(grad, want_grad) <= limit * weight.abs().max(), options


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("shape", THREAD + TEAM, ids=str)
def test_agrees_with_float64(shape, order):
    with model(order=order):
        for options in OPTIONS if max(shape) < 9 else OPTIONS[1::3]:
            for n_iter in (1, 6):
                compare(logits("normal", *shape, batch=5), 3e-6, n_iter=n_iter, **options)
        compare(logits("x 10", *shape, batch=5), 1e-12, torch.float64, n_iter=6, eps=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (5, 6)], ids=str)
def test_hard_logits(shape, kind):
    with model():
        for options in OPTIONS[::3] + OPTIONS[1:2]:
            compare(logits(kind, *shape, batch=7), 4e-6, n_iter=20, **options)


@pytest.mark.parametrize("shape", [(4, 4), (5, 5)], ids=str)
def test_what_leaves_the_range_is_computed_in_the_log_domain(shape):
    x = torch.cat([logits(kind, *shape, batch=2) for kind in ("normal", "cross", "cross, far", "x 100")])
    with model():
        for options in OPTIONS[::3] + OPTIONS[1:2]:
            compare(x, 4e-6, n_iter=150, **options)
        compare(x, 1e-9, torch.float64, n_iter=600)


def test_scalings_that_do_not_fit_shared_memory():
    for shape, n_iter in (((4, 4), 100), ((6, 5), 300)):
        with model(shared=16 * 1024):
            compare(logits("normal", *shape, batch=70), 3e-6, n_iter=n_iter)
    with model(shared=2 * 1024):
        compare(logits("normal", 33, 20, batch=5), 3e-6, n_iter=3)


def test_matrices_that_are_not_aligned():
    x = logits("normal", 4, 4, batch=6).float()
    shifted = torch.zeros(6 * 16 + 1)
    shifted[1:] = x.flatten()
    with model():
        want = uk.doubly_stochastic(x)
        got = uk.doubly_stochastic(shifted[1:].view(6, 4, 4))
        assert error(got, want.double()) < 1e-6
        assert torch.equal(uk.doubly_stochastic(x.mT.contiguous().mT), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_and_written_as_it_is(dtype):
    for shape in ((4, 4), (3, 5)):
        x = logits("x 10", *shape).to(dtype)
        weight = torch.randn(x.shape).to(dtype)
        with model():
            want, got = both_ways(x.float(), weight.float()), both_ways(x, weight)
        for w, g in zip(want, got, strict=True):
            assert g.dtype == dtype and torch.equal(g, w.to(dtype))


@pytest.mark.parametrize("shape", [(4, 4), (3, 5)], ids=str)
def test_bad_matrices_are_nan_and_the_others_are_not(shape, monkeypatch):
    x = torch.zeros(6, *shape)
    x[1, 0, 0], x[2, 1, 2 if shape[1] > 2 else 0] = math.nan, math.inf
    x[3, 1], x[4, :, 1] = -math.inf, -math.inf
    for options in OPTIONS:
        with model():
            got, grad = both_ways(x, torch.ones_like(x), **options)
        for found in (got, grad):
            assert found.isnan().flatten(1).all(1).tolist() == [False, True, True, True, True, False]
            assert found[[0, 5]].isfinite().all()
    monkeypatch.setenv("UCMKD_CHECK", "1")
    with model(), pytest.raises(ValueError, match=r"NaN at logits\[1, 0, 0\]"):
        uk.doubly_stochastic(x)


def test_one_matrix_that_is_too_large_is_refused():
    x = torch.zeros(()).expand(1 << 16, 1 << 15)
    with pytest.raises(ValueError, match="less than 2.31 entries on a GPU, got 65536 x 32768"), model():
        uk.doubly_stochastic(x)


def test_a_second_derivative_goes_by_torch():
    x = logits("normal", 3, 3, batch=2).requires_grad_()
    with model():
        assert torch.autograd.gradgradcheck(lambda z: uk.doubly_stochastic(z, 3), (x,))
