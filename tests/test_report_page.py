"""The page of a run: its numbers are those of the run, and everything is in one file."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from finished_runs import finished_run

from ucmkd_fast.cli import main
from ucmkd_fast.report.page import figures, gather, write_report
from ucmkd_fast.report.page.gather import mass_by_class
from ucmkd_fast.report.sample_terms import Constants, sample_terms
from ucmkd_fast.run.evaluation import evaluate_run
from ucmkd_fast.text import visible
from ucmkd_fast.training.run_folder import RunFolder

TERMS = "d=5,s1=4,s2=4,c1=1,c2=1"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCMKD_CACHE", str(root / "cache"))
        yield root


@pytest.fixture(scope="module")
def run(root):
    return finished_run(root)


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(one) for one in arguments])
    return end.value.code, *capsys.readouterr()


class Outside(HTMLParser):
    """Collects what a page would load from elsewhere, and its headings; tags must close."""

    def __init__(self):
        super().__init__()
        self.outside, self.titles, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.outside += [
            value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def test_page(run, capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra report)")
    status, out, err = call(
        capsys, "report", run, "--sample-terms", TERMS, "--output", tmp_path / "out", "--json"
    )
    assert status == 0, err
    found = json.loads(out)
    assert found["accuracy"] == evaluate_run(run, "test")["accuracy"]
    assert found == {**json.loads((tmp_path / "out" / "report.json").read_text()), "page": found["page"]}
    assert np.sum(found["plan_by_class"]) == pytest.approx(1, abs=1e-4)
    assert list(found["bound_by_epoch"]) == ["0", "1", "2"] and found["bound"] == found["bound_by_epoch"]["2"]
    assert [one["epoch"] for one in found["history"]] == [1, 2]

    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    page = Outside()
    page.feed(text)
    page.close()
    assert not page.outside and not page.open
    assert page.titles == [
        "Learning curves", "Who is taken for whom", "Transport plan by class", "Kappa by class",
        "Features of both modalities", "Theorem 2.6 from epoch to epoch", "What ran",
    ]  # fmt: skip
    pictures = [base64.b64decode(one) for one in re.findall(r"data:image/png;base64,([^']+)'", text)]
    files = {path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert len(pictures) == 6 and set(pictures) == files
    assert "s1 = 4" in text and "largest on these samples" in text and "largest gradient norm" in text


def test_runs_without_a_teacher_or_of_other_widths(root, capsys):
    ce = finished_run(root, method="ce", train__keep_weights_every=None)
    report = gather(ce)
    assert report.between is None and "trained no teacher" in report.why_not_between
    text = write_report(report).read_text(encoding="utf-8")
    assert "are left out" in text and "Kappa by class" not in text
    status, _, err = call(capsys, "report", ce, "--sample-terms", TERMS)
    assert status == 2 and "need a teacher" in err
    kd = finished_run(root, method="kd", student__model__width=4)
    assert "4 wide and the teacher's 8" in gather(kd).why_not_between


def test_an_unbalanced_plan_is_the_methods_own_and_read_by_what_it_moves(root, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra report)")
    folder = finished_run(root, method={"name": "feature", "unbalanced": [0.2, 0.3]})
    told = json.loads((folder / "run.json").read_text())["identity"]["method"]["options"]
    assert told == {"unbalanced": [0.2, 0.3]}
    report = gather(folder)
    assert report.between.transport["unbalanced"] == (0.2, 0.3) and report.between.by_method
    plan = report.between.plan_by_class
    assert 0.05 < plan.sum() < 0.95
    status, out, err = call(capsys, "report", folder, "--json")
    assert status == 0, err
    assert json.loads(out)["transport"]["unbalanced"] == [0.2, 0.3]
    text = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert f"{100 * np.trace(plan) / plan.sum():.0f} % of all mass goes to the class" in text


HOSTILE = [
    "$a_{$",
    "<script>x</script>",
    "_b",
    "a\n\x1b[31m",
    "\udcff",
    "[/x]&amp;",
    "'\"><img src=http://x>",
    "\u202e",
    "$",
    "c",
]


def test_classes_and_folders_of_any_name_are_shown_as_they_stand(run, tmp_path):
    """No tag, no entity, no formula: ``$a_{$`` would end matplotlib with an error, half a surrogate the writing."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra report)")
    folder = tmp_path / "run <b>[/x] $a_{$"
    report = replace(gather(run), classes=HOSTILE, folder=folder, part="test <i>")
    text = write_report(report).read_text(encoding="utf-8")
    page = Outside()
    page.feed(text)
    page.close()
    assert (
        not page.outside
        and not page.open
        and "<script" not in text
        and "\x1b" not in text
        and "\u202e" not in text
    )
    shown = html.unescape(text)
    assert all(visible(name) in shown for name in HOSTILE) and folder.name in shown
    curves = [{"epoch": 1, "$a_{$": 1.0, "_b\n": 2.0}, {"epoch": 2, "$a_{$": 1.0, "_b\n": 2.0}]
    assert figures.learning_curves(curves).startswith(b"\x89PNG")
    with pytest.importorskip("matplotlib").rc_context({"text.usetex": True}):  # somebody's matplotlibrc
        assert figures.plan_by_class(np.eye(2), ["100 %", "$a_{$"]).startswith(b"\x89PNG")


def test_kept_weights_are_those_of_the_epochs(run):
    from safetensors.torch import load_file

    kept = RunFolder(run).kept_weights()
    assert list(kept) == [0, 1, 2]
    last = load_file(run / "last.safetensors")
    assert all(torch.equal(value, last[name]) for name, value in load_file(kept[2]).items())
    assert not torch.equal(load_file(kept[0])["head.weight"], last["head.weight"])


def test_mass_by_class():
    plan = torch.arange(12.0, dtype=torch.float64).view(3, 4) / 66
    rows, columns = torch.tensor([2, 0, 2]), torch.tensor([1, 1, 0, 2])
    mass = mass_by_class(plan, rows, columns, 3)
    wanted = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(3):
        for j in range(4):
            wanted[rows[i], columns[j]] += plan[i, j]
    assert torch.equal(mass, wanted)


def test_terms_of_theorem_2_7():
    """Against the formula written out, with numbers that are easy by hand."""
    constants = Constants.read("d=4, s1=2, s2=1, c1=3, c2=10, c3=0.5, delta=0.2")
    terms = sample_terms(constants, 2.0, 100, 50, largest_la=9.0)
    log = math.log(10)
    assert terms.feature_concentration == pytest.approx(2 * (math.sqrt(log / 200) + math.sqrt(log / 100)))
    assert terms.feature_dimension == pytest.approx(2 * (3 / 10 + 10 / 50))
    assert terms.label_complexity == pytest.approx(0.5 * 2 * math.sqrt(8 * math.log(25) / 100))
    assert terms.label_concentration == pytest.approx(0.5 * math.sqrt(math.log(5) / 200))
    assert terms.total == pytest.approx(sum(vars(terms).values()))
    unsaid = sample_terms(Constants.read(TERMS), 2.0, 100, 50, largest_la=9.0)
    assert unsaid.label_concentration == pytest.approx(9 * math.sqrt(math.log(20) / 200))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("d=5", "needs s1, s2, c1, c2 as well"),
        (TERMS + ",c4=1", "unknown constant of Theorem 2.7 'c4'"),
        ("d", "expected constants as name=number, got 'd'"),
        (TERMS + ",delta=0.5", "delta must be below 1/3"),
        (TERMS + ",c3=-1", "c3 must be a finite number > 0"),
    ],
)
def test_constants_that_are_refused(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Constants.read(text)


def test_more_dimensions_than_samples_are_refused():
    with pytest.raises(ValueError, match="d must be below the number of student samples, 5"):
        sample_terms(Constants.read(TERMS), 1.0, 5, 5, 1.0)


def test_errors_are_one_line(run, capsys, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for arguments, said in (
        ((tmp_path / "nowhere",), "nowhere"),
        ((run, "--part", "tset"), "part must be one of"),
        ((run, "--output", tmp_path / "file"), "could not write the report"),
        ((run, "--teacher", tmp_path / "nowhere"), "nowhere"),
    ):
        status, out, err = call(capsys, "report", *arguments)
        assert status == 2 and not out and err.count("\n") == 1 and said in err, err
