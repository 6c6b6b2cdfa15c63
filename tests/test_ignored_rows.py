"""Rows that are ignored count for nothing, whatever they hold; where all are, the mean is NaN and its gradient 0, as of
`F.cross_entropy`."""

import pytest
import torch
import torch.nn.functional as F

import ucmkd_fast as uk
from tests.cuda_harness import model

IGNORED = torch.full((5,), -100)
LOGITS = [torch.randn(5, 3, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
HEADS = [torch.randn(3, 4, generator=torch.Generator().manual_seed(k)) for k in (2, 3)]
FEATURE = torch.randn(5, 4, generator=torch.Generator().manual_seed(4))


def plain(target, **options):
    return lambda s, t: uk.label_transport_loss(s, t, target, **options), LOGITS


def linear(target, **options):
    def loss(z, student, teacher):
        return uk.linear_label_transport_loss(z, student, None, teacher, None, target, **options)

    return loss, [FEATURE, *HEADS]


def eager(loss, inputs):
    inputs = [z.clone().requires_grad_() for z in inputs]
    return torch.autograd.grad(loss(*inputs), inputs)


def with_a_graph(loss, inputs):
    """A gradient that may be differentiated again."""
    inputs = [z.clone().requires_grad_() for z in inputs]
    first = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    assert all(torch.isfinite(g).all() for g in second)
    return first


def transformed(loss, inputs):
    return torch.func.grad(loss, tuple(range(len(inputs))))(*inputs)


def compiled(loss, inputs):
    torch._dynamo.reset()
    return eager(torch.compile(loss, backend="aot_eager"), inputs)


def on_the_model(loss, inputs):
    with model():
        return eager(loss, inputs)


WAYS = [eager, with_a_graph, transformed, compiled, on_the_model]


@pytest.mark.parametrize("kappa", ["detached", "live"])
@pytest.mark.parametrize("form", [plain, linear])
@pytest.mark.parametrize("way", WAYS)
def test_the_mean_of_no_rows_is_nan_and_its_gradient_0(way, form, kappa):
    loss, inputs = form(IGNORED, kappa=kappa)
    assert torch.isnan(loss(*inputs)) and torch.isnan(F.cross_entropy(LOGITS[0], IGNORED))
    for gradient in way(loss, inputs):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    logits = LOGITS[0].clone().requires_grad_()
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits, IGNORED), logits)
    assert torch.equal(theirs, torch.zeros_like(theirs))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("form", [plain, linear])
@pytest.mark.parametrize("way", WAYS)
def test_other_reductions_of_no_rows_are_0(way, form, reduction):
    loss, inputs = form(IGNORED, reduction=reduction)
    assert loss(*inputs).abs().sum() == 0
    for gradient in way(lambda *z: loss(*z).sum(), inputs):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("held", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("way", WAYS)
def test_an_ignored_row_may_hold_anything(way, held):
    target = torch.tensor([0, 1, -100, 2, -100])
    loss, inputs = plain(target)
    want = eager(loss, inputs)
    spoilt = [z.clone() for z in inputs]
    for z in spoilt:
        z[2, 1] = held
    for got, expected in zip(way(loss, spoilt), want, strict=True):
        assert torch.allclose(got, expected, atol=1e-7)
