"""The compiled module: levels, exp, threads, forks, what it links."""

from __future__ import annotations

import ctypes
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast import _native
from ucmkd_fast._native import _C
from ucmkd_fast.reference.sinkhorn import cost as reference_cost

INFO = _C.build_info()
ROOT = Path(__file__).parents[1]


def ulps(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Error in units of the last place of the correctly rounded result."""
    exponent = torch.frexp(want)[1]
    return (got.double() - want) / torch.ldexp(
        torch.ones_like(want), exponent - (24 if dtype == torch.float32 else 53)
    )


@pytest.mark.parametrize("level", INFO["cpu_levels_usable"])
def test_exp_is_within_two_ulp(level):
    x = torch.cat(
        [torch.linspace(-87.33, 88.37, 2_000_001), torch.logspace(-30, 1, 100_000), torch.tensor([0.0])]
    )
    x = x.float()
    y = torch.empty_like(x)
    _C.exp(False, level, x.data_ptr(), y.data_ptr(), len(x))
    assert ulps(y, x.double().exp(), torch.float32).abs().max() <= 2
    # float64: libm's exp is itself within 1 ulp
    x = torch.linspace(-708.39, 709.08, 1_000_001, dtype=torch.float64)
    y = torch.empty_like(x)
    _C.exp(True, level, x.data_ptr(), y.data_ptr(), len(x))
    assert ulps(y, x.exp(), torch.float64).abs().max() <= 2


@pytest.mark.parametrize("level", INFO["cpu_levels_usable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_outside_its_range(level, dtype):
    inf = float("inf")
    x = torch.tensor([-inf, -1e30, -800, 800, 1e30, inf, float("nan"), 0], dtype=dtype)
    y = torch.empty_like(x)
    _C.exp(dtype == torch.float64, level, x.data_ptr(), y.data_ptr(), len(x))
    assert y[:3].tolist() == [0, 0, 0] and y[3:6].tolist() == [inf] * 3 and y[6].isnan() and y[7] == 1


SCRIPT = """
import torch, ucmkd_fast as uk
torch.manual_seed(0)
x, y = torch.randn(70, 33, requires_grad=True), torch.randn(45, 33)
loss = uk.sinkhorn_loss(x, y, reg=0.02, max_iter=40)
loss.backward()
print(repr(loss.item()), repr(x.grad.norm().item()), uk._native._C.build_info()["cpu_level"])
"""


def run(script: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )


def test_every_level_agrees():
    results = {}
    for level in INFO["cpu_levels_usable"]:
        done = run(SCRIPT, UCMKD_CPU_LEVEL=level)
        assert done.returncode == 0, done.stderr
        loss, norm, used = done.stdout.split()
        assert used == level
        results[level] = float(loss), float(norm)
    for loss, norm in results.values():
        want = results[INFO["cpu_levels_usable"][0]]
        assert abs(loss / want[0] - 1) < 1e-6 and abs(norm / want[1] - 1) < 1e-4


def test_unknown_level_is_refused():
    done = run(SCRIPT, UCMKD_CPU_LEVEL="v9")
    assert done.returncode != 0 and "UCMKD_CPU_LEVEL='v9'" in done.stderr


def loss_and_gradient(n=300, m=200):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 16, generator=generator, requires_grad=True)
    loss = uk.sinkhorn_loss(x, torch.randn(m, 16, generator=generator), reg=0.05, max_iter=20)
    loss.backward()
    return loss.detach(), x.grad


@pytest.fixture
def threads():
    """Any number of threads for calls of any size, whatever this machine has and whoever else is on it."""
    before = torch.get_num_threads()
    _native.use_threads(64, least_work=0)
    yield
    _native.use_threads()
    torch.set_num_threads(before)


@pytest.fixture
def two_threads():
    """As on two cores that nobody else uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    _native.use_threads(2)
    yield
    _native.use_threads()
    torch.set_num_threads(before)


def asked_for_threads(call) -> bool:
    before = _C.thread_counts()[0]
    call()
    return _C.thread_counts()[0] > before


def features(n: int, d: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(n, d, generator=generator).to(dtype) for _ in range(2)]


SMALL = {
    "a step": lambda x, y: uk.sinkhorn_loss(x.requires_grad_(), y, max_iter=100).backward(),
    "both sides": lambda x, y: uk.sinkhorn_loss(
        x.requires_grad_(), y.requires_grad_(), max_iter=100
    ).backward(),
    "regularized, l2": lambda x, y: uk.sinkhorn_loss(
        x.requires_grad_(), y, metric="l2", objective="regularized", max_iter=100
    ).backward(),
    "masses with a gradient": lambda x, y: uk.sinkhorn_loss(
        x.requires_grad_(), y, torch.full((len(x),), 1 / len(x), requires_grad=True), max_iter=100
    ).backward(),
    "a cost": lambda x, y: uk.sinkhorn(torch.cdist(x, y).requires_grad_(), max_iter=100).value.backward(),
    "labels": lambda x, y: uk.label_transport_loss(
        x[:, :100].requires_grad_(), y[:, :100], torch.zeros(len(x), dtype=torch.int64)
    ).backward(),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_call_stays_in_its_thread(two_threads, name):
    """It would wait for whoever holds the other processors."""
    assert not asked_for_threads(lambda: SMALL[name](*features(64, 512)))


def test_a_large_one_asks_for_threads(two_threads):
    for n, d in ((256, 512), (300, 64), (1000, 16)):
        _native.use_threads(2)  # forgets what calls before this one ran into
        assert asked_for_threads(lambda n=n, d=d: SMALL["a step"](*features(n, d))), (n, d)


@pytest.mark.parametrize("upstream", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_torch_leaves_what_surrounds_a_small_call_to_its_thread(two_threads, dtype, upstream):
    """Torch splits an op on more than 32,768 elements over its pool, and waits for all of that."""
    from torch.profiler import profile

    x, y = features(72, 768, dtype)
    x.requires_grad_()
    uk.sinkhorn_loss(x, y).backward()
    x.grad = None
    with profile(record_shapes=True) as ops:
        (upstream * uk.sinkhorn_loss(x, y)).backward()
    shapes = [
        shape for op in ops.events() for shape in op.input_shapes if op.name in ("aten::mul", "aten::copy_")
    ]
    assert shapes and max(math.prod(shape) for shape in shapes) <= 32768
    plain = [z.detach().to(torch.promote_types(dtype, torch.float32)) for z in (x, y)]
    (grad,) = torch.autograd.grad(uk.sinkhorn_loss(plain[0].requires_grad_(), plain[1]), plain[0])
    assert torch.equal(x.grad, (grad * upstream).to(dtype))


def test_the_bits_do_not_depend_on_who_runs_the_tasks(threads):
    torch.set_num_threads(3)
    with_helpers = loss_and_gradient()
    own_helpers = _native.use_threads(3, least_work=0) and loss_and_gradient()
    torch.set_num_threads(5)
    fewer_than_torch = loss_and_gradient()
    _native.use_threads(3, least_work=math.inf)
    alone = loss_and_gradient()
    for other in (own_helpers, fewer_than_torch, alone):
        assert torch.equal(other[0], with_helpers[0]) and torch.equal(other[1], with_helpers[1])


BODY = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
PARALLEL_FOR = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, BODY, ctypes.c_void_p
)
GET_NUM_THREADS = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_uint32))


def led_by(others: bool, calls):
    """What calls return with a pool of two whose leader is another thread, in which torch counts one; or the caller."""
    caller = threading.get_ident()

    def parallel_for(begin, end, grain, body, context):
        if others:
            helpers = [threading.Thread(target=body, args=(k, k + 1, context)) for k in range(begin, end)]
            for helper in helpers:
                helper.start()
            for helper in helpers:
                helper.join()
        else:
            body(begin, end, context)
        return 0

    def get_num_threads(count):
        count[0] = 2 if threading.get_ident() == caller else 1
        return 0

    pool = PARALLEL_FOR(parallel_for), GET_NUM_THREADS(get_num_threads)
    _C.set_threads(*(ctypes.cast(one, ctypes.c_void_p).value for one in pool), 2, least_work=0)
    return [call() for call in calls]


def test_the_bits_do_not_depend_on_who_leads(threads):
    """Of a call, and of problems of a list, which helpers solve one by one."""

    def ragged():
        generator = torch.Generator().manual_seed(2)
        sizes = torch.tensor([60, 300, 40, 280, 50])
        x, y = (torch.randn(730, 16, generator=generator, requires_grad=True) for _ in "xy")
        at = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
        loss = uk.sinkhorn_loss(x, y, reg=0.05, max_iter=20, metric="l2", offsets=(at, at))
        loss.sum().backward()
        return loss.detach(), x.grad, y.grad

    calls = loss_and_gradient, lambda: loss_and_gradient(700, 600), ragged
    for ours, theirs in zip(led_by(False, calls), led_by(True, calls), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_torchs_threads_are_used_and_respected(threads):
    assert _native.threads_from_torch, "this torch exports no thread pool"
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert _C.build_info()["threads"] == count
        results.append(loss_and_gradient())
        again = loss_and_gradient()
        assert torch.equal(again[0], results[-1][0]) and torch.equal(again[1], results[-1][1])


# What docs/sinkhorn.md states: of the loss, and of the largest entry of the gradient.
BOUNDS = {torch.float32: (1e-6, 2e-4), torch.float64: (1e-13, 1e-11)}


def share_of_bounds(got, want) -> float:
    """The larger of both differences over what is allowed; NaN is infinitely far."""
    of_loss, of_gradient = BOUNDS[want[0].dtype]
    shares = (
        (got[0] / want[0] - 1).abs() / of_loss,
        (got[1] - want[1]).abs().max() / want[1].abs().max() / of_gradient,
    )
    return max(float(share.nan_to_num(float("inf"))) for share in shares)


@pytest.mark.parametrize("metric", ["cosine", "chordal", "l2", "l1", "sqeuclidean"])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_another_number_of_threads_moves_little(threads, dtype, metric, record_property):
    """At reg of a hundredth of a cost's mean."""
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, 16, generator=generator).to(dtype) for n in (257, 330))
    reg = 0.01 * reference_cost(x, y, metric).mean().item()
    results = []
    for count in (1, 2, 3, 4, 7):
        torch.set_num_threads(count)
        leaf = x.clone().requires_grad_()
        loss = uk.sinkhorn_loss(leaf, y, metric=metric, reg=reg, max_iter=20)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    worst = max(share_of_bounds(result, results[0]) for result in results[1:])
    record_property("share_of_bound", worst)
    assert worst <= 1


def test_the_number_of_threads_may_change_between_calls_of_others(threads):
    """Four Python threads that set it all the time, while each makes calls."""
    want = loss_and_gradient()
    shares = []

    def work(seed):
        for call in range(25):
            torch.set_num_threads(1 + (call + seed) % 4)
            shares.append(share_of_bounds(loss_and_gradient(), want))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(shares) == 100 and max(shares) <= 1


def test_the_module_relies_on_the_interpreter_lock():
    """As the documentation says: a free-threaded Python switches the lock on when it imports the module."""
    assert "mod_gil_not_used" not in (ROOT / "csrc" / "bind" / "module.cpp").read_text()
    assert getattr(sys, "_is_gil_enabled", lambda: True)()


def test_several_python_threads_at_once(threads):
    torch.set_num_threads(2)
    want = loss_and_gradient()
    failures = []

    def work():
        for _ in range(15):
            got = loss_and_gradient()
            if not (torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])):
                failures.append(got)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.long
def test_eight_threads_a_thousand_calls_each(threads, record_property):
    """Both ops, forward and backward, on shared inputs: every answer has the bits of the first.

    150 x 150 is large enough for two tasks a sweep.
    """
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(150, 16, generator=generator) for _ in range(2))
    logits = torch.randn(150, 10, generator=generator)
    target = torch.randint(10, (150,), generator=generator)

    def both():
        leaf, scores = x.clone().requires_grad_(), logits.clone().requires_grad_()
        loss = uk.sinkhorn_loss(leaf, y, max_iter=5) + uk.label_transport_loss(scores, logits, target)
        loss.backward()
        return torch.cat([loss.detach().reshape(1), leaf.grad.flatten(), scores.grad.flatten()])

    want, same = both(), []

    def work():
        same.append(sum(torch.equal(both(), want) for _ in range(1000)))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    record_property("calls", sum(same))
    assert same == [1000] * 8


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_losses_in_forked_workers_of_a_data_loader(threads):
    """A collate function may use the losses: each worker is a fork of a process whose pool has run."""
    torch.set_num_threads(2)
    loss_and_gradient()
    data = [torch.randn(300, 16, generator=torch.Generator().manual_seed(k)) for k in range(8)]
    want = [uk.sinkhorn_loss(z, data[0]).item() for z in data]

    def collate(rows):
        return [uk.sinkhorn_loss(row, data[0]).item() for row in rows]

    loader = torch.utils.data.DataLoader(
        data, batch_size=2, collate_fn=collate, num_workers=2, multiprocessing_context="fork"
    )
    for _ in range(3):
        got = [value for batch in loader for value in batch]
        assert got == pytest.approx(want, rel=1e-6)


def test_calls_inside_another_parallel_region(threads):
    """From within a task of torch's own pool: nested regions run serially and nobody waits for anybody."""
    import ctypes

    torch.set_num_threads(2)
    library = _native._torch_cpu_library()
    assert library is not None
    x, y = (torch.randn(400, 8, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    want, answers = uk.sinkhorn_loss(x, y).item(), []

    @ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    def body(begin, end, _):
        answers.extend(uk.sinkhorn_loss(x, y).item() for _ in range(begin, end))

    call = library.torch_parallel_for
    call.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    assert call(0, 6, 1, ctypes.cast(body, ctypes.c_void_p), None) == 0
    assert answers == pytest.approx([want] * 6, rel=1e-6)


FORK = """
import os, torch, ucmkd_fast as uk
torch.set_num_threads(2)
x, y = torch.randn(400, 8), torch.randn(300, 8)
before = uk.sinkhorn_loss(x, y).item()   # the pool has threads now
pid = os.fork()
if pid == 0:
    after = uk._native._C.build_info()["threads"], uk.sinkhorn(torch.rand(400, 300)).value.item()
    os._exit(0 if after[0] == 1 and after[1] > 0 else 3)
_, status = os.waitpid(pid, 0)
assert uk.sinkhorn_loss(x, y).item() == before
print("child", os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_runs_serially():
    done = run(FORK)
    assert done.returncode == 0 and "child 0" in done.stdout, done.stdout + done.stderr


def test_no_torch_header_in_csrc():
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in {".h", ".cpp", ".cu", ".cuh"}:
            text = path.read_text()
            assert "#include <torch" not in text and "#include <ATen" not in text and "omp.h" not in text, (
                path
            )


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file's needed libraries with ldd")
def test_no_openmp_and_no_torch_is_linked():
    libraries = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True, check=True).stdout
    assert "gomp" not in libraries and "omp.so" not in libraries and "torch" not in libraries


def test_the_fuzzer_calls_every_entry_function():
    """What csrc/bind/ calls for the CPU, tests/native calls too, under the sanitizers: fuzz.cpp, races.cpp or both."""
    bindings = [path for path in (ROOT / "csrc" / "bind").glob("*.cpp") if path.stem not in ("cuda", "rules")]
    call = re.compile(
        r"\b(?:(?:sinkhorn|cost|label_transport|assign)::|kernels\.)(\w+)(?:<T>|<decltype\(t\)>)?\("
    )
    entries = {name for path in bindings for name in call.findall(path.read_text())}
    assert {"forward", "loss_backward", "ragged_forward", "adjoint_log", "sum_gradient"} <= entries
    calls = "".join(path.read_text() for path in (ROOT / "tests" / "native").glob("*.[hc]*"))
    missing = {name for name in entries if not re.search(rf"\b{name}(?:<T>)?\(", calls)}
    assert not missing, f"csrc/bind/ calls these, and no program of tests/native does: {sorted(missing)}"
