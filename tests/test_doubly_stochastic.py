"""`doubly_stochastic` against the log domain in float64, against what other libraries compute, and its refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.ops import doubly_stochastic as op
from ucmkd_fast.reference.doubly_stochastic import doubly_stochastic as reference

SHAPES = [
    (1, 1),
    (1, 5),
    (5, 1),
    (2, 2),
    (3, 3),
    (4, 4),
    (4, 7),
    (9, 3),
    (16, 16),
    (27, 28),
    (32, 32),
    (40, 20),
]
OPTIONS = [
    {"start": start, "order": order, "eps": eps}
    for start, order, eps in itertools.product(op.STARTS, op.ORDERS, (0.0, 1e-6))
]


def logits(kind, n, m, batch=19):
    """A batch (batch, n, m) in float64, of numbers that float32 holds."""
    generator = torch.Generator().manual_seed(100 * n + m)

    def normal(scale=1.0, *shape):
        return torch.randn(*(shape or (batch, n, m)), generator=generator) * scale

    x = {
        "normal": lambda: normal(),
        "x 10": lambda: normal(10.0),
        "x 100": lambda: normal(100.0),
        "x 1e4": lambda: normal(1e4),
        "x 1e30": lambda: normal(1e30),
        "rows far apart": lambda: normal() + normal(30.0, batch, n, 1),
        "all far apart": lambda: normal() + normal(1e4, batch, n, 1) + normal(1e4, batch, 1, m),
        "permutation": lambda: 50 * torch.eye(max(n, m))[:n, :m].expand(batch, n, m) + normal(),
        "cross": lambda: normal(),
        "cross, far": lambda: normal(),
        "masked": lambda: normal(3.0),
    }[kind]()
    if kind == "cross":  # only the first row and column: no doubly stochastic matrix is there
        x[:, 1:, 1:] = -math.inf
    elif kind == "cross, far":
        x[:, 1:, 1:] -= 200
    elif kind == "masked":
        row, column = torch.arange(n)[:, None], torch.arange(m)
        keep = (
            (torch.rand(batch, n, m, generator=generator) > 0.6) | (column % n == row) | (row % m == column)
        )
        x = torch.where(keep, x, -math.inf)
    return x.double()


KINDS = [
    "normal", "x 10", "x 100", "x 1e4", "x 1e30", "rows far apart", "all far apart", "permutation", "cross",
    "cross, far", "masked",
]  # fmt: skip


def error(got, want):
    """The largest; inf where one of them is no number."""
    difference = (got.double() - want).abs().max().item() if want.numel() else 0.0
    return difference if math.isfinite(difference) else math.inf


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_agree_with_the_log_domain_in_float64(shape, kind):
    x = logits(kind, *shape)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    for options in OPTIONS:
        for n_iter in (1, 20):
            truth = x.clone().requires_grad_()
            want = reference(truth, n_iter, **options)
            assert want.isfinite().all()
            (want_grad,) = torch.autograd.grad(want, truth, weight)
            for dtype, limit in ((torch.float32, 4e-6), (torch.float64, 2e-11)):
                leaf = x.to(dtype).requires_grad_()
                got = uk.doubly_stochastic(leaf, n_iter, **options)
                (grad,) = torch.autograd.grad(got, leaf, weight.to(dtype))
                assert got.dtype == grad.dtype == dtype
                assert error(got, want) <= limit, (dtype, n_iter, options)
                assert error(grad, want_grad) <= limit * weight.abs().max(), (dtype, n_iter, options)


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (16, 16), (64, 64)], ids=str)
def test_gradients_of_ordinary_logits_are_exact_to_1e_6(shape):
    x = logits("normal", *shape, batch=64)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    truth, leaf = x.clone().requires_grad_(), x.float().requires_grad_()
    (want,) = torch.autograd.grad(reference(truth), truth, weight)
    (got,) = torch.autograd.grad(uk.doubly_stochastic(leaf), leaf, weight.float())
    assert error(got, want) <= 1e-6


@pytest.mark.parametrize("kind", ["cross", "cross, far", "x 100", "masked"])
@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (36, 36)], ids=str)
def test_many_iterations_leave_the_range_of_the_dtype_and_stay_right(shape, kind):
    """Scalings of a matrix without support grow by a factor per iteration: the log domain takes over."""
    x = logits(kind, *shape, batch=5)
    for options in OPTIONS[::3]:
        truth = x.clone().requires_grad_()
        want = reference(truth, 400, **options)
        (want_grad,) = torch.autograd.grad(want.square().sum(), truth)
        for dtype, limit in ((torch.float32, 3e-6), (torch.float64, 1e-10)):
            leaf = x.to(dtype).requires_grad_()
            got = uk.doubly_stochastic(leaf, 400, **options)
            (grad,) = torch.autograd.grad(got.square().sum(), leaf)
            assert error(got, want) <= limit and error(grad, want_grad) <= 4 * limit, options


def test_sums():
    square = uk.doubly_stochastic(logits("normal", 6, 6), 50)
    assert torch.allclose(square.sum(-1), torch.ones(19, 6).double())
    assert torch.allclose(square.sum(-2), torch.ones(19, 6).double(), atol=1e-9)
    tall = uk.doubly_stochastic(logits("normal", 6, 3), 50, order="rows-columns")
    assert torch.allclose(tall.sum(-2), torch.full((19, 3), 2.0).double())
    assert torch.allclose(tall.sum(-1), torch.ones(19, 6).double(), atol=1e-9)
    masked = logits("masked", 5, 5)
    for options in OPTIONS:
        assert (uk.doubly_stochastic(masked, **options)[masked == -math.inf] == 0).all()


def test_equals_sinkhorn():
    x = logits("normal", 12, 12, batch=3)
    one = torch.ones(12).double()
    plan = uk.sinkhorn(-x, one, one, reg=1.0, max_iter=20).plan()
    assert torch.allclose(uk.doubly_stochastic(x), plan, rtol=1e-11, atol=1e-13)


# What other libraries compute, restated. Entries of ordinary logits; all but the last digits.


def as_in_the_paper(x, n_iter, eps):
    """arXiv 2512.24880, Equation 9; lucidrains' hyper-connections, whose shift by columns changes nothing."""
    p = x.exp()
    for _ in range(n_iter):
        p = p / p.sum(-2, keepdim=True)
        p = p / p.sum(-1, keepdim=True)
    return p


def as_in_transformer_engine(x, n_iter, eps):
    """Potentials of rows, then of columns, in the log domain."""
    f, g = x.new_zeros(x.shape[:-1]), x.new_zeros((*x.shape[:-2], x.shape[-1]))
    for _ in range(n_iter):
        f = -torch.logsumexp(x + g[..., None, :], -1)
        g = -torch.logsumexp(x + f[..., :, None], -2)
    return (f[..., :, None] + x + g[..., None, :]).exp()


def as_in_tile_kernels(x, n_iter, eps):
    """TileKernels, DeepSeek-V4's inference, Liger, Megatron: eps to the softmax and to each sum."""
    p = x.softmax(-1) + eps
    p = p / (p.sum(-2, keepdim=True) + eps)
    for _ in range(n_iter - 1):
        p = p / (p.sum(-1, keepdim=True) + eps)
        p = p / (p.sum(-2, keepdim=True) + eps)
    return p


def as_in_early_megatron(x, n_iter, eps):
    """Rows first, from exp(x - largest of the row), eps in each sum."""
    p = (x - x.amax(-1, keepdim=True)).exp()
    for _ in range(n_iter):
        p = p / (p.sum(-1, keepdim=True) + eps)
        p = p / (p.sum(-2, keepdim=True) + eps)
    return p


def shifted_by_rows(x, n_iter, **options):
    return uk.doubly_stochastic(x - x.amax(-1, keepdim=True), n_iter, **options)


PRESETS = {
    "paper": (as_in_the_paper, uk.doubly_stochastic, {}),
    "TransformerEngine": (as_in_transformer_engine, uk.doubly_stochastic, {"order": "rows-columns"}),
    "TileKernels": (
        as_in_tile_kernels,
        uk.doubly_stochastic,
        {"start": "softmax", "order": "rows-columns", "eps": 1e-6},
    ),
    "early Megatron": (as_in_early_megatron, shifted_by_rows, {"order": "rows-columns", "eps": 1e-6}),
}


@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize("n_iter", [1, 2, 20])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_compute_what_others_do_to_the_last_digits(name, n_iter, scale):
    theirs, ours, options = PRESETS[name]
    eps = options.get("eps", 0.0)
    for dtype, limit in ((torch.float64, 4e-15), (torch.float32, 2e-6)):
        x = (logits("normal", 4, 4, batch=300) * scale).to(dtype).requires_grad_()
        want, got = theirs(x, n_iter, eps), ours(x, n_iter, **options)
        assert error(got, want.double()) <= limit
        want_grad, got_grad = (torch.autograd.grad(p.square().sum(), x)[0] for p in (want, got))
        assert error(got_grad, want_grad.double()) <= 4 * limit
        if name == "paper":
            continue
        others = (uk.doubly_stochastic(x, n_iter), uk.doubly_stochastic(x, n_iter, order="rows-columns"))
        differs = [error(other, want.double()) > 100 * limit for other in others]
        assert differs[0] or n_iter > 2  # the options matter


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_gradcheck_and_double_backward(options):
    for x in (
        logits("normal", 3, 3, batch=2),
        logits("masked", 3, 4, batch=2),
        logits("x 10", 2, 2, batch=1),
    ):
        # -inf has no neighbours to take differences with
        keep = x > -math.inf

        def f(z, keep=keep, x=x):
            return uk.doubly_stochastic(torch.where(keep, z, x), 4, **options)

        leaf = torch.where(keep, x, 0).requires_grad_()
        assert torch.autograd.gradcheck(f, (leaf,))
        assert torch.autograd.gradgradcheck(f, (leaf,))


def test_registered_compiled_transformed():
    x = logits("normal", 4, 4, batch=6).requires_grad_()
    weight = torch.randn_like(x)
    arguments = (20, 1e-6, "softmax", "rows-columns")
    torch.library.opcheck(op.doubly_stochastic_forward, (x, *arguments))
    torch.library.opcheck(op.doubly_stochastic_backward, (x, weight.requires_grad_(), *arguments))
    weight = weight.detach()
    for options in OPTIONS:

        def f(x, options=options):
            return uk.doubly_stochastic(x, **options)

        def loss(x, f=f):
            return (f(x) * weight[0]).sum()

        compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), f(x))
        want, got = (torch.autograd.grad(g(x), x, weight)[0] for g in (f, compiled))
        assert torch.equal(got, want)
        data = x.detach()
        assert torch.allclose(torch.func.vmap(f, in_dims=2)(data), f(data.movedim(2, 0)))
        assert torch.allclose(torch.func.vmap(f)(data), f(data))
        each = torch.stack([torch.func.grad(loss)(one) for one in data])
        assert torch.allclose(torch.func.vmap(torch.func.grad(loss))(data), each)
        whole = torch.autograd.functional.hessian(loss, data[0])
        assert torch.allclose(torch.func.hessian(loss)(data[0]), whole)
        assert torch.allclose(torch.func.jacrev(torch.func.grad(loss))(data[0]), whole)
        tangent = torch.func.jvp(f, (data,), (weight,))[1]
        (back,) = torch.autograd.grad(f(x), x, torch.ones_like(x) * weight.flip(0))
        assert torch.allclose((tangent * weight.flip(0)).sum(), (back * weight).sum())


def test_compile_of_changing_batches():
    f = torch.compile(lambda x: uk.doubly_stochastic(x, 5), backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 5, 7):
        x = logits("normal", 4, 4, batch=batch)
        assert torch.equal(f(x), uk.doubly_stochastic(x, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = logits("x 10", 4, 4).to(dtype).requires_grad_()
    wide = x.detach().float().requires_grad_()
    got, want = uk.doubly_stochastic(x), uk.doubly_stochastic(wide)
    assert got.dtype == dtype and torch.equal(got, want.to(dtype))
    weight = torch.randn(x.shape).to(dtype)
    grads = [torch.autograd.grad(y, z, weight.to(y.dtype))[0] for y, z in ((got, x), (want, wide))]
    assert grads[0].dtype == dtype and torch.equal(grads[0], grads[1].to(dtype))


def test_leading_dimensions_and_strides():
    x = logits("normal", 4, 6, batch=30)
    want = uk.doubly_stochastic(x)
    assert torch.equal(uk.doubly_stochastic(x[3]), want[3])
    assert torch.equal(uk.doubly_stochastic(x.view(2, 3, 5, 4, 6)), want.view(2, 3, 5, 4, 6))
    spread = torch.zeros(30, 8, 12).double()
    spread[:, ::2, ::2] = x
    assert torch.equal(uk.doubly_stochastic(spread[:, ::2, ::2]), want)
    assert torch.equal(uk.doubly_stochastic(x.mT.contiguous().mT), want)
    assert torch.equal(uk.doubly_stochastic(x[:1].expand(5, 4, 6)), want[:1].expand(5, 4, 6))
    leaf = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(
        uk.doubly_stochastic(leaf).mT.sum(-1)[:, 0].sum(), leaf
    )  # an expanded gradient
    (truth,) = torch.autograd.grad(reference(leaf).mT.sum(-1)[:, 0].sum(), leaf)
    assert torch.allclose(got, truth, atol=1e-12)


def test_an_empty_batch():
    x = torch.zeros(0, 4, 4, requires_grad=True)
    got = uk.doubly_stochastic(x)
    assert got.shape == (0, 4, 4)
    assert torch.autograd.grad(got.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("shape", [(4, 4), (9, 9), (40, 40)], ids=str)
def test_a_matrix_does_not_know_of_its_neighbours_or_of_threads(shape):
    x = torch.cat([logits(kind, *shape, batch=11) for kind in KINDS]).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))].requires_grad_()
    weight = torch.randn(x.shape)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = uk.doubly_stochastic(x, 150)
            found.append((y, torch.autograd.grad(y, x, weight)[0]))
    finally:
        torch.set_num_threads(before)
    for y, grad in found[1:]:
        assert torch.equal(y, found[0][0]) and torch.equal(grad, found[0][1])
    for k in (0, 1, 17, len(x) - 1):
        assert torch.equal(uk.doubly_stochastic(x[k], 150), found[0][0][k])


X = torch.zeros(3, 4, 4)


def with_value(value, *place):
    x = X.clone()
    x[place] = value
    return x


BAD = {
    "list": (lambda: uk.doubly_stochastic([[0.0]]), TypeError, "logits must be a torch.Tensor of shape"),
    "integers": (lambda: uk.doubly_stochastic(X.long()), TypeError, "int64"),
    "sparse": (lambda: uk.doubly_stochastic(X.to_sparse()), TypeError, "dense"),
    "one dimension": (lambda: uk.doubly_stochastic(X[0, 0]), ValueError, "shape"),
    "no rows": (lambda: uk.doubly_stochastic(X[:, :0]), ValueError, "at least one row and one column"),
    "no columns": (lambda: uk.doubly_stochastic(X[..., :0]), ValueError, "at least one row and one column"),
    "n_iter 0": (lambda: uk.doubly_stochastic(X, 0), ValueError, "n_iter must be an integer >= 1"),
    "n_iter 2.5": (lambda: uk.doubly_stochastic(X, 2.5), TypeError, "n_iter"),
    "n_iter huge": (lambda: uk.doubly_stochastic(X, 1 << 30), ValueError, "n_iter must be at most"),
    "eps < 0": (lambda: uk.doubly_stochastic(X, eps=-1e-6), ValueError, "eps must be a finite number >= 0"),
    "eps > 1": (lambda: uk.doubly_stochastic(X, eps=2.0), ValueError, r"eps must lie in \[0, 1\]"),
    "eps NaN": (lambda: uk.doubly_stochastic(X, eps=math.nan), ValueError, "eps"),
    "start": (lambda: uk.doubly_stochastic(X, start="soft-max"), ValueError, "did you mean 'softmax'"),
    "order": (lambda: uk.doubly_stochastic(X, order="columns"), ValueError, "order must be one of"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    "options", [{}, {"start": "softmax", "eps": 1e-6}, {"order": "rows-columns"}], ids=str
)
@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 5, 7), (3, 40, 50)], ids=str)
def test_bad_logits(shape, options):
    for value, word in ((math.nan, "NaN"), (math.inf, r"\+inf")):
        x = torch.zeros(shape)
        x[1, 2, 3] = value
        with pytest.raises(ValueError, match=rf"got {word} at logits\[1, 2, 3\]"):
            uk.doubly_stochastic(x, **options)
    for place, words in (
        ((2, 1), "row 1 of logits.2. has none"),
        ((2, slice(None), 1), "column 1 of logits.2."),
    ):
        x = torch.zeros(shape)
        x[place] = -math.inf
        with pytest.raises(ValueError, match=words):
            uk.doubly_stochastic(x, **options)
