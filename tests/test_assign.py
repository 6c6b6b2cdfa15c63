"""`assign` against SwAV's own lines, the float64 reference and exact arithmetic, and what it is said to do."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.ops import _assign
from ucmkd_fast.ops._cpu import assign as cpu
from ucmkd_fast.reference.assign import assign as reference

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def cosines(n=37, k=23, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(rows, 16, generator=generator, dtype=torch.float64) for rows in (n, k))
    x, y = (torch.nn.functional.normalize(z, dim=1) for z in (x, y))
    return (x @ y.T).to(dtype)


def swav(scores, temperature, n_iter):
    """The lines of SwAV (distributed_sinkhorn of its main_swav.py), on one process."""
    Q = torch.exp(scores / temperature).t()
    Q /= Q.sum()
    K, B = Q.shape
    for _ in range(n_iter):
        Q /= Q.sum(1, keepdim=True)
        Q /= K
        Q /= Q.sum(0, keepdim=True)
        Q /= B
    Q *= B
    return Q.t()


def error(got, want):
    assert got.isfinite().all()
    return (got.double() - want.double()).abs().max().item()


def masses(n, k, dtype, seed=5):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(size, generator=generator, dtype=torch.float64) + 0.05 for size in (n, k))
    if n > 2 and k > 2:
        a[1], b[2] = 0, 0
    return {"a": a.to(dtype), "b": b.to(dtype)}


# ---- what is computed


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 33), (64, 100), (130, 1025)], ids=str)
@pytest.mark.parametrize("n_iter", [1, 3, 10])
def test_is_what_swav_computes(shape, n_iter):
    scores = cosines(*shape)
    want = swav(scores, 0.05, n_iter)
    assert error(reference(scores, 0.05, n_iter), want) < 1e-13
    assert error(uk.assign(scores, 0.05, n_iter), want) < 1e-13
    low = scores.float()
    truth = reference(low.double(), 0.05, n_iter)
    assert error(uk.assign(low, 0.05, n_iter), truth) <= 2 * error(swav(low, 0.05, n_iter), truth) + 1e-7


def clusters(n=40, k=12):
    """Two clusters of samples that score one prototype each, far above all others."""
    scores = cosines(n, k)
    scores[: n // 2, 0] += 300
    scores[n // 2 :, 1] += 300
    return scores


def some_forbidden(n=30, k=14):
    scores = cosines(n, k)
    scores[torch.rand(n, k, generator=torch.Generator().manual_seed(1)) < 0.4] = -torch.inf
    return scores


def drifting():
    """No balanced assignment has all pairs that are allowed: potentials grow in every iteration."""
    scores = torch.full((10, 2), -torch.inf, dtype=torch.float64)
    scores[:, 0] = 0
    scores[9, 1] = 0
    return scores


HARD = {
    "cosines": cosines,
    "sharp": lambda: cosines() * 30,
    "very sharp": lambda: cosines() * 1e4,
    "all alike": lambda: torch.full((8, 6), 0.3, dtype=torch.float64),
    "one for all": lambda: cosines(9, 4)[:1].expand(20, 4) * 200,
    "clusters": clusters,
    "forbidden": some_forbidden,
    "forbidden, sharp": lambda: some_forbidden() * 500,
    "drifting": drifting,
    "far up": lambda: cosines() + 1000,
    "far down": lambda: cosines() - 1000,
    "rows apart": lambda: cosines() + 50 * torch.arange(37.0).double()[:, None],
    "columns apart": lambda: cosines() + 50 * torch.arange(23.0).double(),
    "many prototypes": lambda: cosines(3, 4097),
    "many samples": lambda: cosines(700, 5) * 3,
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("n_iter", [1, 3, 40])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_the_reference(name, n_iter, weighted):
    for dtype in (*FLOATS, *HALVES):
        scores = HARD[name]().to(dtype)
        options = (
            masses(*scores.shape, torch.float64 if dtype == torch.float64 else torch.float32)
            if weighted
            else {}
        )
        want = reference(scores.double(), 0.1, n_iter, **options)
        got = uk.assign(scores, 0.1, n_iter, **options)
        # A difference of scores that is rounded to float32 is one of this over the temperature.
        finite = scores[scores > -torch.inf].double()
        rounding = 0 if dtype == torch.float64 else 6e-8 * (finite.max() - finite.min()) / 0.1
        assert got.dtype == dtype and got.shape == scores.shape
        assert error(got, want) <= TOLERANCE[dtype] + 2 * rounding
        for out in {torch.float32, torch.float64, dtype}:
            into = torch.full(scores.shape, torch.nan, dtype=out)
            assert uk.assign(scores, 0.1, n_iter, out=into, **options) is into
            assert error(into, want) <= max(TOLERANCE[dtype] if out == dtype else 0, 1e-6) + 2 * rounding
        if dtype in FLOATS:
            assert (got.double().sum(1) - 1).abs().max() < TOLERANCE[dtype]


def exact(scores, temperature, n_iter, b):
    """In decimals of 400 digits, log domain."""

    def lse(values):
        top = max(values)
        return top + sum((v - top).exp() for v in values if v - top > -2000).ln()

    with localcontext() as context:
        context.prec = 400
        z = [[Decimal(s) / Decimal(temperature) for s in row] for row in scores.tolist()]
        u = [Decimal(0)] * len(z)
        for _ in range(n_iter):
            v = [
                Decimal(share).ln() - lse([x + row[j] for x, row in zip(u, z, strict=True)])
                for j, share in enumerate(b.tolist())
            ]
            u = [-lse([x + y for x, y in zip(row, v, strict=True)]) for row in z]
        logs = [[x + y + row_u for x, y in zip(row, v, strict=True)] for row, row_u in zip(z, u, strict=True)]
        return torch.tensor(
            [[float(x.exp()) if x > -700 else 0.0 for x in row] for row in logs], dtype=torch.float64
        )


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 3e38), (torch.float64, 1.7e308)])
def test_the_quotient_may_overflow(dtype, largest):
    """Limits at temperature 0: every half-step is a largest score, ties share."""
    s = torch.tensor([[1, -1, 0.5], [1, -1, -0.25], [-1, 0.75, 0.75]], dtype=dtype) * largest
    for temperature in (1e-3, 1e-30, 5e-324):
        q = uk.assign(s, temperature, 1)
        # Columns: rows 0 and 1 share prototype 0, row 2 has both others. Then rows: row 0 is as far from all
        # but the first as is representable, and so on.
        assert torch.equal(q, torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0.5, 0.5]], dtype=dtype))
    q = uk.assign(torch.eye(4, dtype=dtype) * largest, 1e-3, 3, b=torch.tensor([1, 2, 3, 4], dtype=dtype))
    assert torch.equal(q, torch.eye(4, dtype=dtype))
    generator, b = torch.Generator().manual_seed(8), torch.tensor([1.0, 2, 3]).double()
    for temperature in (1e-3, 1e-30):
        # Of few values, so that there are ties, where shares and counts decide.
        s = (torch.randint(-2, 3, (7, 3), generator=generator).double() / 2).to(dtype) * largest
        for n_iter in (1, 2, 5):
            want = exact(s, temperature, n_iter, b)
            assert error(uk.assign(s, temperature, n_iter, b=b), want) <= TOLERANCE[dtype]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-10, 1e-3, 1.0, 1e3, 1e38, 1e300])
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_no_finite_score_and_no_temperature_gives_nan(dtype, temperature):
    generator = torch.Generator().manual_seed(3)
    for scale in (0.0, 1e-30, 1.0, 1e4, torch.finfo(dtype).max):
        scores = ((torch.rand(12, 7, generator=generator, dtype=torch.float64) * 2 - 1) * scale).to(dtype)
        for n_iter in (1, 4):
            for options in ({}, masses(12, 7, torch.float64)):
                q = uk.assign(scores, temperature, n_iter, **options)
                assert (q >= 0).all() and (q.double().sum(1) - 1).abs().max() < 7 * TOLERANCE[dtype]


def test_a_column_that_underflows_has_its_share():
    """An offset of a prototype changes nothing, however large: 1e4 temperatures are e^-10000 in the first sums."""
    scores = cosines(50, 12)
    want = uk.assign(scores, 0.05)
    offset = torch.zeros(12, dtype=torch.float64)
    offset[3], offset[7] = -500, 500
    assert error(uk.assign(scores + offset, 0.05), want) < 1e-9
    got = uk.assign((scores + offset).float(), 0.05)
    assert error(got, want) < 5e-3  # 500 + a cosine is rounded to 3e-5, over the temperature 6e-4
    share = uk.assign(scores + offset, 0.05, 50).sum(0)
    assert (share - 50 / 12).abs().max() < 1e-3


def test_prototypes_that_take_no_part():
    scores = cosines(20, 6)
    without = uk.assign(scores[:, [0, 1, 3, 5]], 0.05)
    masked = scores.clone()
    masked[:, 2] = -torch.inf
    b = torch.tensor([1.0, 1, 1, 1, 0, 1])
    got = uk.assign(masked, 0.05, b=b)
    assert error(got[:, [0, 1, 3, 5]], without) < 1e-12 and not got[:, [2, 4]].any()
    # One that only samples without weight may use is none for them either.
    masked[0, 2] = 5
    a = torch.ones(20).double()
    a[0] = 0
    got = uk.assign(masked, 0.05, a=a, b=b)
    assert not got[:, [2, 4]].any() and (got.sum(1) - 1).abs().max() < 1e-12


def test_weights_count_in_the_sums_of_columns_alone():
    scores = cosines(12, 5)
    a = torch.ones(12).double()
    a[3], a[8] = 2, 0
    twice = torch.cat([scores, scores[3:4]])[[k for k in range(13) if k != 8]]
    want, got = uk.assign(twice, 0.05), uk.assign(scores, 0.05, a=a)
    assert error(got[[k for k in range(12) if k != 8]], want[:11]) < 1e-13
    assert abs(got[8].sum() - 1) < 1e-13
    for scale in (1e-200, 1e-3, 1e200):
        assert error(uk.assign(scores, 0.05, a=a * scale), got) < 1e-13
        assert (
            error(uk.assign(scores, 0.05, a=a, b=torch.full((5,), scale, dtype=torch.float64)), got) < 1e-13
        )


def test_shares_of_prototypes():
    b = torch.tensor([1.0, 2, 3, 4]).double()
    q = uk.assign(cosines(400, 4), 0.1, 60, b=b)
    assert error(q.sum(0), 40 * b) < 1e-6
    small = torch.tensor([1.0, 1e-30, 1, 1e-300]).double()
    q = uk.assign(cosines(400, 4), 0.1, 60, b=small)
    want = 400 * small / small.sum()
    assert error(q.sum(0), want) < 1e-6 and abs(q.sum(0)[1] / want[1] - 1) < 1e-6


# ---- the kernels


def test_threads_and_chunks(monkeypatch):
    scores = cosines(600, 301, dtype=torch.float32)
    before, want = torch.get_num_threads(), uk.assign(scores, 0.05)
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            again = uk.assign(scores, 0.05)
            assert error(again, want) < 1e-6 and torch.equal(again, uk.assign(scores, 0.05))
            assert error(uk.assign(scores * 1e3, 0.05, 5), uk.assign(scores.double() * 1e3, 0.05, 5)) < 1e-2
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(cpu, "CHUNK_BYTES", 5000)
    assert error(uk.assign(scores.T.contiguous().T, 0.05), want) < 1e-6


#: Run at every level: half precision is read and written as torch converts it, whichever numbers there are.
LEVEL = """
import torch
import ucmkd_fast as uk

for dtype in (torch.float16, torch.bfloat16):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    for k, temperature in ((31, 1e3), (1, 1.0), (255, 1e36), (len(every), 1e34)):
        h = every[: len(every) // k * k].view(-1, k)
        want = uk.assign(h.float(), temperature, 2, out=torch.empty(h.shape))
        assert torch.equal(uk.assign(h, temperature, 2, out=torch.empty(h.shape)), want)
        assert torch.equal(uk.assign(h.float(), temperature, 2, out=torch.empty_like(h)), want.to(dtype))
    # All that an assignment may be: two prototypes, of which one has the share x.
    x = every[(every > 0) & (every < 1)].double()
    s = torch.stack([x.log(), (1 - x).log()], 1)
    q = uk.assign(s, 1.0, 1, b=s.exp().sum(0), out=torch.empty(s.shape, dtype=dtype))
    assert torch.equal(q[:, 0], uk.assign(s, 1.0, 1, b=s.exp().sum(0))[:, 0].float().to(dtype))
x, y = torch.randn(40, 16), torch.randn(33, 16)
q = uk.assign(x @ y.T, 1.0)
w = uk.assign((x @ y.T).double(), 1.0)
assert (q - w).abs().max() < 1e-5
print("fine")
"""


@pytest.mark.parametrize("level", uk._native._C.build_info()["cpu_levels_usable"])
def test_half_precision_at_every_level(level):
    done = subprocess.run(
        [sys.executable, "-c", LEVEL],
        env={**os.environ, "UCMKD_CPU_LEVEL": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "fine\n", done.stderr


def test_strides():
    scores = cosines(24, 18)
    want = uk.assign(scores, 0.05)
    wide = torch.zeros(24, 50).double()
    wide[:, 3:21], wide[:, 21:39] = scores, scores
    views = [
        wide[:, 3:21],
        scores.T.contiguous().T,
        scores.repeat_interleave(2, 1)[:, ::2],
        scores.flip(0).flip(0),
    ]
    for view in views:
        assert torch.equal(view, scores) and error(uk.assign(view, 0.05), want) < 1e-14
    assert uk.assign(views[1], 0.05).is_contiguous()
    row = scores[:1].expand(24, 18)
    assert error(uk.assign(row, 0.05), uk.assign(row.contiguous(), 0.05)) < 1e-14
    for out in (
        torch.zeros(24, 40).double()[:, 5:23],
        torch.zeros(18, 24).double().T,
        torch.zeros(24, 36)[:, ::2],
    ):
        assert uk.assign(scores, 0.05, out=out) is out and error(out, want) < (
            1e-14 if out.dtype == scores.dtype else 1e-7
        )


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_in_place_and_over_each_other(dtype):
    scores = cosines(24, 18, dtype=dtype)
    for sharp in (1, 1e4):
        own = scores * sharp
        want = uk.assign(own, 0.05)
        assert uk.assign(own, 0.05, out=own) is own
        assert error(own, want) <= TOLERANCE[dtype]
    memory = torch.zeros(30, 40, dtype=dtype)
    memory[:24, :18] = scores
    for out in (memory[1:25, :18], memory[:24, 1:19], memory[:24, :36:2]):
        with pytest.raises(ValueError, match="overlaps"):
            uk.assign(memory[:24, :18], 0.05, out=out)
    square = memory[:18, :18]
    with pytest.raises(ValueError, match="overlaps"):
        uk.assign(square, 0.05, out=square.T)
    beside = memory[:24, 18:36]
    assert error(uk.assign(memory[:24, :18], 0.05, out=beside), uk.assign(scores, 0.05)) <= TOLERANCE[dtype]


# ---- files

MAPPED = """
import sys
from pathlib import Path

import torch
import ucmkd_fast as uk

def status():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) >> 10 for line in lines if line.startswith(("VmHWM", "RssAnon"))}

folder, n, k = Path(sys.argv[1]), 80000, 1000
s, out = (torch.from_file(str(folder / name), shared=True, size=n * k, dtype=torch.float16).view(n, k) for name in "so")
uk.assign(s[:50], 0.05)
Path("/proc/self/clear_refs").write_text("5")
before = status()["VmHWM"]
uk.assign(s, 0.05, out=out)
print(status()["VmHWM"] - before)
torch.save([out[:999].clone(), out.sum(0, dtype=torch.float32)], folder / "got.pt")
"""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="this system does not tell the peak of memory"
)
def test_files_that_would_not_fit(tmp_path):
    """Two files of 153 MB: what is resident grows by a few chunks."""
    s = torch.from_file(str(tmp_path / "s"), shared=True, size=80_000_000, dtype=torch.float16).view(
        80000, 1000
    )
    for k in range(8):
        s[k * 10000 : (k + 1) * 10000] = cosines(10000, 1000, seed=k, dtype=torch.float16)
    done = subprocess.run(
        [sys.executable, "-c", MAPPED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100
    rows, columns = torch.load(tmp_path / "got.pt")
    want = uk.assign(s.clone(), 0.05)
    assert error(rows, want[:999]) <= 1e-3 and error(columns, want.sum(0, dtype=torch.float32)) < 0.2


def test_memory_maps_of_numpy(tmp_path):
    path, scores = tmp_path / "scores.npy", cosines(4000, 200, dtype=torch.float16)
    np.save(path, scores.numpy())
    want = uk.assign(scores, 0.05)
    for mode in ("r+", "c"):
        mapped = torch.from_numpy(np.load(path, mmap_mode=mode))
        assert torch.equal(uk.assign(mapped, 0.05), want)
    mapped[5], own = (
        0,
        scores.clone(),
    )  # a copy of one's own, which the file does not have: nothing of it is given back
    own[5] = 0
    want = uk.assign(own, 0.05)
    for _ in range(2):
        assert torch.equal(uk.assign(mapped, 0.05), want) and not mapped[5].any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: the array is not writable
        read_only = torch.from_numpy(np.load(path, mmap_mode="r"))
    assert torch.equal(uk.assign(read_only, 0.05), uk.assign(scores, 0.05))
    if os.path.exists("/proc/self/maps"):
        with pytest.raises(ValueError, match="out must be memory that can be written to"):
            uk.assign(scores, 0.05, out=read_only)
    into = torch.from_numpy(np.lib.format.open_memmap(tmp_path / "q.npy", "w+", np.float32, (4000, 200)))
    uk.assign(read_only, 0.05, out=into)
    assert error(torch.from_numpy(np.load(tmp_path / "q.npy")), reference(scores.double(), 0.05)) < 1e-6


# ---- torch around it


def test_nothing_is_recorded():
    scores = cosines().requires_grad_()
    assert not uk.assign(scores, 0.05).requires_grad
    a, b = (torch.ones(size, requires_grad=True, dtype=torch.float64) for size in (37, 23))
    assert not uk.assign(scores, 0.05, a=a, b=b).requires_grad


@pytest.mark.parametrize("name", HARD)
def test_torchs_operations_compute_the_same(name):
    """What runs on a GPU, and under compilers and transforms."""
    for dtype in (*FLOATS, torch.float16):
        scores = HARD[name]().to(dtype)
        options = {} if name == "drifting" else masses(*scores.shape, torch.float32)
        want = reference(scores.double(), 0.1, 3, **options)
        call = _assign.Assignment(
            scores,
            0.1,
            3,
            options.get("a"),
            options.get("b"),
            torch.empty_like(scores),
            uk.ops.sharded.Alone(),
        )
        finite = scores[scores > -torch.inf].double()
        rounding = 0 if dtype == torch.float64 else 6e-8 * (finite.max() - finite.min()) / 0.1
        got = _assign.by_torch(call, torch.float64)
        assert error(got, want) <= TOLERANCE[dtype] + 4 * rounding


def test_compiled_and_transformed():
    scores = torch.stack([cosines(seed=s, dtype=torch.float32) for s in range(3)])
    wants = torch.stack([uk.assign(s, 0.05) for s in scores])
    compiled = torch.compile(lambda s: uk.assign(s, 0.05) * 2, backend="aot_eager", fullgraph=True)
    assert error(compiled(scores[0]) / 2, wants[0]) < 1e-6
    assert error(torch.func.vmap(lambda s: uk.assign(s, 0.05))(scores), wants) < 1e-6
    grad = torch.func.grad(lambda s: (uk.assign(s, 0.05) * s).sum())(scores[0])
    assert error(grad, wants[0]) < 1e-6  # assignments are constants


def test_a_device_without_kernels(monkeypatch):
    from ucmkd_fast.ops import _devices, _reference

    scores = cosines()
    want = uk.assign(scores, 0.05)
    monkeypatch.setattr(_devices, "door", lambda tensor: _reference)
    assert error(uk.assign(scores, 0.05), want) < 1e-12
    assert uk.assign(torch.full((2, 2), torch.nan), 1.0).isnan().all()  # refused on the CPU


def test_on_a_gpu_refused_values_give_nan(monkeypatch):
    """The door of CUDA tensors, here with CPU tensors: it is torch's operations."""
    from ucmkd_fast.ops import _cuda, _devices

    scores, bad = cosines(), cosines()
    want = uk.assign(scores, 0.05)
    bad[3, 4] = torch.nan
    monkeypatch.setattr(_devices, "door", lambda tensor: _cuda)
    assert error(uk.assign(scores, 0.05), want) < 1e-12
    assert uk.assign(bad, 0.05).isnan().all()
    bad[3, 4] = torch.inf
    assert uk.assign(bad, 0.05).isnan().all()
    assert uk.assign(scores, 0.05, b=-torch.ones(23)).isnan().all()
    monkeypatch.setenv("UCMKD_CHECK", "1")
    with pytest.raises(ValueError, match="the assignments are NaN"):
        uk.assign(bad, 0.05)


# ---- refusals

S = torch.zeros(4, 3)


def put(row, column, value, shape=(6, 5)):
    scores = torch.zeros(shape)
    scores[row, column] = value
    return scores


BAD = {
    "list": (lambda: uk.assign([[0.0]], 1.0), TypeError, "scores must be a torch.Tensor"),
    "integers": (lambda: uk.assign(S.long(), 1.0), TypeError, "int64"),
    "one dimension": (lambda: uk.assign(S[0], 1.0), ValueError, "scores must have shape"),
    "no rows": (lambda: uk.assign(S[:0], 1.0), ValueError, "at least one row and one prototype"),
    "no prototypes": (lambda: uk.assign(S[:, :0], 1.0), ValueError, "at least one row and one prototype"),
    "temperature 0": (lambda: uk.assign(S, 0.0), ValueError, "temperature must be a finite number > 0"),
    "temperature -1": (lambda: uk.assign(S, -1.0), ValueError, "temperature must be a finite number > 0"),
    "temperature NaN": (lambda: uk.assign(S, math.nan), ValueError, "temperature"),
    "temperature inf": (lambda: uk.assign(S, math.inf), ValueError, "temperature"),
    "temperature text": (lambda: uk.assign(S, "warm"), TypeError, "temperature"),
    "n_iter 0": (lambda: uk.assign(S, 1.0, 0), ValueError, "n_iter must be an integer >= 1"),
    "n_iter 1.5": (lambda: uk.assign(S, 1.0, 1.5), TypeError, "n_iter must be an integer >= 1"),
    "NaN": (lambda: uk.assign(put(4, 2, math.nan), 1.0), ValueError, "got NaN in row 4, prototype 2"),
    "+inf": (lambda: uk.assign(put(5, 0, math.inf), 1.0), ValueError, r"got \+inf in row 5, prototype 0"),
    "NaN, half": (lambda: uk.assign(put(1, 4, math.nan).half(), 1.0), ValueError, "NaN in row 1, prototype 4"),
    "inf, double": (lambda: uk.assign(put(1, 4, math.inf).double(), 1.0), ValueError, "in row 1, prototype 4"),
    "-inf": (lambda: uk.assign(put(2, slice(None), -math.inf), 1.0), ValueError, "nothing but -inf in row 2"),
    "a size": (lambda: uk.assign(S, 1.0, a=torch.ones(3)), ValueError, r"a must have shape \(4,\)"),
    "b size": (lambda: uk.assign(S, 1.0, b=torch.ones(4)), ValueError, r"b must have shape \(3,\)"),
    "a list": (lambda: uk.assign(S, 1.0, a=[1.0] * 4), TypeError, "a must be a torch.Tensor"),
    "a negative": (lambda: uk.assign(S, 1.0, a=torch.tensor([1.0, 1, -2, 1])), ValueError, r"got -2 at a\[2\]"),
    "a NaN": (lambda: uk.assign(S, 1.0, a=torch.tensor([1.0, math.nan, 1, 1])), ValueError, r"NaN at a\[1\]"),
    "a inf": (lambda: uk.assign(S, 1.0, a=torch.tensor([math.inf, 1, 1, 1])), ValueError, r"inf at a\[0\]"),
    "a 0": (lambda: uk.assign(S, 1.0, a=torch.zeros(4)), ValueError, "a must not be all 0"),
    "a large": (lambda: uk.assign(S, 1.0, a=S[:, 0].double() + 1e308), ValueError, "a must have a sum .* got inf"),
    "b negative": (lambda: uk.assign(S, 1.0, b=torch.tensor([1.0, -1, 1])), ValueError, r"got -1 at b\[1\]"),
    "b 0": (lambda: uk.assign(S, 1.0, b=torch.zeros(3)), ValueError, "b must not be all 0"),
    "only without share": (
        lambda: uk.assign(torch.tensor([[0.0, 0], [0, -math.inf]]), 1.0, b=torch.tensor([0.0, 1])),
        ValueError, "got row 1 with none"),
    "no share that can be had": (
        lambda: uk.assign(put(slice(None), 0, -math.inf), 1.0, b=torch.tensor([1.0, 0, 0, 0, 0])),
        ValueError, "got row 0 with none"),
    "out list": (lambda: uk.assign(S, 1.0, out=[1]), TypeError, "out must be a torch.Tensor"),
    "out integers": (lambda: uk.assign(S, 1.0, out=S.long()), TypeError, "out must be of dtype"),
    "out shape": (lambda: uk.assign(S, 1.0, out=torch.zeros(3, 4)), ValueError, r"shape of scores \(4, 3\)"),
    "out grad": (lambda: uk.assign(S, 1.0, out=torch.zeros(4, 3, requires_grad=True)), ValueError, "gradient"),
    "out expanded": (lambda: uk.assign(S, 1.0, out=torch.zeros(3).expand(4, 3)), ValueError, "share memory"),
    "devices": (lambda: uk.assign(S, 1.0, b=torch.ones(3, device="meta")), ValueError, "on one device"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call()
