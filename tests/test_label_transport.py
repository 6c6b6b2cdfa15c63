"""`label_transport_loss` against the reference, and what it is said to do."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.ops import label_transport as op
from ucmkd_fast.reference.label_transport import label_transport_loss as reference


def problem(n=13, k=7, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n * 100 + k)
    s, t = (torch.randn(n, k, generator=generator, dtype=torch.float64) * scale for _ in range(2))
    y = torch.randint(k, (n,), generator=generator)
    return s.to(dtype).requires_grad_(), t.to(dtype).requires_grad_(), y


OPTIONS = [
    {"kappa": kappa, "label_smoothing": smoothing, "reduction": reduction}
    for kappa, smoothing, reduction in itertools.product(
        ("detached", "live"), (0.0, 0.1, 1.0), ("mean", "sum", "none")
    )
]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (13, 7), (6, 33), (5, 1000)], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_agrees_with_the_reference(shape, options):
    for scale in (1.0, 30.0):
        s, t, y = problem(*shape, scale)
        y[0] = -100 if shape[0] > 1 else y[0]
        want, got = (f(s, t, y, **options) for f in (reference, uk.label_transport_loss))
        assert torch.allclose(got, want, rtol=1e-11, atol=1e-12)
        weight = torch.rand_like(want)
        wants, gots = (torch.autograd.grad((v * weight).sum(), (s, t)) for v in (want, got))
        for g, w in zip(gots, wants, strict=True):
            assert torch.allclose(g, w, rtol=1e-9, atol=1e-12)
        low = uk.label_transport_loss(s.detach().float(), t.detach().float(), y, **options)
        assert torch.allclose(low.double(), want, rtol=1e-5, atol=1e-4)


def test_gradcheck_and_double_backward():
    s, t, y = problem(4, 5)
    for kappa in ("detached", "live"):

        def f(s, t, kappa=kappa):
            return uk.label_transport_loss(s, t, y, kappa=kappa, label_smoothing=0.1)

        if kappa == "live":  # detached kappa is not the derivative of a function of t
            assert torch.autograd.gradcheck(f, (s, t))
            assert torch.autograd.gradgradcheck(f, (s, t))
        assert torch.autograd.gradgradcheck(lambda s, f=f: f(s, t.detach()), (s,))


def test_what_it_does_to_the_teacher():
    """Detached kappa pushes the teacher's probability of the label down; live kappa, towards 1/e."""
    y = torch.tensor([2])
    s = torch.zeros(1, 4)
    for start in (-1.0, 4.0):
        for kappa, goal in (("detached", 0.0), ("live", 1 / math.e)):
            t = torch.tensor([[0.0, 0.0, start, 0.0]], requires_grad=True)
            p = t.softmax(1)[0, 2]
            (grad,) = torch.autograd.grad(uk.label_transport_loss(s, t, y, kappa=kappa), t)
            moved = (t - 1e-3 * grad).softmax(1)[0, 2]
            assert abs(moved - goal) < abs(p - goal)


def test_the_teachers_term_is_bounded():
    """kappa log p_T lies in [-1/e, 0] without smoothing."""
    _, t, y = problem(200, 10, 5.0)
    s = torch.full((200, 10), -1e3).double()
    s[torch.arange(200), y] = 0  # cross-entropy of the student is 0
    term = uk.label_transport_loss(s, t, y, reduction="none")
    assert (term <= 0).all() and (term >= -1 / math.e - 1e-12).all()


def test_routing_of_gradients():
    s, t, y = problem()
    assert torch.autograd.grad(uk.label_transport_loss(s, t.detach(), y), s)[0].abs().sum() > 0
    assert torch.autograd.grad(uk.label_transport_loss(s.detach(), t, y), t)[0].abs().sum() > 0
    assert not uk.label_transport_loss(s.detach(), t.detach(), y).requires_grad


def test_strides_half_precision_and_ignored_rows():
    s, t, y = problem(12, 14)
    wide = torch.randn(12, 28).double()
    for view in (wide[:, :14], wide[:, ::2], wide.T[:14].T, t[:1].expand(12, 14)):
        assert torch.allclose(uk.label_transport_loss(s, view, y), reference(s, view, y))
    for dtype in (torch.bfloat16, torch.float16):
        half = s.detach().to(dtype).requires_grad_()
        loss = uk.label_transport_loss(half, t.detach().float(), y)
        assert loss.dtype == torch.float32
        assert torch.autograd.grad(loss, half)[0].dtype == dtype
    none_left = torch.full_like(y, -100)
    assert uk.label_transport_loss(s, t, none_left).isnan()
    assert uk.label_transport_loss(s, t, none_left, reduction="sum") == 0
    assert uk.label_transport_loss(s, t, torch.where(y == 0, 3, y), ignore_index=3).isfinite()


def test_registered_compiled_transformed():
    s, t, y = problem(6, 5)
    torch.library.opcheck(op.label_transport_forward, (s, t, y, -100, 0.1, True))
    for reduction in ("mean", "sum", "none"):

        def f(s, t, reduction=reduction):
            return uk.label_transport_loss(s, t, y, kappa="live", reduction=reduction).sum()

        want = torch.autograd.grad(f(s, t), (s, t))
        got = torch.autograd.grad(torch.compile(f, backend="aot_eager", fullgraph=True)(s, t), (s, t))
        for g, w in zip(got, want, strict=True):
            assert torch.allclose(g, w)
    assert torch.allclose(torch.func.grad(f)(s.detach(), t.detach()), want[0])


def test_module():
    s, t, y = problem()
    module = uk.LabelTransportLoss(kappa="live", label_smoothing=0.2)
    assert torch.equal(module(s, t, y), uk.label_transport_loss(s, t, y, kappa="live", label_smoothing=0.2))
    assert "kappa='live'" in repr(module)


S = torch.zeros(3, 4)
Y = torch.tensor([0, 1, 2])
BAD = {
    "list": (
        lambda: uk.label_transport_loss([[0.0]], S, Y),
        TypeError,
        "student_logits must be a torch.Tensor",
    ),
    "integers": (lambda: uk.label_transport_loss(S.long(), S, Y), TypeError, "int64"),
    "classes": (lambda: uk.label_transport_loss(S, torch.zeros(3, 5), Y), ValueError, "same shape"),
    "doubles": (lambda: uk.label_transport_loss(S, S.double(), Y), TypeError, "float64 and float32"),
    "empty": (lambda: uk.label_transport_loss(S[:0], S[:0], Y[:0]), ValueError, "at least one row"),
    "one dimension": (lambda: uk.label_transport_loss(S[0], S[0], Y), ValueError, "shape"),
    "target list": (lambda: uk.label_transport_loss(S, S, [0, 1, 2]), TypeError, "target"),
    "target dtype": (lambda: uk.label_transport_loss(S, S, Y.float()), TypeError, "int64"),
    "target shape": (lambda: uk.label_transport_loss(S, S, Y[:2]), ValueError, "target must have shape"),
    "target high": (lambda: uk.label_transport_loss(S, S, Y + 2), ValueError, "got 4 in row 2"),
    "target low": (lambda: uk.label_transport_loss(S, S, Y - 1), ValueError, "got -1 in row 0"),
    "NaN": (lambda: uk.label_transport_loss(S * math.nan, S, Y), ValueError, "NaN"),
    "kappa": (lambda: uk.label_transport_loss(S, S, Y, kappa="alive"), ValueError, "did you mean 'live'"),
    "reduction": (lambda: uk.label_transport_loss(S, S, Y, reduction="avg"), ValueError, "reduction"),
    "smoothing": (
        lambda: uk.label_transport_loss(S, S, Y, label_smoothing=1.5),
        ValueError,
        "label_smoothing",
    ),
    "ignore": (lambda: uk.label_transport_loss(S, S, Y, ignore_index=1.5), TypeError, "ignore_index"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("upstream", [1.0, 2.5])
def test_a_second_backward_finds_the_gradients_of_the_first_whatever_became_of_those(reduction, upstream):
    s, t, y = problem()
    loss = uk.label_transport_loss(s, t, y, reduction=reduction)
    upstream = torch.tensor(upstream).double()
    want = torch.autograd.grad(reference(s, t, y, reduction=reduction), (s, t), upstream)
    for _ in range(3):
        got = torch.autograd.grad(loss, (s, t), upstream, retain_graph=True)
        for g, w in zip(got, want, strict=True):
            assert torch.allclose(g, w, rtol=1e-11, atol=1e-12)
            g.zero_()  # handed over: the caller's own
