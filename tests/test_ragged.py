"""Batches and ragged lists of `sinkhorn_loss`: equal to a loop over their problems, values and gradients."""

from __future__ import annotations

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.reference import sinkhorn as reference

METRICS = ["cosine", "chordal", "l2", "l1", "sqeuclidean"]
SIZES = [(3, 70), (40, 9), (0, 5), (1, 1), (130, 95), (7, 0), (16, 16)]  # largest in the middle, two empty


def reg_of(metric: str) -> float:
    return {"cosine": 0.1, "chordal": 0.1}.get(metric, 2.0)


def problem(sizes=SIZES, d=11, dtype=torch.float64, masses=None, seed=3):
    """x, y, a, b, offsets; masses None, "random" or "zeros"."""
    rand = torch.Generator().manual_seed(seed)
    n, m = (torch.tensor([0, *(s[side] for s in sizes)]).cumsum(0) for side in (0, 1))
    x, y = (torch.randn(int(k[-1]), d, generator=rand, dtype=torch.float64) for k in (n, m))
    y[: min(len(x), len(y)) : 5] = x[: min(len(x), len(y)) : 5]  # distance 0 where both fall into one problem
    a = b = None
    if masses:
        a, b = (torch.rand(len(z), generator=rand, dtype=torch.float64) + 0.1 for z in (x, y))
        if masses == "zeros":
            a[4::9], b[3::7] = 0, 0
        for at, mass in ((n, a), (m, b)):
            for k in range(len(sizes)):
                part = mass[at[k] : at[k + 1]]
                part /= part.sum() if len(part) else 1
    tensors = [z if z is None else z.to(dtype).requires_grad_() for z in (x, y, a, b)]
    return *tensors, (n, m)


def loop(x, y, a, b, offsets, one, **options):
    losses = []
    for k in range(len(offsets[0]) - 1):
        rows, cols = (slice(int(o[k]), int(o[k + 1])) for o in offsets)
        if rows.start == rows.stop or cols.start == cols.stop:
            losses.append(x.new_zeros(()))
            continue
        masses = [t if t is None else t[r] for t, r in ((a, rows), (b, cols))]
        losses.append(one(x[rows], y[cols], *masses, **options))
    return torch.stack(losses)


def gradients(losses, inputs):
    weights = torch.linspace(0.5, 2, len(losses), dtype=losses.dtype)
    return torch.autograd.grad((losses * weights).sum(), [t for t in inputs if t is not None])


def close(got, want, tolerance):
    assert got.shape == want.shape and torch.isfinite(got).all()
    error, scale = (got.double() - want.double()).abs().max(), want.double().abs().max()
    assert error <= tolerance * scale, (error / scale).item()


@pytest.mark.parametrize("objective", ["transport", "regularized", "divergence"])
@pytest.mark.parametrize("metric", METRICS)
def test_ragged_equals_the_reference_problem_by_problem(metric, objective):
    x, y, a, b, offsets = problem(masses="random")
    options = {"metric": metric, "objective": objective, "reg": reg_of(metric), "max_iter": 10}
    want = loop(x, y, a, b, offsets, reference.sinkhorn_loss, **options)
    wants = gradients(want, (x, y, a, b))
    got = uk.sinkhorn_loss(x, y, a, b, offsets=offsets, **options)
    close(got, want, 1e-11)
    for g, w in zip(gradients(got, (x, y, a, b)), wants, strict=True):
        close(g, w, 1e-8)
    low = [t.detach().float().requires_grad_() for t in (x, y, a, b)]
    got = uk.sinkhorn_loss(*low, offsets=offsets, **options)
    close(got, want, 2e-5)
    for g, w in zip(gradients(got, low), wants, strict=True):
        close(g, w, 2e-3 if metric in ("l2", "chordal") else 2e-4)


@pytest.mark.parametrize("grad", ["unrolled", "implicit", "envelope"])
@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("masses", [None, "zeros"])
def test_ragged_equals_the_loop(grad, objective, masses):
    x, y, a, b, offsets = problem(masses=masses)
    if grad == "envelope" and objective == "transport":
        a, b = (t if t is None else t.detach() for t in (a, b))
    options = {
        "grad": grad,
        "objective": objective,
        "metric": "l2",
        "reg": 2.0,
        "max_iter": 400,
        "tol": 1e-12,
    }
    inputs = [t for t in (x, y, a, b) if t is not None and t.requires_grad]
    want = loop(x, y, a, b, offsets, uk.sinkhorn_loss, **options)
    got = uk.sinkhorn_loss(x, y, a, b, offsets=offsets, **options)
    close(got, want, 1e-12)
    for g, w in zip(gradients(got, inputs), gradients(want, inputs), strict=True):
        close(g, w, 1e-8)


def test_a_range_that_plain_sums_do_not_reach():
    """Some problems of the batch need the log-domain adjoint, others do not."""
    sizes = [(20, 30), (33, 20), (12, 12)]
    x, y, *_, offsets = problem(sizes)
    x.data[20:53] *= 6
    options = {"metric": "sqeuclidean", "reg": 1.0, "max_iter": 40}
    want = loop(x, y, None, None, offsets, reference.sinkhorn_loss, **options)
    wants = gradients(want, (x, y))
    low = [t.detach().float().requires_grad_() for t in (x, y)]
    got = uk.sinkhorn_loss(*low, offsets=offsets, **options)
    close(got, want, 1e-5)
    for g, w in zip(gradients(got, low), wants, strict=True):
        close(g, w, 1e-3)


@pytest.mark.parametrize("shared", [False, True])
def test_batch_equals_the_loop(shared):
    x, y = (torch.randn(6, k, 9, dtype=torch.float64, requires_grad=True) for k in (20, 33))
    a, b = (
        torch.rand(*(() if shared else (6,)), k, dtype=torch.float64).softmax(-1).requires_grad_()
        for k in (20, 33)
    )
    for objective in ("transport", "regularized", "divergence"):
        options = {"objective": objective, "max_iter": 30}
        got = uk.sinkhorn_loss(x, y, a, b, **options)
        want = torch.stack([
            uk.sinkhorn_loss(x[k], y[k], a if shared else a[k], b if shared else b[k], **options) for k in range(6)
        ])  # fmt: skip
        close(got, want, 1e-12)
        for g, w in zip(gradients(got, (x, y, a, b)), gradients(want, (x, y, a, b)), strict=True):
            close(g, w, 1e-10)


def test_strides_half_precision_and_only_what_is_needed():
    x = torch.randn(9, 4, 20).permute(1, 2, 0).to(torch.bfloat16).requires_grad_()
    y = torch.randn(4, 15, 9)
    uk.sinkhorn_loss(x, y).sum().backward()
    assert x.grad.dtype == torch.bfloat16 and y.grad is None
    want = [uk.sinkhorn_loss(x[k], y[k]) for k in range(4)]
    assert torch.allclose(uk.sinkhorn_loss(x, y), torch.stack(want), rtol=1e-5)
    with torch.no_grad():
        assert not uk.sinkhorn_loss(x, y).requires_grad


def test_results_and_warm_starts():
    x, y, *_, offsets = problem()
    first = uk.sinkhorn_loss(x, y, offsets=offsets, max_iter=300, tol=1e-9, return_result=True)
    assert first.value.shape == (7,) and first.n_iter.tolist()[2] == 0 and bool(first.converged.all())
    f, g = first.potentials
    assert f.shape == (len(x),) and g.shape == (len(y),)
    plans = first.plans()
    assert [tuple(p.shape) for p in plans] == SIZES
    for plan, (n, m) in zip(plans, SIZES, strict=True):
        if n and m:
            assert torch.allclose(plan.sum(1), torch.full((n,), 1 / n).double())
    with pytest.raises(TypeError, match="plans"):
        first.plan()
    again = uk.sinkhorn_loss(
        x, y, offsets=offsets, max_iter=300, tol=1e-9, init=first.potentials, return_result=True
    )
    assert (again.n_iter <= 1).all()
    batch = uk.sinkhorn_loss(x[:40].view(4, 10, 11), y[:40].view(4, 10, 11), return_result=True)
    assert batch.plan().shape == (4, 10, 10) and batch.potentials[0].shape == (4, 10)
    assert torch.allclose(batch.plan().sum((1, 2)), torch.ones(4).double())
    warm = uk.sinkhorn_loss(
        x[:40].view(4, 10, 11), y[:40].view(4, 10, 11), init=batch.potentials, max_iter=1, return_result=True
    )
    assert (warm.marginal_error <= batch.marginal_error + 1e-12).all()


def test_many_problems_on_any_number_of_threads_give_the_same_numbers():
    sizes = [(int(n), int(m)) for n, m in torch.randint(1, 60, (80, 2))]
    x, y, *_, offsets = problem(sizes, dtype=torch.float32)
    outcomes = []
    threads = torch.get_num_threads()
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        loss = uk.sinkhorn_loss(x, y, offsets=offsets)
        outcomes.append((loss, *gradients(loss, (x, y))))
    torch.set_num_threads(threads)
    for other in outcomes[1:]:
        for g, w in zip(other, outcomes[0], strict=True):
            assert torch.equal(g, w)


def test_second_derivatives_and_compilation():
    x, y, *_, offsets = problem([(4, 5), (0, 2), (3, 3)], d=3)

    def f(x, y):
        return uk.sinkhorn_loss(x, y, offsets=offsets, metric="sqeuclidean", reg=2.0, max_iter=5)

    assert torch.autograd.gradgradcheck(f, (x, y))
    z = torch.randn(2, 5, 3)

    def g(z):
        return uk.sinkhorn_loss(torch.tanh(z), z[:, :4], max_iter=5)

    assert torch.allclose(torch.compile(g, backend="aot_eager")(z), g(z), rtol=1e-5)


x = torch.ones(6, 2)
three = torch.tensor([0, 2, 6])
BAD = {
    "no pair": (lambda: uk.sinkhorn_loss(x, x, offsets=three), TypeError, "pair"),
    "list": (lambda: uk.sinkhorn_loss(x, x, offsets=([0, 6], three)), TypeError, "x_offsets"),
    "int32": (lambda: uk.sinkhorn_loss(x, x, offsets=(three, three.int())), TypeError, "y_offsets must be an int64"),
    "short": (lambda: uk.sinkhorn_loss(x, x, offsets=(three, torch.tensor([0, 5]))), ValueError, "ascend from 0"),
    "back": (lambda: uk.sinkhorn_loss(x, x, offsets=(torch.tensor([0, 4, 2, 6]), three)), ValueError, "ascend"),
    "counts": (lambda: uk.sinkhorn_loss(x, x, offsets=(three, torch.tensor([0, 6]))), ValueError, "equally many"),
    "batch": (lambda: uk.sinkhorn_loss(x[None], x[None], offsets=(three, three)), ValueError, "flat x"),
    "one batch": (lambda: uk.sinkhorn_loss(x[None], x), ValueError, "batches of equally many"),
    "mass": (lambda: uk.sinkhorn_loss(x, x, x[:, 0] / 6, offsets=(three, three)), ValueError, "problem 0 of the"),
    "flat mass": (lambda: uk.sinkhorn_loss(x, x, x[:4, 0], offsets=(three, three)), ValueError, "a must have shape"),
    "divergence": (lambda: uk.sinkhorn_loss(x[None], x[None], objective="divergence", return_result=True),
                   ValueError, "return_result"),
    "functorch": (lambda: torch.func.grad(lambda z: uk.sinkhorn_loss(z, x, offsets=(three, three)).sum())(x),
                  NotImplementedError, "functorch"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call()
