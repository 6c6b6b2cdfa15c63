"""`linear_label_transport_loss` against the same loss of stored logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import ucmkd_fast as uk
from ucmkd_fast.ops._cpu import label as cpu
from ucmkd_fast.reference.label_transport import label_transport_loss as reference


def problem(n=37, d=9, k=6, dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(n)

    def randn(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    inputs = [randn(n, d), randn(k, d), randn(k) if bias else None, randn(k, d), randn(k) if bias else None]
    target = torch.randint(k, (n,), generator=generator)
    target[::7] = -100
    return inputs, target


def from_logits(inputs, target, **options):
    feature, sw, sb, tw, tb = inputs
    return reference(F.linear(feature, sw, sb), F.linear(feature, tw, tb), target, **options)


def gradients(loss, inputs):
    given = [z for z in inputs if z is not None and z.requires_grad]
    return torch.autograd.grad(loss, given)


@pytest.fixture(params=[1 << 20, 24, 1], ids=["one chunk", "two rows", "one row"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_ELEMENTS", request.param)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kappa", ["detached", "live"])
@pytest.mark.parametrize("bias", [True, False])
def test_agrees_with_stored_logits(chunks, kappa, reduction, bias):
    inputs, target = problem(bias=bias)
    options = {"kappa": kappa, "reduction": reduction, "label_smoothing": 0.1}
    want = from_logits(inputs, target, **options)
    got = uk.linear_label_transport_loss(*inputs, target, **options)
    assert torch.allclose(got, want, rtol=1e-12)
    for g, w in zip(gradients(3 * got.sum(), inputs), gradients(3 * want.sum(), inputs), strict=True):
        assert torch.allclose(g, w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("needs", [(0,), (1, 2), (3, 4), (1,), (4,), (0, 3), ()])
def test_only_what_needs_a_gradient_gets_one(chunks, needs):
    inputs, target = problem()
    inputs = [z.detach().requires_grad_(k in needs) for k, z in enumerate(inputs)]
    got = uk.linear_label_transport_loss(*inputs, target)
    want = from_logits(inputs, target)
    assert got.requires_grad == bool(needs)
    if needs:
        for g, w in zip(gradients(got, inputs), gradients(want, inputs), strict=True):
            assert torch.allclose(g, w, rtol=1e-9, atol=1e-12)


def test_half_precision_double_backward_compile():
    inputs, target = problem(dtype=torch.float32)
    half = [z.detach().bfloat16().requires_grad_() for z in inputs]
    loss = uk.linear_label_transport_loss(*half, target)
    want = uk.linear_label_transport_loss(*(z.float() for z in half), target)
    assert loss.dtype == torch.float32 and torch.allclose(loss, want)
    assert all(g.dtype == torch.bfloat16 for g in gradients(loss, half))

    small, y = problem(5, 3, 4)

    def live(*inputs):
        return uk.linear_label_transport_loss(*inputs, y, kappa="live")

    assert torch.autograd.gradcheck(live, small) and torch.autograd.gradgradcheck(live, small)
    compiled = torch.compile(live, backend="aot_eager", fullgraph=True)
    for g, w in zip(gradients(compiled(*small), small), gradients(live(*small), small), strict=True):
        assert torch.allclose(g, w)


def test_a_second_backward_gives_the_same():
    inputs, target = problem()
    loss = uk.linear_label_transport_loss(*inputs, target)
    first = [
        g.clone() for g in torch.autograd.grad(loss, inputs, torch.tensor(2.0).double(), retain_graph=True)
    ]
    again = torch.autograd.grad(loss, inputs, torch.tensor(4.0).double())
    for f, a in zip(first, again, strict=True):
        assert torch.allclose(2 * f, a, rtol=1e-12)


def test_autocast_leaves_the_kernels_types_alone():
    inputs, target = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = uk.linear_label_transport_loss(*inputs, target)
    assert got == uk.linear_label_transport_loss(*inputs, target)


X, W, B, Y = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5), torch.tensor([0, 1, 2])
BAD = {
    "widths": (lambda: uk.linear_label_transport_loss(X, W[:, :3], B, W[:, :3], B, Y), ValueError, "shape"),
    "classes": (lambda: uk.linear_label_transport_loss(X, W, B, W[:4], B, Y), ValueError, "shape"),
    "bias": (lambda: uk.linear_label_transport_loss(X, W, B[:4], W, B, Y), ValueError, "student_bias"),
    "list": (lambda: uk.linear_label_transport_loss([[0.0]], W, B, W, B, Y), TypeError, "feature"),
    "doubles": (lambda: uk.linear_label_transport_loss(X, W.double(), B, W, B, Y), TypeError, "float64"),
    "labels": (lambda: uk.linear_label_transport_loss(X, W, B, W, B, Y + 3), ValueError, "got 5 in row 2"),
    "NaN": (lambda: uk.linear_label_transport_loss(X * math.nan, W, B, W, B, Y), ValueError, "NaN"),
    "empty": (lambda: uk.linear_label_transport_loss(X[:0], W, B, W, B, Y[:0]), ValueError, "at least one"),
    "kappa": (lambda: uk.linear_label_transport_loss(X, W, B, W, B, Y, kappa="dead"), ValueError, "kappa"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(chunks, name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call()
