"""`ucmkd compare --controls`: what it adds, and the sentence at the end."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from digit_runs import run_settings
from speech_folders import write_folder

from ucmkd_fast.cli import main
from ucmkd_fast.compare import Experiment
from ucmkd_fast.compare.controls import with_controls
from ucmkd_fast.compare.results import gather
from ucmkd_fast.compare.tables import sentences
from ucmkd_fast.data import UNLABELLED, LabelledData
from ucmkd_fast.data.relabel import relabelled


@pytest.fixture
def settings(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn, which has the handwritten digits, is not installed")
    write_folder(tmp_path / "audio", speakers=("ann", "bob", "cat"), takes=4)
    monkeypatch.setenv("UCMKD_CACHE", str(tmp_path / "cache"))
    base = run_settings(tmp_path / "audio")
    del base["method"]
    return {"seeds": 2, "base": base, "methods": {"ce": "ce", "kd": "kd", "plus": {"name": "ucmkd-plus"}}}


def test_every_method_with_a_teacher_gets_its_controls(settings):
    methods = with_controls(settings)["methods"]
    assert list(methods) == [
        "ce", "kd", "plus", "kd, permuted", "kd, untrained", "plus, permuted", "plus, untrained", "self-training",
    ]  # fmt: skip
    assert methods["plus, untrained"] == {"name": "ucmkd-plus", "control": "untrained"}
    assert with_controls({**settings, "methods": methods})["methods"] == methods  # nothing twice
    configs = {c.contender.label: c.config for c in Experiment.read({**settings, "methods": methods}).cells()}
    assert configs["kd, permuted"].teacher.control == "permuted" and configs["kd"].teacher.control is None
    assert len({c.train.seed for c in configs.values()}) == 1


def test_a_head_of_the_teachers_gets_controls_too(settings):
    settings["methods"] = {"ce": "ce", "head": {"name": "ce", "set": {"student.head": "teacher"}}}
    methods = with_controls(settings)["methods"]
    assert list(methods) == ["ce", "head", "head, permuted", "head, untrained", "self-training"]
    configs = {c.contender.label: c.config for c in Experiment.read({**settings, "methods": methods}).cells()}
    assert configs["head, permuted"].student.head == "teacher" and configs["ce"].student.head == "own"
    assert configs["head, permuted"].needs_teacher and not configs["ce"].needs_teacher


def test_self_training_needs_samples_without_labels(settings):
    del settings["base"]["student"]["data"]["labels_per_class"]
    del settings["methods"]["plus"]
    assert list(with_controls(settings)["methods"]) == ["ce", "kd", "kd, permuted", "kd, untrained"]


def test_the_command_says_what_remains(settings, tmp_path, capsys):
    del settings["methods"]["kd"]
    path = tmp_path / "controls.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as end:
        main(["compare", str(path), "--controls", "--output", str(tmp_path / "out"), "--jobs", "1"])
    assert not end.value.code
    assert "plus: " in capsys.readouterr().out
    page = (tmp_path / "out" / "table.md").read_text()
    (line,) = (row for row in page.splitlines() if row.startswith("* plus: "))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    runs = {(r["method"], r["seed"]): r["accuracy"] for r in results["runs"]}
    wins = sum(runs["plus", seed] > runs["ce", seed] for seed in (0, 1))
    (plus,) = (row for row in results["settings"][0]["methods"] if row["method"] == "plus")
    gains = plus["difference"]["verdict"] == "higher"
    assert (f"Of that, above ce at {wins} of 2 seeds, " in line) == gains
    assert ("remain over plus, permuted" in line) == gains
    # A method without a gain is compared with each of its controls instead: never both.
    assert ("plus, real against permuted teacher" in page) == (not gains)


def sentences_about(settings, gains):
    """What is said of methods whose accuracy is ce's plus gains, in points per seed, on 200 test samples."""
    experiment = Experiment.read(with_controls({**settings, "seeds": len(next(iter(gains.values())))}))
    cells, found = list(experiment.cells()), {}
    for cell in cells:
        gain = gains.get(cell.contender.label, [0] * 99)[cell.seed]
        if gain is not None:
            accuracy = 0.4 + 0.02 * cell.seed + gain / 100
            found[cell.folder] = {"accuracy": accuracy, "config": {}, "weights": "", "samples": {"test": 200}}
    comparison = gather(experiment, cells, found)
    comparison.plain()
    own = [one for one in sentences(comparison, comparison.blocks[0]) if not one.startswith("kd")]
    return " ".join(own), comparison.markdown()


def test_a_gain_and_what_remains_of_it_are_judged_by_one_yardstick(settings):
    seen = [20, 21, 19, 20, 22]
    said, page = sentences_about(settings, {"plus": seen, "plus, permuted": [1, 0, 2, 1, 0]})
    assert (
        "plus: better than ce (+20.4 ± 0.5 points). Of that, above ce at 5 of 5 seeds, " in said
        and "+19.6 ± 0.9 remain over plus, permuted (5 of 5 seeds)" in said
    )
    assert (
        "the teacher's share is above its 95 % margin over every control" in said
        and "real against" not in said
    )
    assert "200 samples: 0.5 points each" in page and "| **+20.4 ± 0.5** |" in page
    said, _ = sentences_about(settings, {"plus": seen, "plus, permuted": seen})
    assert "no difference to plus, permuted seen, so no share of the teacher is shown" in said
    said, _ = sentences_about(settings, {"plus": seen, "plus, permuted": [0, 40, 15, 30, 5]})
    assert "over plus, permuted 5 seeds are too few to tell" in said and "no share" not in said
    said, page = sentences_about(settings, {"plus": [24, 30], "plus, permuted": [0, 0]})
    assert (
        "plus: whether it differs from ce is open (+27.0 ± 3.0 points): 2 seeds are too few to tell" in said
    )
    assert "real against permuted teacher (+27.0 ± 3.0 points): open, 2 seeds are too few to tell" in said
    assert "Of that" not in said and "does as well" not in said and "**+27.0" not in page


def test_runs_that_are_missing_or_measured_nothing_are_said(settings):
    said, page = sentences_about(settings, {"plus": [20, None, 21], "plus, permuted": [0, float("nan"), 0]})
    assert "plus: no accuracy at 1 of 3 seeds, so it is not compared." in said
    assert (
        "plus, permuted: no accuracy at 1 of 3 seeds" in said
        and "| missing (1) |" in page
        and "nan" not in page
    )
    said, page = sentences_about(settings, {"ce": [None, 0, 0], "plus": [20, 20, 21]})
    assert "ce: no accuracy at 1 of 3 seeds" in said and "| 62.3 ± 2.5 |  |" in page


def test_other_labels_on_files_keep_names_and_augmentation():
    class Drawn(LabelledData):
        def __init__(self):
            self.labels, self.classes, self.ids = (
                torch.tensor([0, 1, UNLABELLED]),
                ["a", "b"],
                ["p", "q", "r"],
            )
            self.reads_files = True

        def batch(self, indices):
            return indices[:, None].float(), self.labels[indices]

        def drawn_batch(self, indices, key):
            return indices[:, None].float() + key[0], self.labels[indices]

    data = relabelled(Drawn(), torch.tensor([1, 0]))
    assert data.labels.tolist() == [1, 0, UNLABELLED] and data.ids == ["p", "q", "r"] and data.reads_files
    x, y = data.drawn_batch(torch.tensor([0, 1]), (10,))
    assert x.tolist() == [[10], [11]] and y.tolist() == [1, 0]
