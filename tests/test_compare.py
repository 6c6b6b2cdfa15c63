"""Comparisons: what they run, that they go on after a kill, and what they say."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from clip_folders import write_ravdess
from digit_runs import run_settings
from speech_folders import write_folder

from ucmkd_fast.cli import main
from ucmkd_fast.compare import Experiment, run_experiment
from ucmkd_fast.compare.files import find_experiment, shipped_experiments
from ucmkd_fast.compare.paper import paper_table
from ucmkd_fast.compare.pool import run_all
from ucmkd_fast.compare.results import gather
from ucmkd_fast.compare.tables import sentences
from ucmkd_fast.run.settings import load_settings, with_changes


def experiment_settings(audio: Path) -> dict:
    base = run_settings(audio)
    del base["method"]
    return {
        "title": "Tones",
        "baseline": "ce",
        "seeds": 2,
        "base": {**base, "measure_alignment": True},
        "methods": {
            "ce": "ce",
            "kd": "kd",
            "kd, permuted": {"name": "kd", "control": "permuted"},
            "slow": {"name": "ce", "set": {"train.lr": 0.001}},
        },
        "settings": {
            "two": {"student.data.labels_per_class": 2},
            "one": {"student": {"data": {"labels_per_class": 1}}},
        },
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    pytest.importorskip("sklearn", reason="scikit-learn, which has the handwritten digits, is not installed")
    root = tmp_path_factory.mktemp("compare")
    write_folder(root / "audio", speakers=("ann", "bob", "cat"), takes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCMKD_CACHE", str(root / "cache"))
        yield root


@pytest.fixture(scope="module")
def experiment(place):
    return Experiment.read(experiment_settings(place / "audio"))


@pytest.fixture(scope="module")
def whole(place, experiment):
    """The comparison, run in two processes without a break."""
    return run_experiment(experiment, place / "whole", jobs=2)


def test_cells_differ_in_what_they_should_and_in_nothing_else(experiment):
    cells = list(experiment.cells())
    assert len(cells) == 16 and len({cell.folder for cell in cells}) == 16
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8
    by = {(c.setting, c.contender.label, c.seed): c.config.identity() for c in cells}
    kd, control = by["two", "kd", 1], by["two", "kd, permuted", 1]
    assert control["teacher"].pop("control") == "permuted" and kd["teacher"].pop("control") is None
    assert kd == control and kd["seed"] == 1
    assert by["two", "slow", 0]["train"]["lr"] == 0.001
    assert by["one", "ce", 0]["student"]["data"]["labels_per_class"] == 1
    assert by["two", "ce", 0]["student"] == kd["student"]


def test_settings_have_options_for_methods_and_roots_for_data(place):
    settings = experiment_settings(place / "audio")
    del settings["base"]["student"]["data"]["root"]
    settings["roots"] = {"spoken-digits": "here"}
    settings["methods"] = {
        "ce": "ce",
        "paper": "ucmkd",
        "code": {"name": "ucmkd", "preset": "published-code"},
        "mine": {"name": "ucmkd", "preset": "published-code", "inner_lr": 0.25},
    }
    options = {"ucmkd": {"metric": "l1"}, "ucmkd/published-code": {"inner_lr": 0.5, "metric": "l2"}}
    settings["settings"] = {"a": {"options": options}, "b": {"student.data.root": "there"}}
    cells = {(c.setting, c.contender.label): c.config for c in Experiment.read(settings).cells()}
    assert dict(cells["a", "paper"].method.options) == {"metric": "l1"}
    assert (
        cells["a", "code"].method.options["inner_lr"] == 0.5
        and cells["a", "code"].method.options["metric"] == "l2"
    )
    assert cells["a", "mine"].method.options["inner_lr"] == 0.25 and not cells["b", "ce"].method.options
    roots = [cells[setting, "ce"].student.data.plain()["root"] for setting in "ab"]
    assert roots == ["here", "there"] and "root" not in cells["a", "ce"].teacher.data.plain()


def test_an_experiment_reads_back(experiment):
    again = Experiment.read(yaml.safe_load(yaml.safe_dump(experiment.plain(), sort_keys=False)))
    assert [c.config for c in again.cells()] == [c.config for c in experiment.cells()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"basline": "ce"}, "did you mean 'baseline'?"),
        ({"baseline": "slwo"}, "did you mean 'slow'?"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"seeds": 0}, "seeds must be an integer >= 1"),
        ({"methods": {"a b": "ce", "A-B": "kd"}, "baseline": "a b"}, "would be kept in one folder"),
        ({"methods": {"x": {"name": "kd", "temprature": 3}}, "baseline": "x"}, "did you mean 'temperature'?"),
        ({"methods": {"x": {"name": "kd", "control": "wrong"}}, "baseline": "x"}, "control must be one of"),
        ({"settings": {"a": {"student.modle": "mlp"}}}, "did you mean 'model'?"),
        ({"paper": "66"}, "did you mean '6'?"),
        ({"base": None}, "base must be a mapping"),
        ({"settings": {"a": {"options": {"ucmdk": {}}}}}, "ucmdk"),
        ({"settings": {"a": {"options": {"kd": {"temprature": 3}}}}}, "did you mean 'temperature'?"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(place, change, said):
    with pytest.raises(ValueError) as error:
        Experiment.read({**experiment_settings(place / "audio"), **change})
    assert said in str(error.value)


def test_differences_are_paired_by_seed(whole, place):
    results = json.loads((place / "whole" / "results.json").read_text())
    runs = {(r["setting"], r["method"], r["seed"]): r["accuracy"] for r in results["runs"]}
    for block in results["settings"]:
        for row in block["methods"]:
            own = np.array([runs[block["setting"], row["method"], seed] for seed in (0, 1)])
            base = np.array([runs[block["setting"], "ce", seed] for seed in (0, 1)])
            assert row["accuracy"]["mean"] == pytest.approx(own.mean())
            if row["method"] == "ce":
                assert row["difference"] is None
                continue
            assert row["difference"]["mean"] == pytest.approx((own - base).mean())
            assert row["difference"]["standard_error"] == pytest.approx((own - base).std(ddof=1) / np.sqrt(2))
    assert results["experiment"]["title"] == "Tones" and "git" in results


def test_the_page_has_every_number_and_says_what_it_means(whole, place):
    page = (place / "whole" / "table.md").read_text()
    assert page.count("| kd, permuted |") == 2 and "### two" in page and "## Tones" in page
    assert page.count("kd, real against permuted teacher (") == 2
    assert page.count("* slow: ") == 2 and "paired difference at the same seeds" in page


@pytest.mark.parametrize(
    ("p_values", "said"), [((0.001, 0.04), "2 of 2 seeds: structure"), ((0.04, 0.3), "1 of 2 seeds: little")]
)
def test_the_page_says_how_alike_classes_lie(whole, place, p_values, said):
    """Of the baseline alone, which has no teacher."""
    page = (place / "whole" / "table.md").read_text()
    assert page.count("* Classes lie to each other in ce's features as in the teacher's") == 2
    (block, *_), figures = whole.blocks, {"class_agreement": [0.4, 0.2], "class_agreement_p": p_values}
    rows = [
        replace(row, compared=replace(row.compared, figures=figures)) if row.label == "ce" else row
        for row in block.rows
    ]
    (line,) = [one for one in sentences(whole, replace(block, rows=rows)) if one.startswith("Classes lie")]
    assert "rank correlation of 0.30" in line and said in line


def test_one_teacher_serves_all_and_a_run_is_a_run(whole, place):
    assert len(list((place / "whole" / "teachers").iterdir())) == 1
    folder = place / "whole" / "runs" / "two" / "kd-permuted" / "seed-1"
    assert {"config.yaml", "result.json", "last.safetensors", "run.json"} <= {
        p.name for p in folder.iterdir()
    }


def test_killed_and_gone_on_with_it_is_the_same(whole, experiment, place, tmp_path):
    """The whole process group dies by SIGKILL in the middle; finished runs are not done again."""
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(experiment_settings(place / "audio"), sort_keys=False))
    command = [
        sys.executable,
        "-c",
        "from ucmkd_fast.cli import main; main()",
        "compare",
        "e.yaml",
        "--output",
        "out",
    ]
    process = subprocess.Popen([*command, "--jobs", "1"], cwd=tmp_path, start_new_session=True)
    out = tmp_path / "out"
    deadline = time.monotonic() + 240
    while len(list(out.glob("runs/*/*/*/result.json"))) < 3:
        assert process.poll() is None, "the comparison ended before it could be killed"
        assert time.monotonic() < deadline, "no run was finished within four minutes"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/*/result.json")}
    assert 3 <= len(done) < 16 and not (out / "results.json").exists()

    with pytest.raises(ValueError, match="resume=True"):
        run_experiment(experiment, out)
    said = []
    resumed = run_experiment(experiment, out, jobs=1, resume=True, on_done=said.append)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    assert len([what for what in said if not what.startswith("teacher")]) == 16 - len(done)
    for ours, theirs in zip(resumed.runs, whole.runs, strict=True):
        timed = ("seconds", "seconds_per_epoch", "teacher_seconds", "last_epoch")
        assert {k: v for k, v in ours.items() if k not in timed} == {
            k: v for k, v in theirs.items() if k not in timed
        }


def test_a_folder_of_other_runs_is_refused(whole, place):
    settings = experiment_settings(place / "audio")
    settings["base"]["train"]["lr"] = 0.01
    with pytest.raises(ValueError, match="other settings \\(train differ\\)"):
        run_experiment(Experiment.read(settings), place / "whole", resume=True)


def test_a_run_that_diverges_is_an_outcome(place, tmp_path):
    settings = experiment_settings(place / "audio")
    settings["methods"] = {
        "ce": "ce",
        "wild": {"name": "ce", "set": {"train.lr": 1e30, "train.clip_norm": None}},
    }
    settings |= {"settings": None, "seeds": 1}
    comparison = run_experiment(Experiment.read(settings), tmp_path / "out", jobs=1)
    (block,) = comparison.blocks
    assert [row.diverged for row in block.rows] == [0, 1]
    page = comparison.markdown()
    assert "| wild | diverged (1) |" in page and "diverged at 1 of 1 seeds" in page
    json.dumps(comparison.plain(), allow_nan=False)


def test_the_papers_figures_stand_beside(place):
    settings = experiment_settings(place / "audio")
    settings |= {"paper": 6, "settings": {"tones": {"paper": "RAVDESS A to V"}}, "baseline": "FA only"}
    settings["methods"] = {"FA only": "feature", "ours": {"name": "ucmkd", "paper": "ucmkd"}, "kd": "kd"}
    experiment = Experiment.read(settings)
    cells = list(experiment.cells())
    found = {cell.folder: {"accuracy": 0.5, "config": {}, "weights": ""} for cell in cells}
    comparison = gather(experiment, cells, found)
    rows = comparison.blocks[0].rows
    assert [row.paper for row in rows] == [65.37, 73.83, None]
    assert rows[1].paper_difference == pytest.approx(73.83 - 65.37) and rows[0].paper_difference is None
    assert "| ours | 50.0 ± 0.0 | +0.0 ± 0.0 | 73.83 | +8.46 |" in comparison.markdown()


def test_the_papers_figures_are_those_of_the_paper():
    table = paper_table("1")
    assert table.figure("ucmkd", "VGGSound V to A") == 56.84 and table.figure("ce", "AVE A to V") == 27.70
    assert paper_table("14").figure("ucmkd", "V to A hard") == 51.56
    assert table.figure("nobody", "AVE A to V") is None


def test_names_of_experiments(tmp_path):
    assert {"digits/ablation", "digits/scarcity"} <= set(shipped_experiments())
    for name in shipped_experiments():
        assert find_experiment(name).is_file()
    with pytest.raises(FileNotFoundError, match="did you mean digits/ablation"):
        find_experiment("digits/ablatoin")


@pytest.mark.parametrize("name", shipped_experiments())
def test_experiments_that_come_along_resolve(name):
    experiment = Experiment.load(find_experiment(name))
    assert list(experiment.cells()) and experiment.title


PAPER = [name for name in shipped_experiments() if name.startswith("paper/")]


def test_the_papers_experiments_are_there():
    numbers = (*(f"table{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 14)), "figure2")
    assert {f"paper/{number}" for number in numbers} <= set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_experiments_stand_beside_its_figures_and_say_what_is_missing(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    experiment = Experiment.load(find_experiment(name))
    if experiment.paper is not None:
        for row in experiment.paper.rows.keys() - {"teacher"}:
            assert any(contender.row == row for contender in experiment.contenders)
            for setting in experiment.settings.values():
                assert experiment.paper.figure(row, setting.column) is not None
    with pytest.raises(SystemExit) as end:
        main(["compare", name, "--dry-run", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert end.value.code == 1
    assert {sentence.partition(":")[0] for sentence in found["missing"]} == {"teacher", "student"}
    assert all("data/" in sentence for sentence in found["missing"])
    assert found["runs"] == 5 * len(experiment.contenders) * len(experiment.settings)
    assert not list(tmp_path.iterdir())


def test_the_command(whole, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(experiment_settings(place / "audio"), sort_keys=False))

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["compare", *arguments])
        return end.value.code, *capsys.readouterr()

    status, out, _ = call("e.yaml", "seeds=3", "--dry-run", "--output", str(place / "whole"))
    assert status == 0 and "24 runs, 16 of them there" in out
    status, out, _ = call("e.yaml", "base.student.data.root=nowhere", "--dry-run", "--json")
    assert status == 1 and "nowhere" in json.loads(out)["missing"][0]
    assert not (tmp_path / "runs").exists()
    status, out, _ = call("e.yaml", "seeds=1", "settings=null", "--jobs", "1")
    assert status == 0 and "vs ce" in out and "table.md" in out
    assert (tmp_path / "runs" / "compare" / "e" / "table.md").is_file()


def _prepare_to_die(shared):
    return lambda run: os._exit(7) if run == 2 else run + shared


def test_a_process_that_dies_is_an_error_and_not_a_wait():
    with pytest.raises(ChildProcessError, match="jobs=1"):
        list(run_all(_prepare_to_die, 10, [1, 2, 3], jobs=2))
    assert dict(run_all(_prepare_to_die, 10, [1, 3], jobs=1)) == {1: 11, 3: 13}


def test_an_experiment_of_the_paper_runs_on_a_small_folder_of_its_layout(tmp_path):
    """Everything as it comes along but for sizes, and one method of each kind."""
    pytest.importorskip("transformers", reason="neither of the libraries that have ResNet-18 is installed")
    pytest.importorskip("PIL", reason="Pillow, which reads the pictures, is not installed")
    write_ravdess(tmp_path / "RAVDESS")
    changes = {
        "seeds": 1,
        "roots.ravdess": str(tmp_path / "RAVDESS"),
        "base.student.data": {"image_size": 32},
    }
    for train in ("base.train", "base.teacher.train"):
        changes |= {f"{train}.epochs": 1, f"{train}.steps_per_epoch": 1, f"{train}.batch_size": 4}
    values = with_changes(load_settings(find_experiment("paper/table6")), changes)
    values["settings"] = {"RAVDESS A to V": values["settings"]["RAVDESS A to V"]}
    values["settings"]["RAVDESS A to V"] |= {"train": {"warmup_epochs": 0}}
    values["methods"] = {label: values["methods"][label] for label in ("ce", "ucmkd", "ucmkd, permuted")}
    comparison = run_experiment(Experiment.read(values), tmp_path / "out", jobs=1)
    (block,) = comparison.blocks
    assert block.teacher is not None and [row.paper for row in block.rows] == [None, 73.83, None]
    assert all(run["samples"]["test"] == 16 for run in comparison.runs)
