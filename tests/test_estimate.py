"""`ucmkd estimate`: it agrees with the library's own choice, grows with every size, is kept and is JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import ucmkd_fast as uk
from ucmkd_fast.bench import ceilings as measured
from ucmkd_fast.bench.ceilings import Ceilings, ceilings
from ucmkd_fast.bench.cost_model import Size, estimate
from ucmkd_fast.cli import main
from ucmkd_fast.ops import _panels, memory

#: Two threads; caches at 40 GB/s, memory at 10.
SOME = Ceilings(2, 1e11, 1e9, ((1e5, 4e10), (1e6, 3e10), (3e7, 1e10)), 1e-5, 5e-9, 4e9, 1e-4, 1e-4, 1e-4, 1e9)
BASE = Size(300, 200, 64, 20)
GROWING = {
    "n": (4, 64, 300, 1000, 4000, 20000, 10**5),
    "m": (4, 64, 300, 1000, 4000, 20000, 10**5),
    "d": (1, 8, 64, 512, 4096),
    "iterations": (1, 2, 10, 100, 1000),
    "batch": (1, 2, 3, 8, 64),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UCMKD_CACHE", str(tmp_path))


@pytest.fixture
def free(monkeypatch):
    """4 GB are free."""
    monkeypatch.setattr(memory, "free_memory", lambda *_: 4 * 10**9)


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_and_memory_grow_with_every_size(name, dtype, free):
    found = [estimate(replace(BASE, dtype=dtype, **{name: value}), SOME) for value in GROWING[name]]
    times, bytes_ = [e.seconds for e in found], [e.memory for e in found if e.regime != "panels"]
    assert times == sorted(times) and times[-1] > times[0] > 0
    assert bytes_ == sorted(bytes_)


def test_panels_take_less_memory_and_more_time(free):
    dense, panels = (estimate(Size(4000, 4000, 64, memory_budget=b), SOME) for b in (10**9, 10**8))
    assert (dense.regime, panels.regime) == ("one matrix", "panels")
    assert panels.memory < dense.memory / 2 and panels.seconds > dense.seconds


@pytest.mark.parametrize("n, m, budget", [(53, 37, 7000), (53, 37, 3 * 53 * 37 * 4), (53, 37, 3 * 53 * 37 * 4 - 1),
                                          (64, 64, None), (200, 40, 30000)])  # fmt: skip
def test_the_regime_is_the_librarys(n, m, budget, monkeypatch):
    seen, solve = [], _panels.solve
    monkeypatch.setattr(_panels, "solve", lambda *args: seen.append(args[2].rows) or solve(*args))
    x, y = torch.randn(n, 8, requires_grad=True), torch.randn(m, 8)
    uk.sinkhorn_loss(x, y, max_iter=2, memory_budget=budget)
    found = estimate(Size(n, m, 8, 2, memory_budget=budget), SOME)
    assert found.regime == ("panels" if seen else "one matrix")
    assert ([found.panel_rows] if seen else []) == seen


def test_processes_keep_their_rows_or_make_them_panel_by_panel(free):
    sizes = {p: Size(8000, 8000, 64, devices=p, memory_budget=3 * 10**8) for p in (1, 2, 4)}
    assert [estimate(s, SOME).regime for s in sizes.values()] == ["panels", "shared, panels", "shared"]
    two, four = (estimate(sizes[p], SOME).parts["all-reduce"] for p in (2, 4))
    assert four > two > 0
    assert estimate(sizes[4], SOME).seconds < estimate(sizes[1], SOME).seconds
    with pytest.raises(NotImplementedError, match="gloo"):
        estimate(sizes[2], replace(SOME, latency=None, link=None))


def test_what_the_library_refuses_is_refused(free):
    for wrong in ({"devices": 2}, {"memory_budget": 10**6}):
        with pytest.raises(ValueError, match="one problem"):
            Size(10, 10, 10, batch=2, **wrong)
    with pytest.raises(ValueError, match="iterations"):
        Size(10, 10, 10, 0)
    with pytest.raises(MemoryError, match="four rows"):
        estimate(Size(1000, 1000, 8, memory_budget=1000), SOME)


def test_ceilings_are_measured():
    found = measured.measure(torch.float64)
    rates = [rate for _, rate in found.bandwidth]
    assert min(found.flops, found.exponentials, found.fresh, found.call, found.share, *rates) > 0
    assert rates == sorted(rates, reverse=True)
    assert found.threads == torch.get_num_threads()


def test_ceilings_are_kept_for_this_machine(tmp_path, monkeypatch):
    def next_is(value):
        monkeypatch.setattr(measured, "measure", lambda dtype: value)

    other = replace(SOME, flops=1.0)
    next_is(replace(SOME, share=0.5))
    assert not ceilings(torch.float32).alone and not list(tmp_path.iterdir())
    next_is(SOME)
    assert ceilings(torch.float32) == SOME
    next_is(other)
    assert ceilings(torch.float32) == SOME
    assert ceilings(torch.float32, recalibrate=True) == other
    next_is(SOME)
    (path,) = tmp_path.iterdir()
    for spoilt in ("", "[]", path.read_text().replace('"cores"', '"colours"')):
        path.write_text(spoilt)
        assert ceilings(torch.float32) == SOME


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["estimate", *arguments])
    return end.value.code


def test_command_prints_text_and_json(capsys):
    size = "--n 3000 --m 2000 --d 64 --iterations 10 --memory-budget 20000000 --dtype float64".split()
    assert run(*size) == 0
    text = capsys.readouterr().out
    assert "panels" in text and "time" in text and "products" in text
    assert run(*size, "--devices", "2", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["size"]["dtype"] == "float64" and said["estimate"]["regime"] == "shared, panels"
    assert said["estimate"]["seconds"] == pytest.approx(sum(said["estimate"]["parts"].values()))
    assert said["estimate"]["parts"]["all-reduce"] > 0


def test_command_fails_in_one_line(capsys):
    for wrong, words in (("--n 0 --m 4 --d 4", "n must be"), ("--n 4 --m 4 --d 4 --dtype float16", "dtype must be"),
                         ("--n 999 --m 999 --d 4 --memory-budget 99", "four rows")):  # fmt: skip
        assert run(*wrong.split()) == 2
        err = capsys.readouterr().err
        assert err.startswith("ucmkd: ") and words in err and err.count("\n") == 1
