"""Sizes whose product does not fit 32 bits: no index wraps round."""

from __future__ import annotations

import mmap
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.reference import sinkhorn as reference

CSRC = Path(__file__).parents[1] / "csrc"


def narrowings(source: Path) -> list[str]:
    """Where a file of csrc/ puts a wide integer into a narrow one without saying so."""
    level = ["-DUK_LEVEL=baseline", "-DUK_BYTES=16", "-DUK_X86_LEVEL=0", "-DUK_LEVELS=X(baseline)"]
    command = ["c++", "-std=gnu++17", "-fsyntax-only", f"-I{CSRC}", *level, "-Wconversion", "-Wno-psabi"]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "conversion" in line and "int" in line]


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler here")
def test_no_index_is_narrowed(tmp_path):
    sources = [path for path in sorted(CSRC.rglob("*.cpp")) if path.parent.name != "bind"]
    assert len(sources) > 10
    assert not [line for source in sources for line in narrowings(source)]
    planted = (CSRC / "cost" / "cpu.cpp").read_text()
    assert "work + index * m;" in planted
    (tmp_path / "planted.cpp").write_text(
        planted.replace("T* columns = work + index * m;", "int at = index * m; T* columns = work + at;")
    )
    assert narrowings(tmp_path / "planted.cpp")


@pytest.mark.skipif(sys.platform != "linux", reason="maps pages in Linux's way")
def test_label_transport_on_rows_far_apart():
    """Three rows of logits, 2^30 + 1 elements apart: the last lies beyond 2^31. Pages in between are never touched."""
    stride = 2**30 + 1
    flags = (
        mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    )  # Python names it from 3.13
    try:
        pages = mmap.mmap(-1, 4 * (2 * stride + 5), flags)
    except OSError as error:
        pytest.skip(f"this system gives no 8 GB of addresses: {error}")
    far = torch.frombuffer(pages, dtype=torch.float32).as_strided((3, 5), (stride, 1))
    near, teacher = torch.randn(3, 5), torch.randn(3, 5)
    far.copy_(near)
    target = torch.tensor([0, 4, 2])
    leaves = [z.detach().requires_grad_() for z in (far, near)]
    assert leaves[0].stride() == (stride, 1)
    losses = [uk.label_transport_loss(leaf, teacher, target, reduction="none") for leaf in leaves]
    assert torch.equal(*losses)
    grads = [torch.autograd.grad(loss.sum(), leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)]
    assert torch.equal(*grads)


@pytest.mark.long
def test_a_cost_of_more_than_two_to_the_31(record_property):
    """N = M = 46,400, panel by panel.

    The rows are copies of 60 and 50 points, in random order: the answer is that of the 60 x 50 problem whose
    masses are the shares of the copies, started where the large one starts.
    """
    size = 46_400
    assert size * size > 2**31
    points = torch.randn(60, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    which = [torch.randint(len(p), (size,)) for p in points]
    counts = [torch.bincount(w, minlength=len(p)) for w, p in zip(which, points, strict=True)]
    assert all((c > 0).all() for c in counts)
    options = {"metric": "sqeuclidean", "reg": 2.0, "max_iter": 2}
    small = [p.clone().requires_grad_() for p in points]
    a, b = (c / size for c in counts)
    C = reference.cost(*small, options["metric"])
    f = -options["reg"] * (torch.log(torch.tensor(float(size))) - counts[0].log())
    want = reference.sinkhorn(C, a, b, reg=2.0, max_iter=2, init=(f.double(), torch.zeros(50).double())).value
    wants = torch.autograd.grad(want, small)

    large = [p[w].float().requires_grad_() for p, w in zip(points, which, strict=True)]
    got = uk.sinkhorn_loss(*large, memory_budget=2**28, **options)
    assert abs(got.item() / want.item() - 1) < 1e-5
    for leaf, index, count, grad in zip(torch.autograd.grad(got, large), which, counts, wants, strict=True):
        share = (grad / count[:, None])[index]
        assert (leaf - share).abs().max() <= 1e-3 * share.abs().max()
    record_property("elements", size * size)
