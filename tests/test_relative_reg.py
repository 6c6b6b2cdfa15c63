"""``reg_scale="mean"``: reg as a factor of the mean cost, equal to that reg given in units of the cost."""

from __future__ import annotations

import pytest
import torch
from cuda_harness import build, model

import ucmkd_fast as uk
from ucmkd_fast.data.warm_start import WarmStart
from ucmkd_fast.ops.refusals import refusal
from ucmkd_fast.reference import sinkhorn as reference

pytestmark = pytest.mark.usefixtures("one_thread")

METRICS = ["cosine", "chordal", "l2", "l1", "sqeuclidean"]
OBJECTIVES = ["transport", "regularized", "divergence"]
OFFSETS = torch.tensor([0, 5, 5, 20]), torch.tensor([0, 7, 7, 15])
PARTS = (slice(0, 5), slice(0, 7)), (slice(5, 20), slice(7, 15))
LABELS = torch.arange(20) % 3, torch.arange(15) % 3
BUDGET = 6000  # bytes: panels
needs_model = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler for the model of a GPU")


def problem():
    """Features and masses, float64 leaves; the scale of the features is not that of unit costs."""
    x, y = (30 * torch.randn(n, 8, dtype=torch.float64) for n in (20, 15))
    a, b = (torch.rand(n, dtype=torch.float64).softmax(0) for n in (20, 15))
    return [z.requires_grad_() for z in (x, y, a, b)]


def mean(x, y, metric, W=None) -> float:
    """Of the finite costs, by the reference."""
    C = reference.cost(x, y, metric).detach()
    if W is not None:
        C = C + W.detach()[:, LABELS[1]]
    return C[C.isfinite()].mean().item()


def same(got, want, inputs) -> None:
    """Values and gradients."""
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
    pairs = [torch.autograd.grad(v.sum(), inputs, retain_graph=True) for v in (got, want)]
    for g, w in zip(*pairs, strict=True):
        assert torch.allclose(g, w, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("budget", [None, BUDGET], ids=["one matrix", "panels"])
def test_one_problem(metric, objective, budget):
    x, y, a, b = problem()
    options = {"metric": metric, "objective": objective, "max_iter": 30}
    reg = 0.1 * mean(x, y, metric)
    for given in ((x, y), (x, y, a, b)):
        got = uk.sinkhorn_loss(*given, reg_scale="mean", memory_budget=budget, **options)
        same(got, uk.sinkhorn_loss(*given, reg=reg, **options), given)
    module = uk.FeatureAlignmentLoss(reg_scale="mean", **options)
    same(module(x, y), uk.sinkhorn_loss(x, y, reg=reg, **options), (x, y))
    assert "reg_scale='mean'" in repr(module)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("metric", METRICS)
def test_each_problem_of_a_batch_has_a_mean_of_its_own(metric, objective):
    x, y, *_ = problem()
    options = {"metric": metric, "objective": objective, "max_iter": 30}
    with torch.no_grad():
        x[10:] *= 5

    def each(pairs):
        return torch.stack(
            [uk.sinkhorn_loss(p, q, reg=0.1 * mean(p, q, metric), **options) for p, q in pairs]
        )

    batch = x.view(2, 10, 8), y[:14].view(2, 7, 8)
    same(uk.sinkhorn_loss(*batch, reg_scale="mean", **options), each(zip(*batch, strict=True)), (x, y))
    got = uk.sinkhorn_loss(x, y, offsets=OFFSETS, reg_scale="mean", **options)
    assert got[1] == 0
    same(got[::2], each([(x[p], y[q]) for p, q in PARTS]), (x, y))


@pytest.mark.parametrize("forbidden", [False, True], ids=["finite", "a class is forbidden to some"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_term_by_class_is_in_the_mean_and_forbidden_pairs_are_not(metric, forbidden):
    x, y, *_ = problem()
    W = 40 * torch.rand(20, 3, dtype=torch.float64)
    if forbidden:
        W[::4, 1] = torch.inf
    W.requires_grad_()
    options = {"metric": metric, "class_cost": W, "y_labels": LABELS[1], "max_iter": 20}
    want = uk.sinkhorn_loss(x, y, reg=0.1 * mean(x, y, metric, W), **options)
    for budget in (None, BUDGET):
        got = uk.sinkhorn_loss(x, y, reg_scale="mean", memory_budget=budget, **options)
        same(got, want, (x, y, W))
    by_batch = {**options, "class_cost": W[None], "y_labels": LABELS[1][None]}
    same(uk.sinkhorn_loss(x[None], y[None], reg_scale="mean", **by_batch)[0], want, (x, y, W))


@pytest.mark.parametrize("objective", ["transport", "regularized"])
@pytest.mark.parametrize("beta", [float("inf"), 3.0])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_class_by_class_one_mean_serves_all_classes(metric, beta, objective):
    x, y, *_ = problem()
    options = {"classes": 3, "beta": beta, "metric": metric, "objective": objective, "max_iter": 25}
    W = torch.zeros(20, 3, dtype=torch.float64).masked_fill(LABELS[0][:, None] != torch.arange(3), beta)
    want = uk.class_conditional_loss(x, y, *LABELS, reg=0.1 * mean(x, y, metric, W), **options)
    same(uk.class_conditional_loss(x, y, *LABELS, reg_scale="mean", **options), want, (x, y))
    result = uk.class_conditional_loss(x, y, *LABELS, reg_scale="mean", return_result=True, **options)
    same(result.value if objective == "transport" else result.value_regularized, want, (x, y))


def test_sinkhorn_on_a_cost():
    x, y, a, b = problem()
    C = reference.cost(x, y, "sqeuclidean").detach()
    C[3, 4] = C[0, 0] = torch.inf
    C.requires_grad_()
    got, want = (
        uk.sinkhorn(C, a, b, reg_scale="mean"),
        uk.sinkhorn(C, a, b, reg=0.1 * C[C.isfinite()].mean().item()),
    )
    assert abs(got.reg - want.reg) < 1e-12 * want.reg
    for one, other in ((got.value, want.value), (got.value_regularized, want.value_regularized)):
        same(one, other, (C, a, b))
    same(got.plan().square(), want.plan().square(), (C, a, b))
    same(got.potentials[0], want.potentials[0], (C, a, b))


@pytest.mark.parametrize("kind", ["batch", "list", "cost"])
def test_results_are_in_units_of_the_cost(kind):
    x, y, *_ = problem()
    options = {"reg_scale": "mean", "tol": 1e-9, "max_iter": 5000}
    if kind == "cost":
        C = torch.stack([torch.cdist(x, y), 7 * torch.cdist(x, y)]).detach()

        def call(**given):
            return uk.sinkhorn(C, **options, **given)
    else:
        how = {"offsets": OFFSETS} if kind == "list" else {}
        z = (x, y) if kind == "list" else (x.view(2, 10, 8), y[:14].view(2, 7, 8))

        def call(**given):
            return uk.sinkhorn_loss(*z, metric="l2", return_result=True, **how, **options, **given)

    cold = call()
    warm = call(init=cold.potentials)
    assert bool(cold.converged.all()) and cold.n_iter.max() > 5 and warm.n_iter.max() == 1
    plans = list(cold.plan()) if kind == "cost" else cold.plans()
    for plan in plans:
        if plan.numel():
            assert torch.allclose(plan.sum(0), torch.full_like(plan[0], 1 / plan.shape[1]), atol=1e-9)
    if kind == "cost":
        assert torch.allclose(cold.value[1], 7 * cold.value[0]) and torch.allclose(
            cold.reg[1], 7 * cold.reg[0]
        )


def test_the_gradient_of_the_mean_is_stopped_and_double_backward_agrees():
    x, y, *_ = problem()
    regs = {"reg_scale": "mean"}, {"reg": 0.1 * mean(x, y, "sqeuclidean")}

    def second(options):
        loss = uk.sinkhorn_loss(x, y, metric="sqeuclidean", max_iter=15, **options)
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, y))

    for got, want in zip(*map(second, regs), strict=True):
        assert torch.allclose(got, want, rtol=1e-7)


def test_features_of_any_scale_give_the_same_plan():
    x, y, *_ = (z.detach() for z in problem())
    for metric in ("l2", "l1", "sqeuclidean"):
        power = 2 if metric == "sqeuclidean" else 1
        base, large = (
            uk.sinkhorn_loss(s * x, s * y, metric=metric, reg_scale="mean", return_result=True)
            for s in (1, 1000)
        )
        assert torch.allclose(base.plan(), large.plan(), rtol=1e-9)
        assert torch.allclose(large.value, 1000**power * base.value)


def test_a_reg_below_the_range_of_the_dtype_is_solved_over_the_scale():
    C = torch.rand(4, 5)
    tiny, plain = uk.sinkhorn(1e-38 * C, reg_scale="mean"), uk.sinkhorn(C, reg_scale="mean")
    assert torch.allclose(tiny.value / 1e-38, plain.value, rtol=1e-2)


@pytest.mark.parametrize("metric", METRICS)
def test_transforms_and_compilers(metric):
    x, y, *_ = problem()
    options = {"metric": metric, "max_iter": 12}
    want = torch.autograd.grad(uk.sinkhorn_loss(x, y, reg=0.1 * mean(x, y, metric), **options), x)[0]

    def loss(z):
        return uk.sinkhorn_loss(z, y, reg_scale="mean", **options)

    assert torch.allclose(torch.func.grad(loss)(x.detach()), want, rtol=1e-7, atol=1e-10)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert torch.allclose(torch.autograd.grad(compiled(x), x)[0], want, rtol=1e-7, atol=1e-10)


REFUSED = {
    "zeros": lambda: uk.sinkhorn(torch.zeros(3, 4), reg_scale="mean"),
    "negative": lambda: uk.sinkhorn(-torch.ones(3, 4), reg_scale="mean"),
    "forbidden": lambda: uk.sinkhorn(torch.full((3, 4), torch.inf), reg_scale="mean"),
    "one of a batch, in problem 1": lambda: uk.sinkhorn(
        torch.ones(2, 3, 4) * torch.tensor([1.0, 0])[:, None, None], reg_scale="mean"
    ),
    "out of range": lambda: uk.sinkhorn(torch.full((2, 4, 5), 3e38), reg_scale="mean"),
    "equal features": lambda: uk.sinkhorn_loss(
        torch.ones(3, 2), torch.ones(4, 2), metric="l2", reg_scale="mean"
    ),
    "equal features, panels": lambda: uk.sinkhorn_loss(
        torch.ones(30, 2), torch.ones(40, 2), metric="l2", reg_scale="mean", memory_budget=6000
    ),
    "equal features of a list, in problem 0": lambda: uk.sinkhorn_loss(
        torch.ones(3, 2),
        torch.ones(4, 2),
        metric="l2",
        reg_scale="mean",
        offsets=(torch.tensor([0, 3]), torch.tensor([0, 4])),
    ),  # fmt: skip
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mean_that_is_not_above_zero_is_refused(name):
    problem_of_batch = name.rpartition(", ")[2] if "in problem" in name else ""
    with pytest.raises(
        ValueError, match=f"mean over its finite entries is a number above 0.*{problem_of_batch}: give reg"
    ):
        REFUSED[name]()


def test_other_words_are_refused_and_bad_features_named():
    x, y = torch.randn(9, 3), torch.randn(8, 3)
    for call in (
        lambda s: uk.sinkhorn(x @ y.T, reg_scale=s),
        lambda s: uk.sinkhorn_loss(x, y, reg_scale=s),
        lambda s: uk.class_conditional_loss(x, y, LABELS[0][:9], LABELS[1][:8], classes=3, reg_scale=s),
        lambda s: uk.FeatureAlignmentLoss(reg_scale=s)(x, y),
    ):
        for wrong in ("maen", "", True, 2.0):
            with pytest.raises(ValueError, match="reg_scale must be one of 'mean', got"):
                call(wrong)
    for budget in (None, 6000):
        with pytest.raises(ValueError, match="y must be finite"):
            uk.sinkhorn_loss(x, y * torch.nan, reg_scale="mean", memory_budget=budget)
    with pytest.raises(ValueError, match="give it in units of the cost"):
        WarmStart(9, 9, tol=1e-3, reg_scale="mean")


# On the execution model of a GPU


@needs_model
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["one", "panels", "batch", "list", "class cost", "class cost, panels"])
def test_on_a_gpu(kind, metric, objective):
    x, y, *_ = problem()
    if objective == "divergence" and "class" in kind:
        objective = "regularized"
    options = {"metric": metric, "objective": objective, "max_iter": 12, "reg_scale": "mean"}
    inputs = x, y
    if kind == "batch":
        inputs = x.view(2, 10, 8), y[:14].view(2, 7, 8)
    if kind == "list":
        options["offsets"] = OFFSETS
    if "class" in kind:
        W = 40 * torch.rand(20, 3, dtype=torch.float64)
        W[::4, 1] = torch.inf
        options |= {"class_cost": W, "y_labels": LABELS[1]}
    want = uk.sinkhorn_loss(*inputs, **options)
    with model():
        budget = BUDGET if "panels" in kind else None
        got = uk.sinkhorn_loss(*inputs, memory_budget=budget, **options)
        assert torch.allclose(got, want, rtol=1e-9)
        grads = torch.autograd.grad(got.sum(), (x, y))
    for g, w in zip(grads, torch.autograd.grad(want.sum(), (x, y)), strict=True):
        assert torch.allclose(g, w, rtol=1e-7, atol=1e-9)


@needs_model
@pytest.mark.parametrize("kind", ["one", "batch", "list", "cost", "panels", "panels of l2"])
def test_on_a_gpu_the_host_reads_nothing_but_for_panels_of_normalised_features(kind, monkeypatch):
    x, y, *_ = problem()
    told = uk.Convergence()
    how = {"reg_scale": "mean", "max_iter": 3}
    calls = {
        "one": lambda: uk.sinkhorn_loss(x, y, convergence=told, **how),
        "batch": lambda: uk.sinkhorn_loss(x[None], y[None], convergence=told, **how),
        "list": lambda: uk.sinkhorn_loss(x, y, offsets=OFFSETS, convergence=told, **how),
        "cost": lambda: uk.sinkhorn(x.detach() @ y.detach().T + 1e4, **how),
        "panels": lambda: uk.sinkhorn_loss(x, y, memory_budget=BUDGET, convergence=told, **how),
        "panels of l2": lambda: uk.sinkhorn_loss(
            x, y, memory_budget=BUDGET, metric="l2", convergence=told, **how
        ),
    }
    reads = []
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)

        def read(self, *args, original=original, **kwargs):
            if self.is_floating_point():
                reads.append(original)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)
    with model():
        calls[kind]()
    warned = 1 if kind == "cost" else 0  # what a GPU copies without waiting, the model reads
    assert len(reads) == {"panels": 1}.get(kind, warned)


@needs_model
def test_on_a_gpu_a_mean_that_is_not_above_zero_is_refused_when_read():
    x = torch.ones(9, 4)
    with model():
        found = uk.sinkhorn_loss(x, x[:7], metric="l2", reg_scale="mean", return_result=True)
        assert bool(found.value.isnan()) and refusal(found.n_iter)
        with pytest.raises(ValueError, match="cost must be a number"):
            found.check()
