"""Pairs drawn from plans, largest entries and barycentric projections: all against the plan that is formed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drawing_worker import OPTIONS, N, maps, points, problem, solved
from gloo_ranks import outcomes
from sharded_worker import ROWS

import ucmkd_fast as uk
from ucmkd_fast.ops import _draws, _plan_rows, _projections, memory

WORKER = Path(__file__).with_name("drawing_worker.py")
DRAWS = 20000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def features(batch=(), n=20, m=9, dtype=torch.float32):
    rand = seeded(1)
    x, y = (torch.randn(*batch, k, 6, generator=rand, dtype=dtype) for k in (n, m))
    a, b = (torch.rand(*batch, k, generator=rand, dtype=dtype) + 0.1 for k in (n, m))
    a[..., 2], b[..., 4] = 0, 0
    return x, y, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def by_class(batch=(), n=20, m=9, dtype=torch.float32):
    W = torch.rand(*batch, n, 3, generator=seeded(2), dtype=dtype)
    W[..., 5, 1] = torch.inf
    return {"class_cost": W, "y_labels": (torch.arange(m) % 3).expand(*batch, m).contiguous()}


def of_cost(batch=(), dtype=torch.float64, **options):
    x, y, a, b = features(batch, dtype=dtype)
    cost = (x[..., :, None, :] - y[..., None, :, :]).abs().mean(-1)
    cost[..., 1, 3], cost[..., 7, :4] = torch.inf, torch.inf
    return uk.sinkhorn(cost, a, b, reg=0.1, **options)


def of_features(batch=(), dtype=torch.float32, half=None, masses=True, **options):
    x, y, a, b = features(batch, dtype=dtype)
    x, y = (x, y) if half is None else (x.to(half), y.to(half))
    return uk.sinkhorn_loss(
        x, y, *((a, b) if masses else ()), **{"reg": 0.15, "return_result": True, **options}
    )


def ragged(empty=True, **options):
    """Three problems, of which the second has no rows of y."""
    x, y, *_ = features()
    at = torch.tensor([0, 5, 8, 20]), torch.tensor([0, 4, 4, 9]) if empty else torch.tensor([0, 4, 6, 9])
    return uk.sinkhorn_loss(x, y, offsets=at, return_result=True, **options)


#: Results by every way a call goes; what their plans are is asked of the same call where the plan can be formed.
WAYS = {
    "cost": of_cost,
    "cost, float32": lambda: of_cost(dtype=torch.float32),
    "cost, unbalanced": lambda: of_cost(unbalanced=0.05),
    "costs": lambda: of_cost((3,)),
    "costs, unbalanced": lambda: of_cost((3,), unbalanced=(0.1, None)),
    "costs, relative reg": lambda: of_cost((3,), reg_scale="mean"),
    "features": of_features,
    "features, without masses": lambda: of_features(masses=False),
    "features, float64": lambda: of_features(dtype=torch.float64, metric="l2"),
    "features, bfloat16": lambda: of_features(half=torch.bfloat16),
    "features, class cost": lambda: of_features(**by_class()),
    "features, relative reg": lambda: of_features(reg_scale="mean"),
    "features, unbalanced": lambda: of_features(unbalanced=0.3),
    "batch": lambda: of_features((3,)),
    "batch, class cost": lambda: of_features((3,), **by_class((3,))),
    "ragged": ragged,
    "ragged, unbalanced": lambda: ragged(unbalanced=(None, 0.2)),
    "ragged, relative reg": lambda: ragged(reg_scale="mean", reg=0.3),
}


def budget(options):
    """Panels of four rows."""
    return {"memory_budget": 2400 if options.get("dtype") is torch.float64 else 1200}


PANELS = {
    "panels": {},
    "panels, float64": {"dtype": torch.float64, "metric": "l1", "reg": 1.0},
    "panels, float16": {"half": torch.float16},
    "panels, class cost": by_class(),
    "panels, relative reg": {"reg_scale": "mean", "metric": "sqeuclidean"},
    "panels, without masses": {"masses": False},
    "panels, unbalanced": {"unbalanced": 0.3},
}
WAYS |= {
    name: lambda options=options: of_features(**options, **budget(options))
    for name, options in PANELS.items()
}


@pytest.fixture(params=WAYS)
def way(request):
    """A result, and its plans as a list, formed."""
    result = WAYS[request.param]()
    if request.param in PANELS:
        with pytest.raises(MemoryError, match="sample, argmax or barycentric_projection"):
            result.plan()
        return result, [of_features(**PANELS[request.param]).plan()]
    if request.param.startswith("ragged"):
        return result, result.plans()
    plan = result.plan()
    return result, [plan] if plan.dim() == 2 else list(plan)


def listed(found, way):
    """What was found, (B, ...) or flat, problem by problem, as `way` has plans."""
    result, plans = way
    if len(plans) == 1:
        return [found]
    if found.dim() > 1 and len(found) == len(plans) and len({p.shape for p in plans}) == 1:
        return list(found)
    rows = [len(p) for p in plans]
    return list(found.split(rows if sum(rows) == len(found) else [p.shape[1] for p in plans]))


def fits(i, j, plan):
    """A chi-square test of pairs; cells that are rarely met are one."""
    stats = pytest.importorskip(
        "scipy.stats", reason="scipy, whose chi-square test this is, is not installed"
    )
    counts = torch.zeros(plan.shape, dtype=torch.float64).index_put_(
        (i, j), torch.ones(len(i)).double(), True
    )
    expected = plan.double() / plan.double().sum() * len(i)
    assert not counts[plan == 0].any()
    rare = expected < 8
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]])
    want = torch.cat([expected[~rare], expected[rare].sum()[None]])
    keep = want > 0
    return stats.chisquare(seen[keep], want[keep] * seen[keep].sum() / want[keep].sum()).pvalue


def test_pairs_are_drawn_by_the_plan(way):
    result, plans = way
    i, j = result.sample(DRAWS, generator=seeded())
    assert i.dtype == j.dtype == torch.int64
    assert (
        i.shape
        == j.shape
        == ((DRAWS,) if result.potentials[0].dim() == 1 and len(plans) == 1 else (len(plans), DRAWS))
    )
    for k, plan in enumerate(plans):
        drawn = (i, j) if i.dim() == 1 else (i[k], j[k])
        if plan.numel():
            assert (plan[drawn] > 0).all() and fits(*drawn, plan) > 1e-3
        else:
            assert (torch.stack(drawn) == -1).all()


def test_the_chi_square_test_can_fail():
    plan = of_cost().plan()
    i, j = of_cost().sample(DRAWS, generator=seeded())
    assert fits(i, j, plan) > 1e-3 > fits(i, j, plan + 0.05 * plan.max() * (plan > 0))
    assert fits(i, j[torch.randperm(DRAWS, generator=seeded())], plan + 1e-9) < 1e-3  # right marginals


def test_a_seed_gives_the_same_pairs(way):
    result, _ = way
    once, again, other = (result.sample(50, generator=seeded(seed)) for seed in (1, 1, 2))
    assert all(map(torch.equal, once, again)) and not all(map(torch.equal, once, other))
    torch.manual_seed(7)
    default = result.sample(50)
    torch.manual_seed(7)
    assert all(map(torch.equal, default, result.sample(50)))
    assert not all(map(torch.equal, default, result.sample(50)))  # the generator moves on


@pytest.mark.parametrize("block", [1, 20, 200])
def test_blocks_change_nothing(monkeypatch, way, block):
    result, _ = way
    sides = points_of(result)
    before = [*result.sample(300, generator=seeded()), result.argmax(), result.argmax(-2)]
    projections = [result.barycentric_projection(*sides[side], side=side) for side in "xy"]
    monkeypatch.setattr(_plan_rows, "BLOCK", block)
    if hasattr(result, "_spread"):  # of panels a block is as large as the budget allows
        result._spread, result._gathered = result._spread._replace(rows=max(1, block // 9)), []
    after = [*result.sample(300, generator=seeded()), result.argmax(), result.argmax(-2)]
    assert all(map(torch.equal, before, after))
    for side, want in zip("xy", projections, strict=True):
        got = result.barycentric_projection(*sides[side], side=side)
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)


def points_of(result):
    """Of each side, what its samples are sent to."""
    f, g = result.potentials
    draw = seeded(3)
    x, y = (torch.randn(*z.shape, 3, generator=draw, dtype=z.dtype) for z in (f, g))
    return {"x": (y,), "y": (x,)}


def test_the_largest_entry_of_each_row_and_column(way):
    result, plans = way
    dims = result.potentials[0].dim() + 1
    for dim, positive in ((-1, dims - 1), (-2, dims - 2)):
        found = result.argmax(dim)
        assert found.dtype == torch.int64 and torch.equal(found, result.argmax(positive))
        for one, plan in zip(listed(found, way), plans, strict=True):
            other = plan.shape[dim]
            value = plan.amax(dim) if other else plan.new_zeros(one.shape)
            assert (one[value == 0] == -1).all()
            has = value > 0
            chosen = (
                plan[has].gather(1, one[has, None]) if dim == -1 else plan.mT[has].gather(1, one[has, None])
            )
            assert torch.allclose(chosen[:, 0], value[has], rtol=1e-5, atol=0)
    assert torch.equal(result.argmax(), result.argmax(-1))


def test_the_first_of_equal_entries_is_the_largest(monkeypatch):
    result = uk.sinkhorn(torch.ones(4, 6))
    for block in (6, 1 << 20):
        monkeypatch.setattr(_plan_rows, "BLOCK", block)
        assert not result.argmax(-1).any() and not result.argmax(-2).any()


def test_the_largest_entry_is_found_where_the_plan_underflows():
    result = uk.sinkhorn(
        10 * torch.ones(3, 2), torch.tensor([1, 1e-30, 0.0]), torch.tensor([0.0, 1.0]), reg=1e-2
    )
    small = uk.sinkhorn(torch.tensor([[0.0, 5.0], [900.0, 903.0]]), reg=1.0, max_iter=1)
    assert result.argmax().tolist() == [1, -1, -1] and result.argmax(-2).tolist() == [-1, 0]
    assert small.argmax().tolist() == small.plan().argmax(-1).tolist()


def test_the_barycentric_projection(way):
    result, plans = way
    for side, (z,) in points_of(result).items():
        found = result.barycentric_projection(z, side)
        assert found.dtype == z.dtype and found.shape == (*result.potentials[side == "y"].shape, 3)
        parts = listed(z, way)
        if len(plans) > 1 and z.dim() == 2:
            parts = z.split([p.shape[1 if side == "x" else 0] for p in plans])
            found = found.split([p.shape[0 if side == "x" else 1] for p in plans])
        else:
            found = listed(found, way)
        for one, plan, part in zip(found, plans, parts, strict=True):
            p = plan.double() if side == "x" else plan.double().T
            want = (p @ part.double() / p.sum(1, keepdim=True)).nan_to_num(0)  # 0 without mass, as POT
            assert torch.allclose(one.double(), want, rtol=1e-5, atol=2e-6)


def test_projections_are_differentiable_in_the_points(way):
    result, _ = way
    for side, (z,) in points_of(result).items():
        z.requires_grad_()
        found = result.barycentric_projection(z, side)
        upstream = torch.randn(found.shape, generator=seeded(4), dtype=found.dtype)
        (grad,) = torch.autograd.grad((found * upstream).sum(), z)
        with torch.no_grad():  # linear: <T(dz), u> = <dz, grad>
            step = torch.randn(z.shape, generator=seeded(5), dtype=z.dtype)
            change = (result.barycentric_projection(step, side) * upstream).sum()
        assert torch.allclose((step * grad).sum(), change, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", "xy")
def test_second_derivatives_in_the_points(side):
    result = of_features(dtype=torch.float64, memory_budget=2400)
    (z,) = points_of(result)[side]
    assert torch.autograd.gradgradcheck(
        lambda z: result.barycentric_projection(z, side) ** 2, z.requires_grad_()
    )


@pytest.mark.parametrize("side", "xy")
@pytest.mark.parametrize("masses", [True, False])
def test_gradients_go_through_a_plan_that_is_formed(side, masses):
    """Against the plan's own formula, at samples without mass, forbidden pairs and all."""
    x, y, a, b = features(dtype=torch.float64)
    cost = (x[:, None] - y).abs().mean(-1)
    cost[1, 3] = torch.inf
    (z,) = points_of(of_cost())[side]
    inputs = [t.requires_grad_() for t in ((cost, z, a, b) if masses else (cost, z))]

    def grads(call):
        result = uk.sinkhorn(cost, *((a, b) if masses else ()), reg=0.1, max_iter=30)
        return torch.autograd.grad((call(result) ** 2).sum(), inputs)

    def by_plan(result):
        p = result.plan() if side == "x" else result.plan().T
        return p @ z / p.sum(1, keepdim=True).clamp(min=1e-300)

    got, want = grads(lambda result: result.barycentric_projection(z, side)), grads(by_plan)
    for one, other in zip(got, want, strict=True):
        assert one.isfinite().all() and torch.allclose(one, other, rtol=1e-8, atol=1e-12)


def test_points_for_all_problems_of_a_batch():
    result = of_features((3,))
    z = torch.randn(9, 2)
    assert torch.equal(result.barycentric_projection(z), result.barycentric_projection(z.expand(3, 9, 2)))
    half = result.barycentric_projection(z.bfloat16())
    assert half.dtype == torch.float32 and torch.equal(
        half, result.barycentric_projection(z.bfloat16().float())
    )


def test_transforms_and_compilers_form_the_plan():
    cost, z = torch.rand(3, 6, 5, generator=seeded()), torch.randn(5, 2, generator=seeded(1))

    def both(cost):
        result = uk.sinkhorn(cost)
        return result.barycentric_projection(z), result.argmax(), result.argmax(0)

    want = [torch.stack(found) for found in zip(*map(both, cost), strict=True)]
    for found in (
        torch.func.vmap(both)(cost),
        map(torch.stack, zip(*map(torch.compile(both, backend="eager"), cost), strict=True)),
    ):
        for one, other in zip(found, want, strict=True):
            assert torch.allclose(one.double(), other.double(), rtol=1e-5, atol=1e-6)
    got = torch.func.grad(lambda c: both(c)[0].square().sum())(cost[0])
    leaf = cost[0].clone().requires_grad_()
    assert torch.allclose(
        got, torch.autograd.grad(both(leaf)[0].square().sum(), leaf)[0], rtol=1e-4, atol=1e-6
    )
    with pytest.raises(NotImplementedError, match="sample is not supported under functorch"):
        torch.func.vmap(lambda c: uk.sinkhorn(c).sample(3), randomness="different")(cost)
    with pytest.raises(NotImplementedError, match="barycentric_projection of a plan that is not one tensor"):
        torch.func.vmap(of_features((3,)).barycentric_projection)(torch.randn(4, 9, 2))


def test_what_cannot_be_drawn_is_refused():
    result = of_features()
    for n in (0, -3):
        with pytest.raises(ValueError, match=f"n must be an integer >= 1, got {n}"):
            result.sample(n)
    for n in (2.0, None, True):
        with pytest.raises(TypeError, match="n must be an integer >= 1"):
            result.sample(n)
    with pytest.raises(TypeError, match="generator must be a torch.Generator or None, got int"):
        result.sample(3, generator=5)
    nothing = uk.sinkhorn(torch.rand(3, 3))
    nothing._f = torch.full_like(nothing._f, -torch.inf)  # as unbalanced plans may end
    with pytest.raises(ValueError, match="plan with mass, got one whose entries are all 0 or NaN"):
        nothing.sample(3)
    nothing._f = torch.full_like(nothing._f, torch.nan)
    with pytest.raises(ValueError, match="plan with mass"):
        nothing.sample(3)
    assert (nothing.argmax() == -1).all() and (nothing.argmax(0) == -1).all()
    assert nothing.barycentric_projection(torch.ones(3, 1)).isnan().all()
    refused = uk.sinkhorn(torch.rand(3, 3))
    refused.n_iter = (
        -torch.ones_like(refused.n_iter) * 2**40
    )  # a flag of a GPU's kernels; none of those known
    refused.n_iter = -torch.tensor(next(iter(uk.ops.refusals.BY_BIT)))
    with pytest.raises(ValueError):
        refused.sample(3)


@pytest.mark.parametrize("dim", [2, -3, 1.0, None, True, "rows"])
def test_a_dim_that_is_none_is_refused(dim):
    with pytest.raises(ValueError, match="dim must be -1 or 1 .* or -2 or 0"):
        of_features().argmax(dim)
    if dim != 2:
        with pytest.raises(ValueError, match="dim must be -1 or 2 .* or -2 or 1"):
            of_features((3,)).argmax(dim)


def test_points_that_do_not_fit_are_refused():
    result, batch = of_features(), of_features((3,))
    with pytest.raises(ValueError, match="side must be one of 'x', 'y', got 'z'"):
        result.barycentric_projection(torch.ones(9, 2), side="z")
    with pytest.raises(
        ValueError, match=r"points must have shape \(9, D\), one for each y as side='x'.*got \(20, 2\)"
    ):
        result.barycentric_projection(torch.ones(20, 2))
    with pytest.raises(ValueError, match=r"points must have shape \(20, D\), one for each x as side='y'"):
        result.barycentric_projection(torch.ones(9, 2), side="y")
    with pytest.raises(ValueError, match=r"points must have shape \(3, 9, D\) or \(9, D\)"):
        batch.barycentric_projection(torch.ones(2, 9, 2))
    with pytest.raises(ValueError, match=r"points must have shape \(9, D\), got \(9,\)"):
        result.barycentric_projection(torch.ones(9))
    with pytest.raises(
        TypeError, match="points must be of dtype float32 or float64, float16 or bfloat16, got int64"
    ):
        result.barycentric_projection(torch.ones(9, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="points must be on the cost's device cpu, got meta"):
        result.barycentric_projection(torch.ones(9, 2, device="meta"))


def test_an_entry_of_weight_0_is_never_chosen():
    """Also where the sum of the weights is met: a parallel sum may end above its last step."""
    weights = torch.tensor([[0.0, 2, 0, 1, 0], [3, 0, 0, 0, 0]])
    row = torch.tensor([0, 0, 0, 0, 1, 1])
    u = torch.tensor([0, 0.5, 0.9, 1.0, 0, 1.0], dtype=torch.float64)
    assert _draws._inverted(weights, row, u).tolist() == [1, 1, 3, 1, 0, 0]


def test_memory_stays_within_a_block():
    """Of a plan of 600 x 500, 1.2 MB, panels of 16 rows are made: what is read of it takes no more than two of them."""
    x, y = (torch.randn(k, 4, generator=seeded()) for k in (600, 500))
    result = uk.sinkhorn_loss(x, y, memory_budget=1 << 18, max_iter=1, return_result=True)
    panel = 4 * 500 * memory.panel_rows(600, 500, 4, 1 << 18)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            found = (t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor))
            sizes.extend(t.untyped_storage().nbytes() for t in found)
            return out

    parts = result._plans()
    with Sizes():
        drawn = _draws.pairs(parts, 1, 700, seeded())
        _projections.largest_of_rows(parts[0])
        _projections.largest_of_columns(parts[0])
        _plan_rows.log_column_sums(parts[0])
    assert drawn[0].shape == (1, 700) and panel == 16 * 2000
    assert panel <= max(sizes) <= 2 * panel  # sums are taken in double


# Over processes


@pytest.fixture(scope="module", params=ROWS)
def ranks(request, tmp_path_factory):
    return outcomes(WORKER, request.param, tmp_path_factory.mktemp("draws"))


@pytest.mark.parametrize("name", OPTIONS)
def test_processes_together_draw_and_map_as_one(ranks, name):
    rows = torch.tensor([0, *(c[0] for c in ROWS[len(ranks)])]).cumsum(0)
    result = solved(name, problem(name), memory_budget=1 << 30)
    i, j = result.sample(N, generator=seeded(5))
    own = [rank[name]["drawn"] for rank in ranks]
    for r, drawn in enumerate(own):
        of_rank = (rows[r] <= i) & (i < rows[r + 1])
        same = [
            (one == other[of_rank]).double().mean()
            for one, other in zip(drawn, (i - rows[r], j), strict=True)
        ]
        assert not of_rank.any() or min(same) > 0.999  # but for rounding, pair for pair
    assert sum(len(drawn[0]) for drawn in own) == N
    for key, want in maps(result, *points()).items():
        got = torch.cat([rank[name][key] for rank in ranks])
        if key in ("rows", "columns"):
            assert torch.equal(got, want)
        else:
            assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_processes_that_do_not_call_alike_are_refused(ranks):
    for rank in ranks:
        assert "a generator of the same seed and state" in rank["seed"]
        assert "same n and" in rank["n"]
        assert "points must have shape" in rank["points"]
